"""Dynamic voxel feature encoder (Zhou et al., MVF, CoRL 2019)."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from visionattn.layers.sparse_conv import RowNorm

__all__ = ["VoxelEncoder"]


class VoxelPoints(Protocol):
    """The attributes of `visionattn.heads.lidar.data.voxelize.Voxels` that the encoder uses."""

    points: Tensor
    coords: Tensor
    point_voxel: Tensor


class _PointLayer(nn.Module):
    """Linear layer, norm and ReLU for each point, followed by max pooling over each voxel."""

    def __init__(self, in_channels: int, out_channels: int, device: torch.device | None, dtype: torch.dtype | None):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False, device=device, dtype=dtype)
        self.norm = RowNorm(out_channels, device=device, dtype=dtype)

    def forward(self, x: Tensor, voxel: Tensor, count: int) -> tuple[Tensor, Tensor]:
        x = self.norm(self.linear(x)).relu()
        index = voxel[:, None].expand(-1, x.shape[1])
        # zero is a valid initial maximum, since values after a ReLU are not negative
        return x, x.new_zeros(count, x.shape[1]).scatter_reduce(0, index, x, "amax", include_self=True)


class VoxelEncoder(nn.Module):
    """Encode the points of each voxel with two point layers.

    Each point is extended by its offsets from the mean of its voxel's points and from the voxel center. Parameter
    names match OpenPCDet: ``pfn_layers.{0,1}.{linear.weight,norm.*}``.

    Args:
        in_channels: number of point columns, x, y, z first.
        channels: number of voxel features, even; the hidden layer has half as many.
        point_cloud_range: minimum x, y, z and maximum x, y, z, in meters.
        voxel_size: voxel size along x, y, z, in meters.
        device: device of the parameters.
        dtype: data type of the parameters.

    Raises:
        ValueError: if ``in_channels`` or ``channels`` is out of range.
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
            raise ValueError(
                f"`in_channels` must be at least 3 and `channels` even and at least 2, got {in_channels} and {channels}"
            )
        self.in_channels, self.out_channels = in_channels, channels
        self.pfn_layers = nn.ModuleList(
            [
                _PointLayer(in_channels + 6, channels // 2, device, dtype),
                _PointLayer(channels, channels, device, dtype),
            ]
        )
        low, size = (torch.tensor([float(v) for v in values[:3]]) for values in (point_cloud_range, voxel_size))
        self.register_buffer("voxel_size", size.to(device), persistent=False)
        self.register_buffer("first_center", (low + size / 2).to(device), persistent=False)

    def forward(self, voxels: VoxelPoints) -> Tensor:
        """Encode voxels.

        Args:
            voxels: P points ``[P, in_channels]`` in V voxels.

        Returns:
            Features ``[V, channels]``.

        Raises:
            ValueError: if the points do not have ``in_channels`` columns.
        """
        points, index, count = voxels.points, voxels.point_voxel, len(voxels.coords)
        if points.shape[1] != self.in_channels:
            raise ValueError(f"`voxels.points` must have {self.in_channels} columns, got {points.shape[1]}")
        xyz = points[:, :3]
        number = torch.bincount(index, minlength=count).clamp(min=1)[:, None]
        mean = xyz.new_zeros(count, 3).index_add(0, index, xyz) / number
        cell = voxels.coords[:, [3, 2, 1]].to(xyz.dtype)  # x, y, z
        center = cell * self.voxel_size + self.first_center
        x = torch.cat([points, xyz - mean[index], xyz - center[index]], 1)
        x, pooled = self.pfn_layers[0](x, index, count)
        _, pooled = self.pfn_layers[1](torch.cat([x, pooled[index]], 1), index, count)
        return pooled
