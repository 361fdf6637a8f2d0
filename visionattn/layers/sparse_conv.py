"""Sparse tensors of voxels and convolutions on them, with the parameter layout of spconv and ScatterFormer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.kernels.sparse_conv import Neighbors, sparse_conv3d, sparse_depthwise_conv3d

__all__ = ["RowNorm", "SparseConv3d", "SparseTensor", "SubMConv3d", "SubMDepthwiseConv3d"]


@dataclass(frozen=True)
class SparseTensor:
    """Voxels with features.

    Attributes:
        features: ``[N, C]``.
        coords: int64 ``[N, 4]``, unique (batch, z, y, x), in any order.
        spatial_shape: grid size (D, H, W).
        batch_size: number of samples, including those without voxels.
        tables: cache of neighbor tables by kernel size, shared by all tensors with these coordinates.
    """

    features: Tensor
    coords: Tensor
    spatial_shape: tuple[int, int, int]
    batch_size: int
    tables: dict[tuple[int, ...], Neighbors] = field(default_factory=dict, repr=False, compare=False)

    def with_features(self, features: Tensor) -> "SparseTensor":
        """Return the same voxels with other features."""
        return replace(self, features=features)

    def ordered(self, rows: Tensor) -> "SparseTensor":
        """Return the voxels in the order `rows`."""
        return replace(self, features=self.features[rows], coords=self.coords[rows], tables={})

    def neighbors(self, kernel_size: tuple[int, int, int]) -> Neighbors:
        """Return the neighbor table of a submanifold convolution, which is cached."""
        if kernel_size not in self.tables:
            self.tables[kernel_size] = Neighbors.submanifold(self.coords, self.spatial_shape, kernel_size)
        return self.tables[kernel_size]

    def dense(self) -> Tensor:
        """Return a dense tensor ``[B, C, D, H, W]``, zero where there is no voxel."""
        depth, height, width = self.spatial_shape
        out = self.features.new_zeros(self.batch_size, depth, height, width, self.features.shape[1])
        return out.index_put(tuple(self.coords.unbind(1)), self.features).permute(0, 4, 1, 2, 3)


@register_notrace_module  # data-dependent shapes
class RowNorm(nn.BatchNorm1d):
    """Batch norm over the voxels of a batch, with ScatterFormer's epsilon of 1e-3 and momentum of 0.01.

    For fewer than two voxels, the running statistics are used in training, too.
    """

    def __init__(self, num_features: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(num_features, eps=1e-3, momentum=0.01, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``[N, C]``."""
        if self.training and x.shape[0] < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def _triple(value: int | Sequence[int]) -> tuple[int, int, int]:
    return (value,) * 3 if isinstance(value, int) else tuple(value)  # type: ignore[return-value]


class _SparseConv(nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        bias: bool,
        device: torch.device | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.kernel_size = _triple(kernel_size)
        shape = (out_channels, *self.kernel_size, in_channels)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize like PyTorch's convolutions: uniform, scaled by the fan-in."""
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[4]}, {self.weight.shape[0]}, kernel_size={self.kernel_size}"


@register_notrace_module  # data-dependent shapes
class SubMConv3d(_SparseConv):
    """Submanifold convolution: the output voxels are the input voxels; stride 1, odd kernel size.

    Args:
        in_channels, out_channels: input and output channels.
        kernel_size: one value, or one for each of z, y, x.
        bias: add a bias.

    Parameters: ``weight [out, kD, kH, kW, in]``, ``bias [out]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias, device, dtype)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve the features of the voxels."""
        table = x.neighbors(self.kernel_size)
        return x.with_features(sparse_conv3d(x.features, self.weight, table, self.bias))


@register_notrace_module  # data-dependent shapes
class SparseConv3d(_SparseConv):
    """Strided sparse convolution, with an output voxel wherever the kernel covers an input voxel.

    Output voxels are sorted by (batch, z, y, x).

    Args:
        in_channels, out_channels: input and output channels.
        kernel_size, stride, padding: one value, or one for each of z, y, x.
        bias: add a bias to the output voxels.

    Parameters: ``weight [out, kD, kH, kW, in]``, ``bias [out]``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 2,
        padding: int | Sequence[int] = 1,
        bias: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias, device, dtype)
        self.stride, self.padding = _triple(stride), _triple(padding)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve voxels to those of the coarser grid."""
        table = Neighbors.strided(x.coords, x.spatial_shape, self.kernel_size, self.stride, self.padding)
        features = sparse_conv3d(x.features, self.weight, table, self.bias)
        return SparseTensor(features, table.coords, table.spatial_shape, x.batch_size)


class SubMDepthwiseConv3d(nn.Module):
    """Depthwise submanifold convolution without bias.

    Args:
        channels: channels.
        kernel_size: one value, or one for each of z, y, x, such as ``(1, 1, 13)``.

    Parameters: ``weight [kD, kH, kW, channels]``, initialized with a standard normal distribution as published.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = _triple(kernel_size)
        self.weight = nn.Parameter(torch.randn(*self.kernel_size, channels, device=device, dtype=dtype))

    def forward(self, features: Tensor, of: Callable[[tuple[int, int, int]], Neighbors]) -> Tensor:
        """Convolve features ``[N, channels]``; `of` returns the neighbor table of a kernel size."""
        return sparse_depthwise_conv3d(features, self.weight, of(self.kernel_size))
