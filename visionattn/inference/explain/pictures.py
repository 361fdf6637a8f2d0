"""Pictures and plots of the pages."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from visionattn.errors import require
from visionattn.inference.explain.attention import AttentionCall
from visionattn.inference.heatmap import color_bar, paint_heatmap

__all__ = [
    "draw_query",
    "figures",
    "plot_clusters",
    "plot_embedding",
    "plot_heads",
    "plot_importance",
    "plot_offsets",
    "plot_rings",
]

CELL = 260
"""Longer side of the attention map of one head in pixels."""
COLUMNS = 4
"""Maximum number of heads side by side."""
GAP = 8
TITLE = 20
"""Height of the text above the map of a head in pixels."""


def figures(files: Sequence[tuple[Path, str]], beside: bool = False) -> str:
    """Return HTML with pictures and their captions; the pictures are part of it.

    Args:
        files: PNG files and captions.
        beside: show the pictures beside each other, as far as the width of the page permits.
    """
    found = "".join(
        f'<figure><img style="height:auto;width:auto;max-width:100%" alt="" '
        f'src="data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for file, caption in files
    )
    return f'<div class="columns" style="gap:.6rem">{found}</div>' if beside else found


def draw_query(image: np.ndarray, call: AttentionCall, x: float, y: float) -> np.ndarray:
    """Draw the attention weights of one query, one map per head, with a cross at the query.

    The colors of each map are scaled to its maximum, which is written above it; a color bar is drawn below the maps.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        call: an attention call of the image.
        x, y: position of the query in pixels of the image.

    Returns:
        BGR uint8.
    """
    cv2 = require("cv2")
    rows, columns = call.grid
    weights = call.weights(int(y * rows / image.shape[0]), int(x * columns / image.shape[1])).float().cpu().numpy()
    scale = CELL / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = small.shape[:2]
    across = min(COLUMNS, len(weights))
    down = -(-len(weights) // across)
    cell_height, cell_width = height + TITLE + GAP, max(width, CELL) + GAP
    sheet = np.full((down * cell_height + 2 * TITLE, across * cell_width, 3), 255, np.uint8)

    def write(text: str, left: int, bottom: int) -> None:
        cv2.putText(sheet, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (60, 60, 60), 1, cv2.LINE_AA)

    for head, values in enumerate(weights):
        top, left = head // across * cell_height, head % across * cell_width
        peak = max(float(values.max()), 1e-9)
        cell = paint_heatmap(small, cv2.resize(values / peak, (width, height), interpolation=cv2.INTER_NEAREST))
        place = (round(x * scale), round(y * scale))
        cv2.drawMarker(cell, place, (255, 255, 255), cv2.MARKER_CROSS, 13, 3)
        cv2.drawMarker(cell, place, (0, 0, 0), cv2.MARKER_CROSS, 11, 1)
        write(f"head {head}, maximum {peak:.3g}", left, top + TITLE - 6)
        sheet[top + TITLE : top + TITLE + height, left : left + width] = cell
    top = down * cell_height
    write("0", 0, top + 14)
    sheet[top + 4 : top + 16, 14:134] = color_bar(120)
    write("maximum", 140, top + 14)
    return sheet


def plot_heads(path: Path, values: Sequence[Tensor], title: str, label: str) -> None:
    """Plot one value per head against the index of the attention layer, with the mean over heads."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for layer, heads in enumerate(values):
        axes.plot([layer] * len(heads), heads.tolist(), "o", color="#2b6cb0", alpha=0.6, markersize=4)
    axes.plot(range(len(values)), [float(h.mean()) for h in values], color="#c05621", linewidth=1.2)
    axes.set(xlabel="attention layer", ylabel=label, title=title)
    axes.grid(alpha=0.25)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def plot_importance(path: Path, effects: Sequence[Tensor], names: Sequence[str], rows: Sequence[str]) -> None:
    """Draw the effects of removing heads as colors, with layers as rows and heads as columns.

    Args:
        path: PNG file.
        effects: ``[heads, len(rows), len(names)]`` for each layer; NaN is left out.
        names: of the measures.
        rows: of what is removed.
    """
    plt = _pyplot()
    height = 1.2 + 0.14 * len(effects)
    figure, axes = plt.subplots(
        len(rows), len(names), figsize=(11, height * len(rows)), layout="constrained", squeeze=False
    )
    for row, removed in enumerate(rows):
        for column, name in enumerate(names):
            axis, table = axes[row, column], np.full((len(effects), max(map(len, effects))), np.nan)
            for layer, values in enumerate(effects):
                table[layer, : len(values)] = values[:, row, column]
            if np.isnan(table).all():
                axis.axis("off")
                continue
            limit = max(float(np.nanmax(np.abs(table))), 1e-12)
            signed = np.nanmin(table) < 0
            colors = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if signed else {"cmap": "viridis", "vmin": 0}
            shown = axis.imshow(table, aspect="auto", interpolation="nearest", **colors)
            figure.colorbar(shown, ax=axis)
            axis.set_title(f"{name}, {removed} removed", fontsize=9)
            axis.set(xlabel="head", ylabel="attention layer")
            for side in (axis.xaxis, axis.yaxis):
                side.get_major_locator().set_params(integer=True)
    _save(figure, path)


