"""Bicubic resizing that gives the values of MATLAB's ``imresize``, with which super-resolution data sets are made.

Cubic kernel with a = -0.5, stretched when shrinking (antialiasing), half-pixel centers and symmetric borders. The
bicubic filters of OpenCV and Pillow differ from it, which costs tenths of a dB in PSNR.
"""

import math
from functools import lru_cache

import numpy as np

__all__ = ["downscale", "imresize", "to_uint8"]


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """Resize an image.

    Args:
        image: ``[H, W]`` or ``[H, W, C]`` of any real dtype.
        scale: factor on both sides; the new sides are rounded up.

    Returns:
        float64 (float32 for float32 images), neither clipped nor rounded.

    Raises:
        ValueError: the scale is not positive.
    """
    if not scale > 0:
        raise ValueError(f"`scale` must be positive, got {scale}")
    image = np.asarray(image, np.float32 if np.asarray(image).dtype == np.float32 else np.float64)
    for axis in (0, 1):
        index, weight = _taps(image.shape[axis], scale)
        rows = np.moveaxis(image, axis, 0)
        shape = (-1,) + (1,) * (image.ndim - 1)
        columns = (w.astype(image.dtype).reshape(shape) * rows[i] for i, w in zip(index, weight, strict=True))
        image = np.moveaxis(sum(columns), 0, axis)
    return np.ascontiguousarray(image)


def downscale(image: np.ndarray, factor: int) -> np.ndarray:
    """Shrink a uint8 image by an integer factor, rounded to uint8 as MATLAB does."""
    return image if factor == 1 else to_uint8(imresize(image, 1 / factor))


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Round values in 0..255 to uint8, halves up; values outside are clipped."""
    return np.floor(np.clip(values, 0, 255) + 0.5).astype(np.uint8)


@lru_cache(maxsize=64)
def _taps(length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions and weights of the input for each output pixel of one axis, both ``[taps, output]``."""
    shrink = min(scale, 1.0)
    width = 4 / shrink
    center = (np.arange(math.ceil(length * scale)) + 0.5) / scale - 0.5
    index = np.floor(center - width / 2).astype(np.int64) + np.arange(math.ceil(width) + 2)[:, None]
    weight = _cubic(shrink * (center - index))
    weight /= weight.sum(0)
    used = weight.any(1)
    index = index[used] % (2 * length)
    return np.where(index < length, index, 2 * length - 1 - index), weight[used]


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
