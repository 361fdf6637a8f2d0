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
from visionattn.backbones._download import create_model
from visionattn.errors import CheckpointError, ConfigError, require
from visionattn.inference.attention import (
    AttentionCall,
    class_relevance,
    head_importance,
    mean_distance,
    record_attention,
)
from visionattn.inference.heatmap import color_bar, paint_heatmap
from visionattn.inference.writing import write_png

__all__ = ["RunBackbone", "draw_query", "load_backbone", "load_run", "prepare", "write_page"]

CELL = 260
"""Longer side of the attention map of one head in pixels."""
COLUMNS = 4
"""Maximum number of heads side by side."""
GAP = 8
TITLE = 20
"""Height of the text above the map of a head in pixels."""


def load_backbone(name: str, checkpoint: str | None, pretrained: bool, device: str = "cpu") -> nn.Module:
    """Create a timm model in eval mode.

    Args:
        name: model name.
        checkpoint: weights file as published or as saved by this package; None loads none.
        pretrained: load the pretrained weights of timm.
        device: device of the model.

    Raises:
        ConfigError: `name` is unknown.
        CheckpointError: the checkpoint does not fit the model, or pretrained weights cannot be downloaded.
    """
    if not timm.is_model(name.split(".", 1)[0]):
        raise ConfigError(f"`model` {name!r} is not a timm model; timm.list_models() lists the names")
    model = create_model(name, pretrained)
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


class RunBackbone(nn.Module):
    """The backbone of a trained detector or segmentor, with its feature maps flattened to one vector per image."""

    num_classes = 0

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.num_prefix_tokens = next(
            (m.num_prefix_tokens for m in backbone.modules() if hasattr(m, "num_prefix_tokens")), 0
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of an image ``[B, 3, H, W]`` as ``[B, N]``."""
        found = self.backbone(image)
        return torch.cat([level.flatten(1) for level in (found if isinstance(found, (tuple, list)) else (found,))], 1)


def load_run(
    config: Path, checkpoint: Path, image: np.ndarray, size: int | None, device: str = "cpu"
) -> tuple[RunBackbone, Tensor]:
    """Load the backbone of a trained model and prepare an image as its test pipeline does.

    Args:
        config: config file.
        checkpoint: weights of its model.
        image: BGR uint8 ``[H, W, 3]``.
        size: shorter side of the input in pixels; None is the size that the model is tested at.
        device: device of the model.

    Returns:
        The backbone and its input ``[1, 3, h, w]``.

    Raises:
        ConfigError: the model has no backbone that takes images.
        CheckpointError: the checkpoint does not fit the model.
    """
    from visionattn.engine.model import load_model
    from visionattn.inference.image_job import ImageJob
    from visionattn.inference.job import job_of

    loaded = load_model(config, checkpoint, device)
    backbone = getattr(loaded.model, "backbone", None)
    if not isinstance(backbone, nn.Module) or not issubclass(job_of(type(loaded.model), loaded.cfg), ImageJob):
        raise ConfigError(f"{config}: {type(loaded.model).__name__} has no `backbone` that takes images")
    tensor = loaded.image_tensor(image)
    if size is not None:
        tensor = loaded.image_tensor(image, size / min(tensor.shape[2:]))
    return RunBackbone(backbone), tensor


def prepare(image: np.ndarray, model: nn.Module, size: int | None) -> Tensor:
    """Convert an image to the input of a timm model.

    Models with a fixed input size get the image resized to that size; for others the aspect ratio is kept and the sides
    are rounded to multiples of 32.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        model: timm model.
        size: shorter side of the input in pixels; None is the default of the model.

    Returns:
        The normalized input, float32 ``[1, 3, h, w]``.
    """
    cv2 = require("cv2")
    cfg = model.pretrained_cfg or {}
    height, width = cfg.get("input_size", (3, 224, 224))[1:]
    if not (cfg.get("fixed_input_size") or hasattr(model, "pos_embed")):
        scale = (size or min(height, width)) / min(image.shape[:2])
        height, width = (max(32, round(side * scale / 32) * 32) for side in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    values = torch.from_numpy(resized[:, :, ::-1].copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(cfg.get(key) or default).view(3, 1, 1) for key, default in
                 (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))))  # fmt: skip
    return ((values - mean) / std)[None]


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
    classifier: bool = True,
) -> int:
    """Write ``index.html`` and its images, and return the number of attention layers.

    Args:
        out: output folder.
        name: model name.
        model: backbone in eval mode.
        image: BGR uint8 ``[H, W, 3]``.
        tensor: the image as input of the model, see `prepare`.
        queries: (x, y) positions in pixels of the image.
        layers: indices of the attention layers to draw; None draws all.
        prune: also compute `head_importance`.
        classifier: the model has a trained classifier, whose class activation map is drawn.

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

    if classifier and getattr(model, "num_classes", 0) and getattr(model, "feature_info", None):
        heat = class_relevance(model, tensor).numpy()
        cv2 = require("cv2")
        large = cv2.resize(heat, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
        write_png(out / "relevance.png", paint_heatmap(image, large))
        with torch.no_grad():
            top = int(model(tensor)[0].argmax())
        section(
            "Class activation map",
            f"Evidence for the top class (index {top}): LayerCAM, summed over all levels.",
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
