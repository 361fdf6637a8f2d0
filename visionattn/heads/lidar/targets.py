"""Training targets of the center head: class heatmaps and regression values at the cells of box centers.

CenterPoint (Yin, Zhou, Krähenbühl, CVPR 2021) with the Gaussian radius of CornerNet (Law, Deng, ECCV 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BEVGrid", "CenterTargets", "center_targets", "gaussian_radius"]


@dataclass(frozen=True)
class BEVGrid:
    """Geometry of a bird's-eye-view map.

    Attributes:
        range_min: x and y of the outer corner of the first cell, in meters.
        voxel_size: voxel size along x and y, in meters.
        stride: voxels per cell of the map, along x and y.
    """

    range_min: tuple[float, float]
    voxel_size: tuple[float, float]
    stride: int

    @classmethod
    def of(cls, point_cloud_range: Sequence[float], voxel_size: Sequence[float], stride: int) -> "BEVGrid":
        """Create from a point cloud range (minimum x, y, z, maximum x, y, z) and a voxel size (x, y, z)."""
        x, y = (float(v) for v in point_cloud_range[:2])
        dx, dy = (float(v) for v in voxel_size[:2])
        return cls((x, y), (dx, dy), int(stride))

    def to_cells(self, xy: Tensor) -> Tensor:
        """Convert meters ``[..., 2]`` to cells ``[..., 2]`` (column, row); the first cell spans 0 to 1."""
        return (xy - xy.new_tensor(self.range_min)) / xy.new_tensor(self.voxel_size) / self.stride

    def to_meters(self, cells: Tensor) -> Tensor:
        """Convert cells ``[..., 2]`` (column, row) to meters ``[..., 2]``; the inverse of `to_cells`."""
        return cells * self.stride * cells.new_tensor(self.voxel_size) + cells.new_tensor(self.range_min)


@dataclass
class CenterTargets:
    """Targets of a batch of B samples, padded to M objects per sample.

    Attributes:
        heatmap: float32 ``[B, classes, H, W]``, 1 at the center cells with a Gaussian around each.
        regression: float32 ``[B, M, 8]``, or ``[B, M, 10]`` with velocity: offset of the center within its cell (x, y,
            in cells), z, log of the three sizes, cosine and sine of the heading, velocity (NaN where unknown).
        index: int64 ``[B, M]``, row * W + column of the center cell.
        mask: bool ``[B, M]``, True for objects and False for padding.
        boxes: float32 ``[B, M, 7]``, the ground-truth boxes.
    """

    heatmap: Tensor
    regression: Tensor
    index: Tensor
    mask: Tensor
    boxes: Tensor


def gaussian_radius(length: Tensor, width: Tensor, overlap: float = 0.1) -> Tensor:
    """Radius within which a shifted box keeps the given IoU with its ground truth (CornerNet, section 3.1).

    All three cases divide by 2 instead of twice the leading coefficient, as in CornerNet's code, because published
    models were trained that way.

    Args:
        length, width: box size in cells, any shape.
        overlap: minimum IoU, between 0 and 1.

    Returns:
        Radius in cells, with the shape of ``length``.
    """
    perimeter, area = length + width, length * width
    apart = area * (1 - overlap) / (1 + overlap)
    first = (perimeter + (perimeter.square() - 4 * apart).clamp(min=0).sqrt()) / 2
    inner = 2 * perimeter
    second = (inner + (inner.square() - 16 * (1 - overlap) * area).clamp(min=0).sqrt()) / 2
    outer = -2 * overlap * perimeter
    third = (outer + (outer.square() - 16 * overlap * (overlap - 1) * area).clamp(min=0).sqrt()) / 2
    return torch.minimum(torch.minimum(first, second), third)


@torch.no_grad()
def center_targets(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    size: tuple[int, int],
    grid: BEVGrid,
    velocity: Sequence[Tensor] | None = None,
    with_velocity: bool = False,
    max_objects: int = 500,
    overlap: float = 0.1,
    min_radius: int = 2,
) -> CenterTargets:
    """Build the training targets; the boxes are not modified.

    Args:
        boxes: ground-truth boxes of each sample ``[N, 7]``. Boxes with a size of 0 or less and those after the first
            ``max_objects`` are skipped. Centers outside the map are clamped to its border, so filter by range first.
        labels: labels of each sample, int64 ``[N]``. Labels outside [0, num_classes) are skipped.
        num_classes: number of heatmaps.
        size: rows and columns of the map.
        grid: geometry of the map.
        velocity: velocities of each sample ``[N, 2]``; None means unknown.
        with_velocity: whether the regression targets include the velocity.
        max_objects: number of objects each sample is padded to.
        overlap: see `gaussian_radius`.
        min_radius: minimum Gaussian radius, in cells.

    Raises:
        ValueError: if ``labels`` or ``velocity`` have a different number of samples than ``boxes``.
    """
    if len(labels) != len(boxes):
        raise ValueError(f"`labels` must have as many samples as `boxes` ({len(boxes)}), got {len(labels)}")
    if velocity is not None and len(velocity) != len(boxes):
        raise ValueError(f"`velocity` must have as many samples as `boxes` ({len(boxes)}), got {len(velocity)}")
    rows, columns = size
    device = boxes[0].device if len(boxes) else None
    batch = len(boxes)
    codes = 10 if with_velocity else 8
    targets = CenterTargets(
        torch.zeros(batch, num_classes, rows, columns, device=device),
        torch.zeros(batch, max_objects, codes, device=device),
        torch.zeros(batch, max_objects, dtype=torch.long, device=device),
        torch.zeros(batch, max_objects, dtype=torch.bool, device=device),
        torch.zeros(batch, max_objects, 7, device=device),
    )
    limit = torch.tensor([columns - 0.5, rows - 0.5], device=device)
    for number in range(batch):
        box, label = boxes[number][:max_objects, :7].float(), labels[number][:max_objects].long()
        count = len(box)
        center = torch.minimum(grid.to_cells(box[:, :2]).clamp(min=0), limit)
        cell = center.floor()
        taken = (box[:, 3:6] > 0).all(1) & (label >= 0) & (label < num_classes)
        parts = [center - cell, box[:, 2:3], box[:, 3:6].log(), box[:, 6:7].cos(), box[:, 6:7].sin()]
        if with_velocity:
            known = None if velocity is None else velocity[number][:max_objects]
            parts.append(box.new_full((count, 2), torch.nan) if known is None else known.to(box))
        targets.regression[number, :count] = torch.where(taken[:, None], torch.cat(parts, 1), 0.0)
        targets.index[number, :count] = (cell[:, 1] * columns + cell[:, 0]).long() * taken
        targets.mask[number, :count] = taken
        targets.boxes[number, :count] = torch.where(taken[:, None], box, 0.0)
        in_cells = box[:, 3:5] / box.new_tensor(grid.voxel_size) / grid.stride
        radius = gaussian_radius(in_cells[:, 0], in_cells[:, 1], overlap).int().clamp(min=min_radius)
        _draw(targets.heatmap[number], cell[taken].long(), radius[taken], label[taken])
    return targets


def _draw(heatmap: Tensor, cell: Tensor, radius: Tensor, label: Tensor) -> None:
    """Draw Gaussians around cells ``[N, 2]`` (column, row) into ``[classes, H, W]``; overlaps take the maximum."""
    if len(cell) == 0:
        return
    _, rows, columns = heatmap.shape
    reach = min(int(radius.max()), max(rows, columns))
    steps = torch.arange(-reach, reach + 1, device=heatmap.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    sigma = (2 * radius + 1).double() / 6
    value = torch.exp(-(x * x + y * y) / (2 * sigma.square())[:, None, None])
    row, column = cell[:, 1, None, None] + y, cell[:, 0, None, None] + x
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    inside &= (x.abs() <= radius[:, None, None]) & (y.abs() <= radius[:, None, None])
    place = (label[:, None, None] * rows + row) * columns + column
    heatmap.view(-1).scatter_reduce_(0, place[inside], value[inside].to(heatmap.dtype), "amax")
