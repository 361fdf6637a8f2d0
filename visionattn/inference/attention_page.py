"""Pictures of attention, and one page with all of them."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from visionattn.backbones import load_official
from visionattn.errors import CheckpointError, ConfigError, require
from visionattn.inference.attention import (
    AttentionCall,
    class_relevance,
    head_importance,
    mean_distance,
    record_attention,
)
from visionattn.inference.heatmap import paint_heatmap
from visionattn.inference.writing import write_png
from visionattn.io.images import read_image

__all__ = ["draw_query", "load_backbone", "read_input", "write_page"]

CELL = 160
"""Side of one head's picture."""


def load_backbone(name: str, checkpoint: str | None, pretrained: bool, device: str = "cpu") -> nn.Module:
    """A model of timm's registry with its weights, in eval mode.

    Raises:
        ConfigError: timm does not know the name.
        CheckpointError: the file does not fit.
    """
    if not timm.is_model(name.split(".", 1)[0]):
        raise ConfigError(f"--model {name}: timm knows no such model; timm.list_models() has the names")
    model = timm.create_model(name, pretrained=pretrained)
    if checkpoint is not None:
        from visionattn.engine.compat import checkpoint as checkpoints

        weights = checkpoints.state_dict_of(checkpoints.read(checkpoint))
        try:
            model.load_state_dict(weights)
        except RuntimeError:
            try:
                load_official(model, weights)
            except (TypeError, ValueError, KeyError) as error:
                raise CheckpointError(f"{checkpoint}: does not fit {name} ({error})") from error
    return model.to(device).eval()


def read_input(path: Path, model: nn.Module, size: int | None) -> tuple[np.ndarray, Tensor]:
    """The picture, BGR ``[H, W, 3]`` uint8, and what the model sees of it, ``[1, 3, h, w]``.

    Models of a fixed size see it squeezed; others in its own proportions, with sides that 32 divides.
    """
    cv2 = require("cv2")
    picture = read_image(path)
    cfg = model.pretrained_cfg or {}
    height, width = cfg.get("input_size", (3, 224, 224))[1:]
    if not (cfg.get("fixed_input_size") or hasattr(model, "pos_embed")):
        scale = (size or min(height, width)) / min(picture.shape[:2])
        height, width = (max(32, round(side * scale / 32) * 32) for side in picture.shape[:2])
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    values = torch.from_numpy(resized[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(cfg.get(key) or default).view(3, 1, 1) for key, default in
                 (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))))  # fmt: skip
    return picture, ((values - mean) / std)[None]


def draw_query(picture: np.ndarray, call: AttentionCall, x: float, y: float) -> np.ndarray:
    """The weights of one query, a picture for each head side by side, with a cross at the query."""
    cv2 = require("cv2")
    rows, columns = call.grid
    weights = call.weights(int(y * rows / picture.shape[0]), int(x * columns / picture.shape[1]))
    scale = CELL / max(picture.shape[:2])
    small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    cells = []
    for head in weights.float().cpu().numpy():
        size = (small.shape[1], small.shape[0])
        heat = cv2.resize(head / max(head.max(), 1e-9), size, interpolation=cv2.INTER_NEAREST)
        cell = paint_heatmap(small, heat)
        place = (round(x * scale), round(y * scale))
        cv2.drawMarker(cell, place, (255, 255, 255), cv2.MARKER_CROSS, 11, 3)
        cv2.drawMarker(cell, place, (0, 0, 0), cv2.MARKER_CROSS, 9, 1)
        cells.append(np.pad(cell, ((2, 2), (2, 2), (0, 0)), constant_values=255))
    return np.concatenate(cells, 1)


def _plot(path: Path, values: Sequence[Tensor], title: str, label: str) -> None:
    """A point for each head over the layers."""
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for layer, heads in enumerate(values):
        axes.plot([layer] * len(heads), heads.tolist(), "o", color="#2b6cb0", alpha=0.6, markersize=4)
    axes.plot(range(len(values)), [float(h.mean()) for h in values], color="#c05621", linewidth=1.2)
    axes.set(xlabel="attention, from the input on", ylabel=label, title=title)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_page(
    out: Path,
    name: str,
    model: nn.Module,
    picture: np.ndarray,
    image: Tensor,
    queries: Sequence[tuple[float, float]],
    layers: Sequence[int] | None = None,
    prune: bool = False,
) -> int:
    """Write ``index.html`` and its pictures, and return the number of attentions.

    Raises:
        ConfigError: the model has no attention that can be drawn, or fewer than ``layers`` asks for.
    """
    calls = record_attention(model, image)
    if not calls:
        raise ConfigError(f"{name}: has no attention over a map that could be drawn")
    chosen = list(range(len(calls))) if layers is None else list(layers)
    wrong = [n for n in chosen if not 0 <= n < len(calls)]
    if wrong:
        raise ConfigError(f"--layers {wrong[0]}: {name} has attentions 0 to {len(calls) - 1}")
    out.mkdir(parents=True, exist_ok=True)
    size = (image.shape[2], image.shape[3])
    parts: list[str] = []

    def section(title: str, text: str, files: Sequence[tuple[str, str]]) -> None:
        figures = "".join(
            f'<figure><img src="data:image/png;base64,{base64.b64encode((out / file).read_bytes()).decode()}" alt="">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for file, caption in files
        )
        parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{figures}")

    if getattr(model, "feature_info", None):
        heat = class_relevance(model, image).numpy()
        cv2 = require("cv2")
        large = cv2.resize(heat, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_LINEAR)
        write_png(out / "relevance.png", paint_heatmap(picture, large))
        section(
            "Relevance",
            "Where the picture speaks for the top class: LayerCAM over all levels.",
            [("relevance.png", "")],
        )
    for number, (x, y) in enumerate(queries):
        files = []
        for index in chosen:
            file = f"query{number}_{index:02d}.png"
            write_png(out / file, draw_query(picture, calls[index], x, y))
            rows, columns = calls[index].grid
            files.append((file, f"{index}: {calls[index].name}, {calls[index].heads} heads, map {rows} x {columns}"))
        section(
            f"Query at ({x:g}, {y:g})", "What it attends to, a picture for each head, each in its own scale.", files
        )
    _plot(out / "distance.png", [mean_distance(call, size) for call in calls], "Mean attention distance", "pixels")
    section("Distance", "How far each head looks on average, and the mean of the heads.", [("distance.png", "")])
    if prune:
        label = "fall of the top class" if getattr(model, "num_classes", 0) else "relative change"
        _plot(out / "importance.png", head_importance(model, image), "Each head set to zero", label)
        section("Importance", "What is lost when one head's output is set to zero.", [("importance.png", "")])
    page = _PAGE.replace("TITLE", html.escape(f"Attention of {name}")).replace("BODY", "\n".join(parts))
    (out / "index.html").write_text(page, encoding="utf-8")
    return len(calls)


_PAGE: Any = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>TITLE</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1d1d1f; background: #fafafa; }
figure { margin: 0 0 .8rem; }
img { max-width: 100%; }
figcaption { color: #666; font-size: .85rem; }
</style>
</head>
<body>
<h1>TITLE</h1>
BODY
</body>
</html>
"""
