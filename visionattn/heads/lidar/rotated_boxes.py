"""Boxes with a heading: corners, bird's-eye-view and 3D IoU, non-maximum suppression, points in boxes.

A box is ``(x, y, z, dx, dy, dz, heading, ...)`` in meters and radians: the center, the full size along the axes of the
box, and the counter-clockwise angle from the x axis to the longitudinal axis of the box. Columns after the seventh are
ignored. Everything runs on CPU and CUDA and computes in float32 or float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from visionattn.kernels.box_overlap import circles_meet, greedy_nms, overlap_matrix, rotated_intersection

__all__ = [
    "bev_corners",
    "bev_iou",
    "bev_iou_paired",
    "box_corners",
    "iou_3d",
    "iou_3d_paired",
    "points_in_boxes",
    "rotated_nms",
]

BEV = [0, 1, 3, 4, 6]
"""Columns of a box that describe it in bird's-eye view."""

TESTS_AT_ONCE = 1 << 19
"""Number of points times boxes that `points_in_boxes` processes together."""


def bev_corners(boxes: Tensor) -> Tensor:
    """Corners in bird's-eye view, counter-clockwise from the front left: ``[..., 7]`` to ``[..., 4, 2]``."""
    boxes = _checked(boxes, "boxes")
    signs = boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    x, y = (signs * boxes[..., None, 3:5] / 2).unbind(-1)
    cos, sin = boxes[..., 6:7].cos(), boxes[..., 6:7].sin()
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1) + boxes[..., None, :2]


def box_corners(boxes: Tensor) -> Tensor:
    """Corners in 3D, ``[..., 7]`` to ``[..., 8, 3]``: those of `bev_corners` at the bottom, then at the top."""
    boxes = _checked(boxes, "boxes")
    flat = bev_corners(boxes)
    middle, half = boxes[..., 2, None, None], boxes[..., 5, None, None] / 2
    return torch.cat([torch.cat([flat, (middle + s * half).expand_as(flat[..., :1])], -1) for s in (-1, 1)], -2)


def bev_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Pairwise bird's-eye-view intersection over union.

    Args:
        boxes_a: ``[..., N, 7]``.
        boxes_b: ``[..., M, 7]``; leading dimensions broadcast.

    Returns:
        ``[..., N, M]``. A box without area has an IoU of 0 with every box.

    Raises:
        ValueError: fewer than seven columns.
    """
    return _pairwise(boxes_a, boxes_b, bev_iou_paired)


def iou_3d(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Pairwise 3D intersection over union; shapes as in `bev_iou`."""
    return _pairwise(boxes_a, boxes_b, iou_3d_paired)


