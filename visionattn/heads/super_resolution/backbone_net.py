"""Super-resolution with any backbone of this package as feature extractor."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.heads.super_resolution.reconstruction import Reconstruction, reflect_to

__all__ = ["BackboneUpscaler"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Normalization of ImageNet, which the backbones expect."""


class BackboneUpscaler(Reconstruction):
    """A pyramid of features as context of convolutions at full resolution.

    Backbones have strides of 4 and more, where fine detail is lost. Therefore the detail comes from convolutions that
    keep the resolution of the input; the levels of the backbone are projected to `dim` channels, enlarged bilinearly to
    the size of the input, and added to them before a sequence of residual blocks.

    Args:
        backbone: maps ``[B, 3, H, W]`` to a list of feature maps, one per stride.
        channels: channels of these maps.
        strides: their strides.
        scale: see `Reconstruction`.
        dim: channels at full resolution.
        depth: number of residual blocks after the fusion.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        scale: int = 2,
        dim: int = 64,
        depth: int = 4,
    ) -> None:
        super().__init__(scale, dim)
        if depth < 1:
            raise ValueError(f"`depth` must be at least 1, got {depth}")
        self.backbone, self.stride = backbone, max(strides)
        self.smallest = self.stride
        self.laterals = nn.ModuleList(nn.Conv2d(count, dim, 1) for count in channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1))
            for _ in range(depth)
        )

    def forward_features(self, image: Tensor) -> Tensor:
        """Return the features before upsampling, ``[B, dim, H, W]``."""
        size = image.shape[2:]
        mean, std = (image.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        rest = [-side % self.stride for side in size]
        levels = self.backbone(F.pad((image - mean) / std, (0, rest[1], 0, rest[0]), mode="replicate"))
        first = x = self.first_conv(image)
        for lateral, level in zip(self.laterals, levels, strict=True):
            padded = [side + more for side, more in zip(size, rest, strict=True)]
            level = F.interpolate(lateral(level), size=padded, mode="bilinear", align_corners=False)
            x = x + level[..., : size[0], : size[1]]
        for block in self.blocks:
            x = x + block(x)
        return x + first

    def forward(self, image: Tensor) -> Tensor:
        """Return the enlarged image ``[B, 3, scale * H, scale * W]``, not clipped, of RGB in [0, 1]."""
        height, width = image.shape[2:]
        image = reflect_to(image, self.smallest)
        return self.enlarge(self.forward_features(image), image)[..., : self.scale * height, : self.scale * width]
