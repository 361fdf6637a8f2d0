"""Draw the pictures of docs/patterns.md and docs/architecture.md.

    python docs/generate_figures.py

The keys of a query are computed with the reference implementations of the kernels: attention with one-hot vectors as
values returns the weight of every key. The layers of the architecture are those of the import contract in
pyproject.toml.
"""

import ast
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor

from visionattn.kernels import bilevel_routing_attention, na2d

REPO = Path(__file__).resolve().parents[1]
FIGURES = REPO / "docs" / "figures"
SIDE = 16  # of the map
KEY, QUERY, EDGE, TEXT = "#2a62a8", "#d6203a", "#c9ced4", "#30363d"

# title, arguments of na2d, the query (row, column)
NEIGHBORHOODS = [
    ("7 × 7 keys around\nthe query", dict(kernel_size=7), (8, 8)),
    ("at a corner, the window\nis shifted inward", dict(kernel_size=7), (1, 14)),
    ("dilation 2: every\nother position", dict(kernel_size=7, dilation=2), (8, 8)),
    ("stride 4: 4 × 4 queries\nshare one window", dict(kernel_size=7, stride=4), (8, 8)),
    ("causal: no later row\nor column", dict(kernel_size=7, is_causal=True), (8, 8)),
    ("blocks: the stride\nis the kernel size", dict(kernel_size=4, stride=4), (9, 10)),
]
REGIONS, TOPK = 4, 3


def one_hot(side: int) -> Tensor:
    """Return values ``[1, side, side, 1, side * side]`` with a 1 for the position itself."""
    return torch.eye(side * side).view(1, side, side, 1, side * side)


def neighborhood(side: int = SIDE, **options: object) -> Tensor:
    """Return the weights of neighborhood attention with equal scores, ``[side, side (query), side, side (key)]``."""
    zero = torch.zeros(1, side, side, 1, 1)
    return na2d(zero, zero, one_hot(side), backend="reference", **options).view(side, side, side, side)


