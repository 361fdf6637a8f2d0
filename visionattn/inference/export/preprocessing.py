"""Steps of a test pipeline on the pixels of an image, without OpenMMLab."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visionattn.errors import require

__all__ = ["apply_steps", "pixel_steps"]

ANNOTATIONS = ("Load", "Pack", "FilterAnnotations")
"""Beginnings of the names of steps that load images or annotations, or pack them: they change no pixels."""


def pixel_steps(cfg: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """Return the steps of the test pipeline that change pixels, as JSON values.

    Returns:
        The steps, and the type of the first step that `apply_steps` does not support, or None.
    """
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader") or {}
    dataset = loader.get("dataset") or {}
    while "dataset" in dataset and "pipeline" not in dataset:
        dataset = dataset["dataset"]
    found = []
    for step in dataset.get("pipeline") or cfg.get("test_pipeline") or ():
        kind = str(step.get("type", "")).rpartition(".")[2]
        if kind.startswith(ANNOTATIONS):
            continue
        options = {key: list(v) if isinstance(v, tuple) else v for key, v in step.items() if key != "type"}
        allowed = _STEPS.get(kind)
        if allowed is None or set(options) - allowed or (kind == "AutoContrast" and options.get("prob", 1.0) != 1.0):
            return found, str(step.get("type"))
        found.append({"type": kind, **options})
    return found, None


_STEPS = {"AutoContrast": {"prob"}, "Resize": {"scale", "scale_factor", "keep_ratio"}}


def apply_steps(image: np.ndarray, steps: Sequence[Mapping[str, Any]], scale: float = 1.0) -> np.ndarray:
    """Apply the steps to an image, BGR uint8 ``[H, W, 3]``.

    Args:
        image: the image.
        steps: from `pixel_steps`.
        scale: factor on the size that the steps resize to.
    """
    if scale != 1 and not any(step["type"] == "Resize" for step in steps):
        steps = [{"type": "Resize", "scale_factor": 1.0, "keep_ratio": True}, *steps]
    for step in steps:
        image = _contrast(image) if step["type"] == "AutoContrast" else _resize(image, step, scale)
    return image


def _contrast(image: np.ndarray) -> np.ndarray:
    """Stretch the values of each channel to 0..255."""
    channels = []
    for channel in np.moveaxis(image, 2, 0):
        low, high = int(channel.min()), int(channel.max())
        if low < high:
            factor = 255.0 / (high - low)
            table = (np.arange(256) * factor - low * factor).clip(0, 255)
            channel = table[channel]
        channels.append(channel)
    return np.stack(channels, axis=-1).astype(image.dtype)


def _resize(image: np.ndarray, step: Mapping[str, Any], scale: float) -> np.ndarray:
    height, width = image.shape[:2]
    target = step.get("scale")
    if target is None:
        factor = step["scale_factor"]
        factors = factor if isinstance(factor, (list, tuple)) else (factor, factor)
        target = [side * f for side, f in zip((width, height), factors, strict=True)]
        target = [int(side * scale + 0.5) for side in target]
    else:
        target = [target, target] if isinstance(target, (int, float)) else target
        target = [max(1, round(side * scale)) for side in target]
    if step.get("keep_ratio"):
        factor = min(max(target) / max(height, width), min(target) / min(height, width))
        target = [int(side * factor + 0.5) for side in (width, height)]
    cv2 = require("cv2")
    return cv2.resize(image, (int(target[0]), int(target[1])), interpolation=cv2.INTER_LINEAR)
