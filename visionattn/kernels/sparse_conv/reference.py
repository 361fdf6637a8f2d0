"""Reference implementation of sparse convolution: a dense convolution with zeros for absent voxels."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dense_conv3d", "scatter_dense"]


def scatter_dense(features: Tensor, coords: Tensor, batch_size: int, spatial_shape: Sequence[int]) -> Tensor:
    """Rows ``[N, C]`` at (batch, z, y, x) to a map ``[B, C, D, H, W]``, zero for absent voxels."""
    dense = features.new_zeros((batch_size, *spatial_shape, features.shape[1]))
    dense = dense.index_put(tuple(coords.unbind(1)), features)
    return dense.permute(0, 4, 1, 2, 3)


def dense_conv3d(
    features: Tensor,
    coords: Tensor,
    batch_size: int,
    spatial_shape: Sequence[int],
    weight: Tensor,
    out_coords: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
) -> Tensor:
    """The rows ``[M, C']`` of a dense convolution at the output voxels.

    ``weight`` is ``[kD, kH, kW, C, C']``, or ``[kD, kH, kW, C]`` with ``groups == C``.
    """
    dense = scatter_dense(features, coords, batch_size, spatial_shape)
    kernel = weight.permute(3, 0, 1, 2)[:, None] if groups > 1 or weight.dim() == 4 else weight.permute(4, 3, 0, 1, 2)
    stride = stride if isinstance(stride, int) else tuple(stride)
    padding = padding if isinstance(padding, int) else tuple(padding)
    out = F.conv3d(dense, kernel, None, stride, padding, groups=features.shape[1] if weight.dim() == 4 else groups)
    batch, z, y, x = out_coords.unbind(1)
    return out.permute(0, 2, 3, 4, 1)[batch, z, y, x] if len(out_coords) else torch.empty(0, out.shape[1])
