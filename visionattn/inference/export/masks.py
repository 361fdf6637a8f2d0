"""Paste masks that are given relative to boxes into an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["paste_masks"]


def paste_masks(masks: Tensor, boxes: Tensor, size: Sequence[int], corner: Tensor | None = None) -> Tensor:
    """Resize masks bilinearly to their boxes, in an image that is 0 elsewhere.

    Bilinear interpolation is separable: the result is a product of three matrices for each mask.

    Args:
        masks: probabilities ``[..., h, w]``.
        boxes: x1, y1, x2, y2 in pixels of the image, ``[..., 4]``.
        size: (height, width) of the image, or of a part of it.
        corner: (x, y) of the upper left pixel of that part.

    Returns:
        ``[..., height, width]``.
    """
    height, width = masks.shape[-2:]
    left, top = (0, 0) if corner is None else (corner[0], corner[1])
    rows = _weights(boxes[..., 1], boxes[..., 3], height, size[0], top)
    columns = _weights(boxes[..., 0], boxes[..., 2], width, size[1], left)
    return rows @ masks @ columns.transpose(-1, -2)


def _weights(low: Tensor, high: Tensor, samples: int, length: int, start: int | Tensor) -> Tensor:
    """Return the weight of each sample of a mask for each pixel of an axis, ``[..., length, samples]``."""
    pixel = torch.arange(length, device=low.device, dtype=low.dtype) + start + 0.5
    side = (high - low).clamp(min=1e-6)
    position = (pixel - low[..., None]) / side[..., None] * samples - 0.5
    sample = torch.arange(samples, device=low.device, dtype=low.dtype)
    return (1 - (position[..., None] - sample).abs()).clamp(min=0)
