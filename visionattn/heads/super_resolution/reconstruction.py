"""The last layers of super-resolution networks: from features at the size of the input to an enlarged image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SCALES", "Reconstruction", "reflect_to"]

SCALES = (1, 2, 3, 4)
SLOPE = 0.1
"""Slope of the leaky ReLU for negative values."""


class Reconstruction(nn.Module):
    """Base class of the networks: upsampling by sub-pixel convolution, added to the bilinearly enlarged image.

    Args:
        scale: 1, 2, 3 or 4. Factor 4 is two steps of 2; 1 keeps the size, for restoration without enlargement.
        dim: channels of the features.

    Raises:
        ValueError: ``scale`` is not supported.
    """

    def __init__(self, scale: int, dim: int) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"`scale` must be one of {', '.join(map(str, SCALES))}, got {scale!r}")
        self.scale, self.dim = scale, dim
        self.first_conv = nn.Conv2d(3, dim, 3, padding=1)
        if scale == 4:
            self.upconv1, self.upconv2 = (nn.Conv2d(dim, 4 * dim, 3, padding=1) for _ in range(2))
        elif scale > 1:
            self.upconv = nn.Conv2d(dim, dim * scale**2, 3, padding=1)
        self.last_conv = nn.Conv2d(dim, 3, 3, padding=1)

    def enlarge(self, features: Tensor, image: Tensor) -> Tensor:
        """Return the enlarged image.

        Args:
            features: ``[B, dim, H, W]``.
            image: the input, ``[B, 3, H, W]``.

        Returns:
            ``[B, 3, scale * H, scale * W]``, not clipped.
        """
        if self.scale == 1:
            return self.last_conv(features) + image
        for conv in (self.upconv1, self.upconv2) if self.scale == 4 else (self.upconv,):
            step = 2 if self.scale == 4 else self.scale
            features = F.leaky_relu(F.pixel_shuffle(conv(features), step), SLOPE)
        base = F.interpolate(image, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        return self.last_conv(features) + base


def reflect_to(image: Tensor, size: int) -> Tensor:
    """Extend an image at the bottom and right by reflection until both sides have at least ``size`` pixels.

    The border pixel is not repeated, except in images of one pixel. The reflection is repeated if necessary.

    Args:
        image: ``[B, C, H, W]``.
        size: minimum height and width.
    """
    for axis in (2, 3):
        length = image.shape[axis]
        if length < size:
            period = max(2 * (length - 1), 1)
            index = torch.arange(size, device=image.device) % period
            image = image.index_select(axis, torch.where(index < length, index, period - index))
    return image
