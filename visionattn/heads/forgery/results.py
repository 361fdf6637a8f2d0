"""Results of forgery models: heat map, mask and score as files."""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import require
from visionattn.inference.results import Prediction
from visionattn.inference.writing import write_png

__all__ = ["forgery_record", "heat_picture", "write_forgery_maps"]


def heat_picture(heat: np.ndarray) -> np.ndarray:
    """Probabilities ``[H, W]`` as a BGR picture, dark where 0 and bright where 1."""
    cv2 = require("cv2")
    return cv2.applyColorMap(_levels(heat), cv2.COLORMAP_INFERNO)


def _levels(heat: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)


def write_forgery_maps(out: Path, name: str, prediction: Prediction) -> dict[str, str]:
    """Write what a forgery model says of each pixel.

    - ``heat/<name>.png``: the probability that a pixel is forged, in colours.
    - ``maps/<name>.png``: the same as gray levels, 255 for 1.
    - ``masks/<name>.png``: 255 where forged.

    Returns:
        The paths within ``out``, by kind: ``heat``, ``map`` and ``mask``.
    """
    pictures = {
        "heat": heat_picture(prediction.heatmap),
        "map": _levels(prediction.heatmap),
        "mask": (prediction.semantic == 1).astype(np.uint8) * 255,
    }
    written = {}
    for kind, picture in pictures.items():
        folder = {"heat": "heat", "map": "maps", "mask": "masks"}[kind]
        (out / folder).mkdir(exist_ok=True)
        write_png(out / folder / f"{name}.png", picture)
        written[kind] = f"{folder}/{name}.png"
    return written


def forgery_record(prediction: Prediction, threshold: float = 0.5) -> dict[str, Any]:
    """What JSON says of a picture: its score, whether that is above the threshold, and the share that is marked."""
    return {
        "forgery_score": round(float(prediction.forgery_score), 5),
        "forged": bool(prediction.forgery_score > threshold),
        "forged_share": round(float((prediction.semantic == 1).mean()), 5),
    }
