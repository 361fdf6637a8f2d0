"""Draw attention maps, and write an HTML page with them."""

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
"""Longer side of the attention map of one head in pixels."""


def load_backbone(name: str, checkpoint: str | None, pretrained: bool, device: str = "cpu") -> nn.Module:
    """Create a timm model in eval mode.

    Args:
        name: model name.
        checkpoint: weights file as published or as saved by this package; None loads none.
        pretrained: load the pretrained weights of timm.
        device: device of the model.

    Raises:
        ConfigError: `name` is unknown.
        CheckpointError: the checkpoint does not fit the model.
    """
    if not timm.is_model(name.split(".", 1)[0]):
        raise ConfigError(f"`model` {name!r} is not a timm model; timm.list_models() lists the names")
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
    """Read an image and convert it to the input of a model.

    Models with a fixed input size get the image resized to that size; for others the aspect ratio is kept and the sides
    are rounded to multiples of 32.

    Args:
        path: image file.
        model: timm model.
        size: shorter side of the input in pixels; None is the default of the model.

    Returns:
        The image, BGR uint8 ``[H, W, 3]``, and the normalized input, float32 ``[1, 3, h, w]``.
    """
    cv2 = require("cv2")
    image = read_image(path)
    cfg = model.pretrained_cfg or {}
    height, width = cfg.get("input_size", (3, 224, 224))[1:]
    if not (cfg.get("fixed_input_size") or hasattr(model, "pos_embed")):
        scale = (size or min(height, width)) / min(image.shape[:2])
        height, width = (max(32, round(side * scale / 32) * 32) for side in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    values = torch.from_numpy(resized[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(cfg.get(key) or default).view(3, 1, 1) for key, default in
                 (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))))  # fmt: skip
    return image, ((values - mean) / std)[None]


def draw_query(image: np.ndarray, call: AttentionCall, x: float, y: float) -> np.ndarray:
    """Draw the attention weights of one query, heads side by side, with a cross at the query.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        call: an attention call of the image.
        x, y: position of the query in pixels of the image.

    Returns:
        BGR uint8.
    """
    cv2 = require("cv2")
    rows, columns = call.grid
    weights = call.weights(int(y * rows / image.shape[0]), int(x * columns / image.shape[1]))
    scale = CELL / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
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
    """Plot one value per head against the index of the attention layer, with the mean over heads."""
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for layer, heads in enumerate(values):
        axes.plot([layer] * len(heads), heads.tolist(), "o", color="#2b6cb0", alpha=0.6, markersize=4)
    axes.plot(range(len(values)), [float(h.mean()) for h in values], color="#c05621", linewidth=1.2)
    axes.set(xlabel="attention layer", ylabel=label, title=title)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_page(
    out: Path,
    name: str,
    model: nn.Module,
    image: np.ndarray,
    tensor: Tensor,
    queries: Sequence[tuple[float, float]],
    layers: Sequence[int] | None = None,
    prune: bool = False,
) -> int:
    """Write ``index.html`` and its images, and return the number of attention layers.

    Args:
        out: output folder.
        name: model name.
        model: backbone in eval mode.
        image: BGR uint8 ``[H, W, 3]``.
        tensor: the image as input of the model, see `read_input`.
        queries: (x, y) positions in pixels of the image.
        layers: indices of the attention layers to draw; None draws all.
        prune: also compute `head_importance`.

    Raises:
        ConfigError: the model has no attention layer that can be drawn, or an index in `layers` is out of range.
    """
    calls = record_attention(model, tensor)
    if not calls:
        raise ConfigError(f"{name} has no attention over a feature map, so nothing can be drawn")
    chosen = list(range(len(calls))) if layers is None else list(layers)
    wrong = [n for n in chosen if not 0 <= n < len(calls)]
    if wrong:
        raise ConfigError(f"`layers` must be in [0, {len(calls) - 1}] for {name}, got {wrong[0]}")
    out.mkdir(parents=True, exist_ok=True)
    size = (tensor.shape[2], tensor.shape[3])
    parts: list[str] = []

    def section(title: str, text: str, files: Sequence[tuple[str, str]]) -> None:
        figures = "".join(
            f'<figure><img src="data:image/png;base64,{base64.b64encode((out / file).read_bytes()).decode()}" alt="">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for file, caption in files
        )
        parts.append(f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{figures}")

    if getattr(model, "feature_info", None):
        heat = class_relevance(model, tensor).numpy()
        cv2 = require("cv2")
        large = cv2.resize(heat, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
        write_png(out / "relevance.png", paint_heatmap(image, large))
        section(
            "Class activation map",
            "Evidence for the top class: LayerCAM, summed over all levels.",
            [("relevance.png", "")],
        )
    for number, (x, y) in enumerate(queries):
        files = []
        for index in chosen:
            file = f"query{number}_{index:02d}.png"
            write_png(out / file, draw_query(image, calls[index], x, y))
            rows, columns = calls[index].grid
            files.append((file, f"{index}: {calls[index].name}, {calls[index].heads} heads, map {rows} x {columns}"))
        section(f"Query at ({x:g}, {y:g})", "Attention weights of each head, each scaled to its maximum.", files)
    _plot(out / "distance.png", [mean_distance(call, size) for call in calls], "Mean attention distance", "pixels")
    section("Distance", "Mean attention distance of each head, and the mean over heads.", [("distance.png", "")])
    if prune:
        label = "decrease of the top class probability" if getattr(model, "num_classes", 0) else "relative change"
        _plot(out / "importance.png", head_importance(model, tensor), "Each head set to zero", label)
        section("Importance", "Effect of setting the output of one head to zero.", [("importance.png", "")])
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
