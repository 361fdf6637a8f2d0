"""Heat maps: painted over a picture, and as files that keep their values."""

import numpy as np

from visionattn.errors import require

__all__ = ["heatmap_to_png", "paint_heatmap"]

OPACITY = 0.55  # where the map is 1; nothing is painted where it is 0


def paint_heatmap(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """A copy of a picture with a heat map over it.

    Args:
        image: BGR uint8 ``[H, W, 3]``.
        heatmap: ``[H, W]`` in 0..1.
    """
    cv2 = require("cv2")
    values = np.clip(heatmap, 0, 1)
    colors = cv2.applyColorMap(np.round(values * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = OPACITY * np.sqrt(values)[..., None]
    return (image * (1 - opacity) + colors * opacity + 0.5).astype(np.uint8)


def heatmap_to_png(heatmap: np.ndarray) -> np.ndarray:
    """A heat map ``[H, W]`` in 0..1 as a gray picture of 16 bits; 65535 is 1."""
    return np.round(np.clip(heatmap, 0, 1) * 65535).astype(np.uint16)
