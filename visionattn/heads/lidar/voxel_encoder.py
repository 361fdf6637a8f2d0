"""Points of a voxel to its features: the dynamic voxel feature encoder (Zhou et al., MVF, CoRL 2019)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from visionattn.layers.sparse_conv import RowNorm

__all__ = ["VoxelEncoder"]


class VoxelPoints(Protocol):
    """What the encoder needs of `visionattn.heads.lidar.data.voxelize.Voxels`."""

    points: Tensor
    coords: Tensor
    point_voxel: Tensor


class _PointLayer(nn.Module):
    """Linear, norm, ReLU for each point, and the maximum over its voxel."""

    def __init__(self, in_channels: int, out_channels: int, device: torch.device | None, dtype: torch.dtype | None):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False, device=device, dtype=dtype)
        self.norm = RowNorm(out_channels, device=device, dtype=dtype)

    def forward(self, x: Tensor, voxel: Tensor, count: int) -> tuple[Tensor, Tensor]:
        x = self.norm(self.linear(x)).relu()
        index = voxel[:, None].expand(-1, x.shape[1])
        # after a ReLU nothing is below zero, with which each voxel begins
        return x, x.new_zeros(count, x.shape[1]).scatter_reduce(0, index, x, "amax", include_self=True)


class VoxelEncoder(nn.Module):
    """Each point with its distance to the mean of its voxel and to the voxel's centre, twice through a point layer.

    Args:
        in_channels: columns of a point, x, y, z first.
        channels: of the voxels; half of it inside.
        point_cloud_range: least x, y, z, then most, in metres.
        voxel_size: along x, y, z in metres.

    Parameter names: OpenPCDet's, ``pfn_layers.{0,1}.{linear.weight,norm.*}``.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 64,
        *,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if in_channels < 3 or channels < 2 or channels % 2:
            raise ValueError(f"in_channels={in_channels} must be 3 or more, channels={channels} even")
        self.in_channels, self.out_channels = in_channels, channels
        self.pfn_layers = nn.ModuleList(
            [
                _PointLayer(in_channels + 6, channels // 2, device, dtype),
                _PointLayer(channels, channels, device, dtype),
            ]
        )
        low, size = (torch.tensor([float(v) for v in values[:3]]) for values in (point_cloud_range, voxel_size))
        self.register_buffer("voxel_size", size.to(device), persistent=False)
        self.register_buffer("first_centre", (low + size / 2).to(device), persistent=False)

    def forward(self, voxels: VoxelPoints) -> Tensor:
        """Voxels of points ``[P, in_channels]`` to features ``[V, channels]``.

        Raises:
            ValueError: the points have another number of columns.
        """
        points, index, count = voxels.points, voxels.point_voxel, len(voxels.coords)
        if points.shape[1] != self.in_channels:
            raise ValueError(f"points have {points.shape[1]} columns; this encoder takes {self.in_channels}")
        xyz = points[:, :3]
        number = torch.bincount(index, minlength=count).clamp(min=1)[:, None]
        mean = xyz.new_zeros(count, 3).index_add(0, index, xyz) / number
        cell = voxels.coords[:, [3, 2, 1]].to(xyz.dtype)  # x, y, z
        centre = cell * self.voxel_size + self.first_centre
        x = torch.cat([points, xyz - mean[index], xyz - centre[index]], 1)
        x, pooled = self.pfn_layers[0](x, index, count)
        _, pooled = self.pfn_layers[1](torch.cat([x, pooled[index]], 1), index, count)
        return pooled