def plot_rings(path: Path, shares: Sequence[Tensor], per_patch: Sequence[Tensor]) -> None:
    """Plot the shares of the rings for each layer (mean over heads), and the share per patch of each head.

    Args:
        path: PNG file.
        shares: ``[heads, rings]`` of each layer, which sum to 1.
        per_patch: mean share of a patch of the ring, of the same shapes.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    edges = [0, 1, 2, 3, 5, 9, 17, max(s.shape[1] for s in shares)]
    bottom = np.zeros(len(shares))
    colors = plt.get_cmap("viridis")(np.linspace(0.05, 0.95, len(edges) - 1))
    for color, start, end in zip(colors, edges[:-1], edges[1:], strict=True):
        part = np.array([float(s[:, start:end].sum(1).mean()) for s in shares])
        if end > start and part.any():
            name = str(start) if end == start + 1 else f"{start} to {end - 1}"
            left.bar(range(len(shares)), part, bottom=bottom, color=color, label=name, width=0.9)
            bottom += part
    left.set(xlabel="attention layer", ylabel="share of attention", title="Rings around the query, in patches")
    left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    tones = plt.get_cmap("plasma")(np.linspace(0, 0.9, len(per_patch)))
    for layer, values in enumerate(per_patch):
        for head in values:
            right.plot(range(len(head)), head.clamp(min=1e-6).tolist(), color=tones[layer], alpha=0.45, linewidth=0.9)
    left.set_xlim(-0.6, len(shares) - 0.4)
    left.xaxis.get_major_locator().set_params(integer=True)
    right.set(xscale="symlog", yscale="log", xlabel="ring", title="Share of one patch of the ring, one line per head")
    ticks = [ring for ring in (0, 1, 2, 4, 8, 16, 32, 64) if ring < max(s.shape[1] for s in shares)]
    right.set_xticks(ticks, [str(ring) for ring in ticks])
    right.grid(alpha=0.25)
    bar = plt.cm.ScalarMappable(plt.Normalize(0, max(1, len(per_patch) - 1)), plt.get_cmap("plasma"))
    figure.colorbar(bar, ax=right, label="attention layer")
    _save(figure, path)


def plot_offsets(path: Path, offsets: Tensor) -> None:
    """Draw the mean attention of each head to a key by its position relative to the query.

    Args:
        path: PNG file.
        offsets: ``[heads, 2 * rows - 1, 2 * columns - 1]``; only the positions that some head uses are drawn.
    """
    plt = _pyplot()
    used = offsets.amax(0) > 1e-4 * offsets.max()
    reach = [int((axis.nonzero()[:, 0] - axis.numel() // 2).abs().max()) for axis in (used.any(1), used.any(0))]
    middle = [offsets.shape[1] // 2, offsets.shape[2] // 2]
    part = offsets[:, middle[0] - reach[0] : middle[0] + reach[0] + 1, middle[1] - reach[1] : middle[1] + reach[1] + 1]
    across = min(8, len(part))
    down = -(-len(part) // across)
    figure, axes = plt.subplots(down, across, figsize=(1.35 * across, 1.5 * down), layout="constrained", squeeze=False)
    for head, axis in enumerate(axes.flat):
        if head >= len(part):
            axis.axis("off")
            continue
        extent = (-reach[1] - 0.5, reach[1] + 0.5, reach[0] + 0.5, -reach[0] - 0.5)
        axis.imshow(part[head].sqrt(), cmap="viridis", extent=extent)
        axis.set_title(f"head {head}", fontsize=8, pad=2)
        axis.tick_params(labelsize=6, length=2, pad=1)
    _save(figure, path)


def plot_clusters(path: Path, pictures: Tensor, titles: Sequence[str]) -> None:
    """Draw the mean attention map of each cluster, with queries as rows and keys as columns.

    Args:
        path: PNG file.
        pictures: ``[K, 64, 64]``, whose rows sum to 1.
        titles: one for each cluster.
    """
    plt = _pyplot()
    across = min(4, len(pictures))
    down = -(-len(pictures) // across)
    figure, axes = plt.subplots(down, across, figsize=(2.5 * across, 2.7 * down), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture.sqrt(), cmap="viridis", vmin=0)
        axis.set_title(title, fontsize=9)
    _save(figure, path)


def plot_embedding(path: Path, points: Tensor, centers: Tensor, clusters: Tensor, layers: Tensor) -> None:
    """Plot the embedding of attention maps twice, colored by cluster and by layer.

    Args:
        path: PNG file.
        points: ``[N, 2]``.
        centers: of the clusters, ``[K, 2]``.
        clusters, layers: of each point, int64 ``[N]``.
    """
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharex=True, sharey=True)
    for index in range(len(centers)):
        chosen = points[clusters == index]
        left.scatter(chosen[:, 0], chosen[:, 1], s=5, alpha=0.5, color=plt.get_cmap("tab10")(index % 10))
        left.annotate(str(index), centers[index].tolist(), fontsize=12, fontweight="bold")
    left.set(title="Clusters")
    dots = right.scatter(points[:, 0], points[:, 1], s=5, alpha=0.5, c=layers, cmap="plasma")
    right.set(title="Attention layers")
    figure.colorbar(dots, ax=right, label="attention layer")
    _save(figure, path)


def _pyplot():
    require("matplotlib").use("Agg")
    return require("matplotlib.pyplot")


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    require("matplotlib.pyplot").close(figure)
