"""Dynamic voxelization (Zhou et al., MVF, CoRL 2019), which keeps every point in range; on CPU and GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Voxels", "grid_size", "in_range", "voxelize"]


@dataclass(frozen=True)
class Voxels:
    """Points and their voxels.

    Attributes:
        points: ``[P, C]``, the points in range, in input order, samples concatenated.
        coords: int64 ``[V, 4]``, unique (batch, z, y, x) of the occupied voxels, in ascending order.
        point_voxel: int64 ``[P]``, the row of ``coords`` of each point.
        kept: int64 ``[P]``, the row of each point in the concatenated input.
        grid: number of cells along z, y, x.
        batch_size: number of samples.
    """

    points: Tensor
    coords: Tensor
    point_voxel: Tensor
    kept: Tensor
    grid: tuple[int, int, int]
    batch_size: int


def grid_size(point_cloud_range: Sequence[float], voxel_size: Sequence[float]) -> tuple[int, int, int]:
    """Number of cells along x, y, z.

    Args:
        point_cloud_range: minimum x, y, z and maximum x, y, z, in meters.
        voxel_size: voxel size along x, y, z, in meters.

    Raises:
        ValueError: if the range is empty or not a multiple of the voxel size.
    """
    if len(point_cloud_range) != 6 or len(voxel_size) != 3 or not all(size > 0 for size in voxel_size):
        raise ValueError(
            "`point_cloud_range` must be 6 numbers and `voxel_size` 3 numbers above 0, "
            f"got {list(point_cloud_range)} and {list(voxel_size)}"
        )
    low_high = list(point_cloud_range)
    cells = [(high - low) / size for low, high, size in zip(low_high[:3], low_high[3:], voxel_size, strict=True)]
    if not all(round(c) >= 1 and abs(c - round(c)) < 1e-3 for c in cells):
        raise ValueError(
            f"`point_cloud_range` must be a whole number of voxels of `voxel_size` {list(voxel_size)}, "
            f"got {list(point_cloud_range)}, which is {', '.join(f'{c:.4g}' for c in cells)} voxels"
        )
    return round(cells[0]), round(cells[1]), round(cells[2])


def in_range(points: Tensor, point_cloud_range: Sequence[float]) -> Tensor:
    """Mask of the points inside a range, bool ``[N]``; the upper bounds are exclusive.

    Args:
        points: ``[N, C]``, x, y, z first.
        point_cloud_range: minimum x, y, z and maximum x, y, z.
    """
    bounds = torch.tensor(point_cloud_range, dtype=points.dtype, device=points.device)
    xyz = points[:, :3]
    return ((xyz >= bounds[:3]) & (xyz < bounds[3:])).all(1)


def voxelize(
    points: Tensor | Sequence[Tensor], point_cloud_range: Sequence[float], voxel_size: Sequence[float]
) -> Voxels:
    """Assign each point to the voxel ``floor((xyz - minimum) / size)``; points outside the grid are dropped.

    The result is deterministic, with the same order of voxels on every device.

    Args:
        points: points of one sample ``[N, C]`` with x, y, z first, or a list with the points of each sample; N may be
            0.
        point_cloud_range: minimum x, y, z and maximum x, y, z in meters; a multiple of the voxel size.
        voxel_size: voxel size along x, y, z, in meters.

    Raises:
        ValueError: if a shape is wrong or the range is not a multiple of the voxel size.
    """
    samples = [points] if isinstance(points, Tensor) else list(points)
    if not samples:
        raise ValueError("`points` must have at least one sample, got an empty list")
    for sample in samples:
        if sample.ndim != 2 or sample.shape[1] < 3 or not sample.is_floating_point():
            raise ValueError(
                f"`points` must be floating-point [N, C] with C >= 3, got {sample.dtype} {tuple(sample.shape)}"
            )
        if sample.shape[1] != samples[0].shape[1]:
            raise ValueError(
                f"`points` must have the same number of columns in all samples, "
                f"got {samples[0].shape[1]} and {sample.shape[1]}"
            )
    gx, gy, gz = grid_size(point_cloud_range, voxel_size)
    if len(samples) * gx * gy * gz >= 1 << 63:
        raise ValueError(
            f"`voxel_size` gives a grid of {gx} x {gy} x {gz} cells for {len(samples)} samples, too large for int64"
        )
    every = torch.cat(samples)
    low = torch.tensor(point_cloud_range[:3], dtype=every.dtype, device=every.device)
    size = torch.tensor(voxel_size, dtype=every.dtype, device=every.device)
    cells = ((every[:, :3] - low) / size).floor()
    # Compare before the conversion to int64, which is undefined for huge or NaN coordinates.
    limit = torch.tensor([gx, gy, gz], dtype=every.dtype, device=every.device)
    kept = ((cells >= 0) & (cells < limit)).all(1).nonzero().squeeze(1)
    counts = torch.tensor([len(s) for s in samples], device=every.device)
    batch = torch.repeat_interleave(torch.arange(len(samples), device=every.device), counts, output_size=len(every))
    x, y, z = cells[kept].long().unbind(1)
    keys = ((batch[kept] * gz + z) * gy + y) * gx + x
    unique, point_voxel = torch.unique(keys, sorted=True, return_inverse=True)
    plane = torch.div(unique, gx, rounding_mode="floor")
    block = torch.div(plane, gy, rounding_mode="floor")
    sample = torch.div(block, gz, rounding_mode="floor")
    coords = torch.stack([sample, block - sample * gz, plane - block * gy, unique - plane * gx], dim=1)
    return Voxels(every[kept], coords, point_voxel, kept, (gz, gy, gx), len(samples))
