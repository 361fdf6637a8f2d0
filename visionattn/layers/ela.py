"""Efficient local attention for convolutional networks: rows and columns of a map are weighted by what is in them.

Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks" (arXiv 2403.01123). There is no
published code; this follows the equations of the paper. timm's `EfficientLocalAttn` is another layer, with an
activation and separate convolutions for the two axes.
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["VARIANTS", "EfficientLocalAttention"]

# kernel size, channels in a group of the convolution (1: depthwise), groups of the norm
VARIANTS = {"T": (5, 1, 32), "B": (7, 1, 16), "S": (5, 8, 16), "L": (7, 8, 16)}


class EfficientLocalAttention(nn.Module):
    """Efficient local attention (ELA): ``[B, C, H, W]`` to the same shape, any size.

    The means of rows, and those of columns, go through one convolution along the axis, group norm and sigmoid; the two
    results weigh the map.

    Args:
        dim: channels.
        variant: ``"T"``, ``"B"``, ``"S"`` or ``"L"``, the paper's sizes.
        kernel_size: of the convolution, odd; None: the variant's.
        conv_groups: of the convolution; None: the variant's.
        gn_groups: of the group norm; None: the variant's, 32 for ``"T"`` and 16 for the others.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument out of its range, groups that do not divide `dim`, or an input that does not fit.
    """

    def __init__(
        self,
        dim: int,
        variant: str = "B",
        kernel_size: int | None = None,
        conv_groups: int | None = None,
        gn_groups: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant={variant!r} must be one of {tuple(VARIANTS)}")
        kernel, channels, norm_groups = VARIANTS[variant]
        kernel_size = kernel if kernel_size is None else kernel_size
        gn_groups = norm_groups if gn_groups is None else gn_groups
        if conv_groups is None:
            if dim % channels:
                raise ValueError(
                    f"dim={dim} must be a multiple of {channels} for variant={variant!r}; or give conv_groups"
                )
            conv_groups = dim // channels
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} must be odd and at least 1")
        for name, groups in (("conv_groups", conv_groups), ("gn_groups", gn_groups)):
            if groups < 1 or dim % groups:
                fits = math.gcd(dim, max(groups, 1))
                raise ValueError(f"{name}={groups} must divide dim={dim}; {name}={fits} does")
        dd = {"device": device, "dtype": dtype}
        self.dim = dim
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=conv_groups, bias=False, **dd)
        self.gn = nn.GroupNorm(gn_groups, dim, **dd)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of rows ``[B, C, H]`` and of columns ``[B, C, W]``, in (0, 1)."""
        if x.dim() != 4 or x.shape[1] != self.dim:
            raise ValueError(f"x must be [B, {self.dim}, H, W], got {tuple(x.shape)}")
        return tuple(self.gn(self.conv(x.mean(axis))).sigmoid() for axis in (3, 2))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        rows, columns = self.weights(x)
        return x * rows[..., None] * columns[:, :, None]
