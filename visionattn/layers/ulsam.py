"""Ultra-lightweight subspace attention for compact convolutional networks.

Saini et al., "ULSAM: Ultra-Lightweight Subspace Attention Module for Compact Convolutional Neural Networks" (arXiv
2006.15102). Parameter names are the published ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ULSAM"]


class Subspace(nn.Module):
    """One attention map over all places for a group of channels, ``[B, G, H, W]`` to the same shape."""

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
    """Ultra-lightweight subspace attention: ``[B, C, H, W]`` to the same shape, any size.

    Args:
        dim: channels.
        num_splits: groups of channels, each with an attention map of its own; divides `dim`.
        momentum: of the batch norms. The published 0.9 means that their running statistics are nearly those of the
            last batch.
        device, dtype: of the parameters.

    Raises:
        ValueError: `num_splits` does not divide `dim`, or an input that does not fit.
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
            raise ValueError(f"num_splits={num_splits} must be at least 1 and divide dim={dim}")
        self.dim = dim
        self.num_splits = num_splits
        self.subspaces = nn.ModuleList(Subspace(dim // num_splits, momentum, device, dtype) for _ in range(num_splits))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same shape."""
        if x.dim() != 4 or x.shape[1] != self.dim:
            raise ValueError(f"x must be [B, {self.dim}, H, W], got {tuple(x.shape)}")
        groups = x.chunk(self.num_splits, 1)
        return torch.cat([subspace(group) for subspace, group in zip(self.subspaces, groups, strict=True)], 1)
