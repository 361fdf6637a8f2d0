"""Overlays of heat maps."""

import numpy as np

from visionattn.errors import require

__all__ = ["color_bar", "paint_heatmap", "paint_signed"]

OPACITY = 0.4
"""Opacity where the heat map is 1; it is 0 where the heat map is 0."""


def paint_heatmap(image: np.ndarray, heatmap: np.ndarray, opacity: float | None = None) -> np.ndarray:
    """Return a copy of an image with a heat map painted over it.

    The brightness of the colors follows the image in part, so that the object below remains visible.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        heatmap: ``[H, W]`` in [0, 1].
        opacity: opacity where the heat map is 1; None is `OPACITY`.
    """
    cv2 = require("cv2")
    values = np.clip(heatmap, 0, 1)
    colors = cv2.applyColorMap(np.round(values * 255).astype(np.uint8), cv2.COLORMAP_TURBO)
    share = ((OPACITY if opacity is None else opacity) * np.sqrt(values))[..., None].astype(np.float32)
    paint = colors * (0.7 + 0.3 * image.mean(axis=2, keepdims=True, dtype=np.float32) / 128)
    return (image * (1 - share) + paint * share + 0.5).clip(0, 255).astype(np.uint8)


def color_bar(width: int, height: int = 12) -> np.ndarray:
    """Return the colors of heat maps from 0 (left) to 1 (right), BGR uint8 ``[height, width, 3]``."""
    cv2 = require("cv2")
    values = np.round(np.linspace(0, 255, width)).astype(np.uint8)
    return cv2.applyColorMap(np.tile(values, (height, 1)), cv2.COLORMAP_TURBO)


def paint_signed(image: np.ndarray, values: np.ndarray, clip: float = 99.5) -> np.ndarray:
    """Return a gray copy of an image with signed values painted over it, red if positive and blue if negative.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        values: ``[H, W]``; 0 is transparent.
        clip: percentile of the absolute values that has the full color, so that single large values do not hide the
            others.
    """
    absolute = np.abs(values)
    scale = np.percentile(absolute, clip) or absolute.max() or 1.0
    share = np.clip(absolute / scale, 0, 1)[..., None].astype(np.float32)
    gray = 110 + 0.5 * image.mean(axis=2, keepdims=True, dtype=np.float32)
    color = np.where(values[..., None] > 0, np.float32((30, 20, 215)), np.float32((215, 60, 20)))
    return (gray * (1 - share) + color * share + 0.5).clip(0, 255).astype(np.uint8)