def bev_iou_paired(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Bird's-eye-view intersection over union of the boxes of each pair: ``[..., 7]`` twice to ``[...]``."""
    boxes_a, boxes_b = _checked(boxes_a, "boxes_a"), _checked(boxes_b, "boxes_b")
    common = rotated_intersection(boxes_a[..., BEV], boxes_b[..., BEV])
    area_a, area_b = (b[..., 3:5].clamp(min=0).prod(-1) for b in (boxes_a, boxes_b))
    return _ratio(common, area_a, area_b)


def iou_3d_paired(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union of the volumes of each pair of boxes: ``[..., 7]`` twice to ``[...]``."""
    boxes_a, boxes_b = _checked(boxes_a, "boxes_a"), _checked(boxes_b, "boxes_b")
    rise = boxes_a[..., 2] - boxes_b[..., 2]
    half_a, half_b = boxes_a[..., 5].clamp(min=0) / 2, boxes_b[..., 5].clamp(min=0) / 2
    overlap = torch.minimum(rise + half_a, half_b) - torch.maximum(rise - half_a, -half_b)
    common = rotated_intersection(boxes_a[..., BEV], boxes_b[..., BEV]) * overlap.clamp(min=0)
    volume_a, volume_b = (b[..., 3:6].clamp(min=0).prod(-1) for b in (boxes_a, boxes_b))
    return _ratio(common, volume_a, volume_b)


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Return which points are inside which boxes, including their faces.

    Args:
        points: ``[N, 3 or more]``: x, y, z, and further columns, which are ignored.
        boxes: ``[M, 7]``.

    Returns:
        bool ``[M, N]``.

    Raises:
        ValueError: too few columns.
    """
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"`points` must have shape [N, 3 or more], got {list(points.shape)}")
    boxes = _checked(boxes, "boxes")
    inside = torch.zeros(len(boxes), len(points), dtype=torch.bool, device=points.device)
    xyz = points[:, :3].to(torch.promote_types(points.dtype, boxes.dtype)).T.contiguous()
    step = max(1, TESTS_AT_ONCE // max(len(points), 1))
    for start in range(0, len(boxes), step):
        part = boxes[start : start + step, :, None]
        x, y, z = (xyz[i] - part[:, i] for i in range(3))
        cos, sin = part[:, 6].cos(), part[:, 6].sin()
        result = (x * cos + y * sin).abs() <= part[:, 3] / 2
        result &= (y * cos - x * sin).abs() <= part[:, 4] / 2
        result &= z.abs() <= part[:, 5] / 2
        inside[start : start + step] = result
    return inside


@torch.no_grad()
def rotated_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float | Tensor,
    labels: Tensor | None = None,
    max_boxes: int | None = None,
) -> Tensor:
    """Exact greedy non-maximum suppression by bird's-eye-view IoU.

    Args:
        boxes: ``[N, 7]``; boxes with NaN or infinity are dropped.
        scores: ``[N]``; equal scores are ordered by index, and boxes with a score of NaN are dropped.
        iou_threshold: a box is removed if its IoU with a kept box is greater: one threshold for all boxes, or a
            tensor ``[classes]`` with one for each class of ``labels``.
        labels: int64 ``[N]``; boxes of different classes never suppress each other. None: all have the same class.
        max_boxes: number of boxes after which to stop.

    Returns:
        Indices of the kept boxes, int64 ``[K]``, in descending order of score.

    Raises:
        ValueError: shapes that do not match, or thresholds for each class without labels.
    """
    boxes = _checked(boxes, "boxes").detach()
    if boxes.ndim != 2 or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"`boxes` and `scores` must have shapes [N, 7] and [N], got {list(boxes.shape)} and {list(scores.shape)}"
        )
    if labels is not None and labels.shape != scores.shape:
        raise ValueError(f"`labels` must have the shape of `scores`, {list(scores.shape)}, got {list(labels.shape)}")
    threshold = torch.as_tensor(iou_threshold, dtype=boxes.dtype, device=boxes.device)
    if threshold.ndim and labels is None:
        raise ValueError("`labels` must be given if `iou_threshold` has one value for each class")

    def suppresses(better: Tensor, worse: Tensor) -> Tensor:
        overlap = bev_iou(boxes[better], boxes[worse])
        if labels is None:
            return overlap > threshold
        limit = threshold[labels[better]][:, None] if threshold.ndim else threshold
        return (overlap > limit) & (labels[better][:, None] == labels[worse])

    return greedy_nms(boxes, scores, suppresses, max_boxes)


def _checked(boxes: Tensor, name: str) -> Tensor:
    if boxes.ndim < 1 or boxes.shape[-1] < 7:
        raise ValueError(f"`{name}` must have shape [..., 7 or more], got {list(boxes.shape)}")
    boxes = boxes[..., :7]
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def _ratio(common: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
    union = size_a + size_b - common
    return torch.where(union > 0, common / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0).clamp(max=1)


def _pairwise(boxes_a: Tensor, boxes_b: Tensor, paired: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    boxes_a, boxes_b = _checked(boxes_a, "boxes_a"), _checked(boxes_b, "boxes_b")
    if boxes_a.ndim < 2 or boxes_b.ndim < 2:
        shapes = f"{list(boxes_a.shape)} and {list(boxes_b.shape)}"
        raise ValueError(f"`boxes_a` and `boxes_b` must have shapes [..., N, 7] and [..., M, 7], got {shapes}")
    shape = torch.broadcast_shapes(boxes_a.shape[:-2], boxes_b.shape[:-2])
    boxes_a = boxes_a.expand(*shape, *boxes_a.shape[-2:])
    boxes_b = boxes_b.expand(*shape, *boxes_b.shape[-2:])
    with torch.no_grad():
        circles = [(boxes[..., :2], boxes[..., 3:5].norm(dim=-1) / 2) for boxes in (boxes_a, boxes_b)]
        near = circles_meet(*circles[0], *circles[1])
    return overlap_matrix(boxes_a, boxes_b, near, paired)
