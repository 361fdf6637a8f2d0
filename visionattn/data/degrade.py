"""Image degradations for robustness tests: JPEG compression, blur, noise and resizing, each at several levels.

Blur, noise and JPEG are those of IMDLBenCo's protocol (Ma et al., NeurIPS 2024).
"""

import numpy as np

from visionattn.errors import require
from visionattn.io.images import jpeg_round_trip

__all__ = ["DEGRADATION_LEVELS", "degrade"]

DEGRADATION_LEVELS: dict[str, tuple[float, ...]] = {
    "jpeg": (100, 90, 80, 70, 60, 50),
    "blur": (3, 7, 11, 15, 19, 23),
    "noise": (3, 7, 11, 15, 19, 23),
    "resize": (0.9, 0.75, 0.5, 0.25),
}
"""JPEG quality; width of the Gaussian kernel in pixels; variance of Gaussian noise in squared gray levels; scale."""


def degrade(image: np.ndarray, kind: str, level: float, seed: int = 0) -> np.ndarray:
    """Return a degraded copy of an image with the same size.

    Args:
        image: ``[H, W, 3]`` uint8.
        kind: type of degradation, a key of `DEGRADATION_LEVELS`.
        level: strength, with the meaning in `DEGRADATION_LEVELS`; ``"blur"`` derives the sigma from the kernel
            width, ``"resize"`` resizes to this scale and back.
        seed: seed of the noise.

    Raises:
        ValueError: an unknown kind or an invalid level.
    """
    cv2 = require("cv2")
    if kind == "jpeg" and 1 <= level <= 100:
        return jpeg_round_trip(image, int(level))
    if kind == "blur" and level >= 1 and int(level) % 2:
        return cv2.GaussianBlur(image, (int(level), int(level)), 0)
    if kind == "noise" and level >= 0:
        noise = np.random.default_rng(seed).normal(0, level**0.5, image.shape)
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    if kind == "resize" and 0 < level <= 1:
        height, width = image.shape[:2]
        size = (max(1, round(width * level)), max(1, round(height * level)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    raise ValueError(
        f"`kind` must be one of {sorted(DEGRADATION_LEVELS)} with a valid `level`, got kind={kind!r}, level={level}"
    )
