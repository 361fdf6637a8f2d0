"""Efficient local attention (ELA) for convolutional networks.

Xu and Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks" (arXiv 2403.01123). There is no
published code; this implementation follows the equations of the paper. timm's `EfficientLocalAttn` is a different
layer, with an activation and separate convolutions for the two axes.
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["VARIANTS", "EfficientLocalAttention"]

# kernel size, channels per group of the convolution (1: depthwise), groups of the norm
VARIANTS = {"T": (5, 1, 32), "B": (7, 1, 16), "S": (5, 8, 16), "L": (7, 8, 16)}


class EfficientLocalAttention(nn.Module):
    """Efficient local attention on ``[B, C, H, W]`` of any size; returns the same shape.

    The means of rows and of columns pass through a shared 1D convolution, group norm and sigmoid. The input is
    multiplied by both results.

    Args:
        dim: channels.
        variant: variant of the paper: ``"T"``, ``"B"``, ``"S"`` or ``"L"``.
        kernel_size: kernel size of the convolution, odd; None for that of the variant.
        conv_groups: groups of the convolution; None for those of the variant.
        gn_groups: groups of the group norm; None for those of the variant, 32 for ``"T"`` and 16 otherwise.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range, groups do not divide `dim`, or the input has the wrong shape.
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
            raise ValueError(f"`variant` must be one of {tuple(VARIANTS)}, got {variant!r}")
        kernel, channels, norm_groups = VARIANTS[variant]
        kernel_size = kernel if kernel_size is None else kernel_size
        gn_groups = norm_groups if gn_groups is None else gn_groups
        if conv_groups is None:
            if dim % channels:
                raise ValueError(
                    f"`dim` must be a multiple of {channels} for `variant`={variant!r} without `conv_groups`, got {dim}"
                )
            conv_groups = dim // channels
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd and at least 1, got {kernel_size}")
        for name, groups in (("conv_groups", conv_groups), ("gn_groups", gn_groups)):
            if groups < 1 or dim % groups:
                fits = math.gcd(dim, max(groups, 1))
                raise ValueError(f"`{name}` must divide `dim`={dim}, such as {fits}, got {groups}")
        dd = {"device": device, "dtype": dtype}
        self.dim = dim
        self.conv = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=conv_groups, bias=False, **dd)
        self.gn = nn.GroupNorm(gn_groups, dim, **dd)

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of rows ``[B, C, H]`` and columns ``[B, C, W]``, in (0, 1)."""
        if x.dim() != 4 or x.shape[1] != self.dim:
            raise ValueError(f"`x` must have shape [B, {self.dim}, H, W], got {tuple(x.shape)}")
        return tuple(self.gn(self.conv(x.mean(axis))).sigmoid() for axis in (3, 2))

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = self.weights(x)
        return x * rows[..., None] * columns[:, :, None]