def routing(seed: int = 3, side: int = SIDE) -> Tensor:
    """Return the weights of routing attention of random maps, ``[side, side (query), side, side (key)]``."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, side, side, 1, 8, generator=generator)
    out = bilevel_routing_attention(q, k, one_hot(side), REGIONS, TOPK, backend="reference")
    return out.view(side, side, side, side)


def draw_map(axes: Axes, attention: Tensor, query: tuple[int, int], title: str, lines: int = 0) -> None:
    """Draw the keys of a query, darker for larger weights, and around it all queries with the same keys.

    Args:
        axes: where to draw.
        attention: weights ``[height, width (query), height, width (key)]``.
        query: row and column.
        title: title of the panel.
        lines: side of regions whose borders are drawn; 0 for none.
    """
    weights = attention[query]
    height, width = weights.shape
    largest = float(weights.max())
    rows, columns = ((attention > 0) == (weights > 0)).all(-1).all(-1).nonzero(as_tuple=True)
    for y in range(height):
        for x in range(width):
            share = float(weights[y, x]) / largest
            color = (*mpl.colors.to_rgb(KEY), 0.35 + 0.65 * share) if share > 0 else "white"
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=color, edgecolor=EDGE, linewidth=0.4))
    axes.add_patch(Rectangle(query[::-1], 1, 1, facecolor="none", edgecolor=QUERY, linewidth=2))
    x, y = int(columns.min()), int(rows.min())
    sides = int(columns.max()) + 1 - x, int(rows.max()) + 1 - y
    if 1 < len(rows) == sides[0] * sides[1] < height * width:  # not queries of one dilation group
        axes.add_patch(Rectangle((x, y), *sides, facecolor="none", edgecolor=QUERY, linewidth=1))
    for place in range(lines, width, lines) if lines else ():
        axes.plot((place, place), (0, height), color=TEXT, linewidth=1)
        axes.plot((0, width), (place, place), color=TEXT, linewidth=1)
    axes.set(xlim=(-0.2, width + 0.2), ylim=(height + 0.2, -0.2), aspect="equal")
    axes.set_title(title, fontsize=10, color=TEXT)
    axes.axis("off")


def draw_patterns() -> plt.Figure:
    """Return the picture of all patterns."""
    figure, panels = plt.subplots(2, 4, figsize=(10, 5.6), layout="constrained")
    for axes, (title, options, query) in zip(panels.flat, NEIGHBORHOODS, strict=False):
        draw_map(axes, neighborhood(**options), query, title)
    query = (6, 9)
    draw_map(panels[1, 2], routing(), query, f"routing: the {TOPK} regions\nthat match best", SIDE // REGIONS)
    draw_map(panels[1, 3], torch.ones(SIDE, SIDE, SIDE, SIDE), (8, 8), "for comparison:\ndense attention")
    return figure


def layers() -> list[list[str]]:
    """Return the folders of each layer, top first, from the import contract in pyproject.toml."""
    text = (REPO / "pyproject.toml").read_text(encoding="utf-8")
    content = text.split('type = "layers"\nlayers = ')[1].split("\n]")[0] + "]"
    return [
        [name.strip().removeprefix("visionattn.") for name in line.split("|")] for line in ast.literal_eval(content)
    ]


CONTENTS = {
    "cli": "the commands",
    "serve": "page and HTTP API",
    "openmmlab": "the module that configs import; the list of jobs",
    "heads": "one folder for each job: heads, losses, datasets, metrics",
    "inference": "Predictor, tiling, drawing, result files, export",
    "engine": "training and testing with OpenMMLab",
    "data": "images and annotations",
    "backbones": "timm models",
    "compat": "interface of NATTEN",
    "layers": "attention modules, nn.Module",
    "kernels": "attention on tensors: reference, PyTorch, Triton",
    "io": "untrusted files, folders, downloads",
    "errors": "errors that users can correct",
}


def draw_architecture() -> plt.Figure:
    """Return the picture of the layers of the package."""
    rows = layers()
    figure, axes = plt.subplots(figsize=(8.6, 0.62 * len(rows) + 0.5), layout="constrained")
    total = 10.0
    for number, names in enumerate(rows):
        width = total / len(names)
        for place, name in enumerate(names):
            corner = (place * width + 0.06, -number + 0.1)
            axes.add_patch(
                FancyBboxPatch(
                    corner, width - 0.12, 0.8, boxstyle="round,pad=0,rounding_size=0.12", facecolor="#eef3fa",
                    edgecolor=KEY, linewidth=1,
                )
            )  # fmt: skip
            label = CONTENTS[name]
            middle = -number + 0.5
            if len(names) == 1:
                axes.text(0.3, middle, name, fontsize=11, weight="bold", color=TEXT, va="center")
                axes.text(2.6, middle, label, fontsize=10, color=TEXT, va="center")
            else:
                axes.text(corner[0] + 0.2, middle + 0.17, name, fontsize=11, weight="bold", color=TEXT, va="center")
                axes.text(corner[0] + 0.2, middle - 0.19, label, fontsize=9, color=TEXT, va="center")
    axes.annotate("", xy=(10.5, 1 - len(rows) + 0.1), xytext=(10.5, 0.9), arrowprops=dict(arrowstyle="-|>", color=TEXT))
    axes.text(10.75, 0.5 - (len(rows) - 1) / 2, "imports", rotation=270, va="center", fontsize=10, color=TEXT)
    axes.set(xlim=(0, 11.1), ylim=(0.9 - len(rows), 1.1))
    axes.axis("off")
    return figure


PICTURES = {"attention_patterns.png": draw_patterns, "architecture.svg": draw_architecture}


def main(folder: Path = FIGURES) -> None:
    """Write all pictures."""
    folder.mkdir(exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "visionattn", "svg.fonttype": "none", "font.family": "sans-serif"}):
        for name, draw in PICTURES.items():
            figure = draw()
            metadata = {"Date": None} if name.endswith(".svg") else {"Software": None}
            figure.savefig(folder / name, metadata=metadata, facecolor="white", dpi=120)
            plt.close(figure)
            print(f"wrote {folder / name}")


if __name__ == "__main__":
    main()
