"""Ultra-lightweight subspace attention for compact convolutional networks.

Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks" (arXiv
2006.15102). Parameter names are the published ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ULSAM"]


class Subspace(nn.Module):
    """One spatial attention map for a group of channels, ``[B, G, H, W]``; returns the same shape."""

    def __init__(self, dim: int, momentum: float, device=None, dtype=None) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.conv_dws = nn.Conv2d(dim, dim, 1, groups=dim, **dd)
        self.bn_dws = nn.BatchNorm2d(dim, momentum=momentum, **dd)
        self.conv_point = nn.Conv2d(dim, 1, 1, **dd)
        self.bn_point = nn.BatchNorm2d(1, momentum=momentum, **dd)

    def forward(self, x: Tensor) -> Tensor:
        out = F.max_pool2d(F.relu(self.bn_dws(self.conv_dws(x))), 3, 1, 1)
        out = F.relu(self.bn_point(self.conv_point(out)))
        return x + x * out.flatten(2).softmax(2).view(out.shape)


class ULSAM(nn.Module):
    """Ultra-lightweight subspace attention (ULSAM) on ``[B, C, H, W]`` of any size; returns the same shape.

    Args:
        dim: channels.
        num_splits: number of channel groups with separate attention maps; divides `dim`.
        momentum: momentum of the batch norms. With the published 0.9, running statistics are dominated by the last
            batch.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if `num_splits` does not divide `dim` or the input has the wrong shape.
    """

    def __init__(
        self,
        dim: int,
        num_splits: int = 4,
        momentum: float = 0.9,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_splits < 1 or dim % num_splits:
            raise ValueError(f"`num_splits` must be at least 1 and divide `dim`={dim}, got {num_splits}")
        self.dim = dim
        self.num_splits = num_splits
        self.subspaces = nn.ModuleList(Subspace(dim // num_splits, momentum, device, dtype) for _ in range(num_splits))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.dim:
            raise ValueError(f"`x` must have shape [B, {self.dim}, H, W], got {tuple(x.shape)}")
        groups = x.chunk(self.num_splits, 1)
        return torch.cat([subspace(group) for subspace, group in zip(self.subspaces, groups, strict=True)], 1)
