"""Overlap and suppression of rotated boxes and convex quadrilaterals, computed in float64.

Boxes that are not finite have an overlap of 0 and are dropped by suppression.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from visionattn.kernels.box_overlap import (
    circles_meet,
    greedy_nms,
    overlap_matrix,
    quadrilateral_area,
    quadrilateral_intersection,
    rotated_intersection,
    valid_boxes,
)

from .common import operator

__all__ = ["box_iou_quadri", "box_iou_rotated", "nms_quadri", "nms_rotated"]

MIN_AREA = 1e-14  # boxes below this area have an overlap of 0, as in compiled mmcv


def _overlap(a: Tensor, b: Tensor, mode: int) -> Tensor:
    """Overlap of pairs of rotated boxes ``[..., 5]`` or quadrilaterals ``[..., 8]``.

    Mode 0 is the IoU, mode 1 the intersection over the area of the first box.
    """
    invalid = ~(valid_boxes(a) & valid_boxes(b))
    if a.shape[-1] == 5:
        area_a, area_b = (boxes[..., 2:4].clamp(min=0).prod(-1) for boxes in (a, b))
        intersection = rotated_intersection(a, b)
    else:
        a, b = a.unflatten(-1, (4, 2)), b.unflatten(-1, (4, 2))
        area_a, area_b = quadrilateral_area(a), quadrilateral_area(b)
        intersection = quadrilateral_intersection(a, b)
    base = area_a + area_b - intersection if mode == 0 else area_a
    empty = invalid | (area_a < MIN_AREA) | (area_b < MIN_AREA)
    return torch.where(empty, 0, intersection / base.masked_fill(empty, 1))


def _circle(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Center ``[N, 2]`` and radius ``[N]`` of a circle around each box."""
    if boxes.shape[-1] == 5:
        return boxes[:, :2], boxes[:, 2:4].norm(dim=-1) / 2
    corners = boxes.view(-1, 4, 2)
    centre = corners.mean(1)
    # Rounding must not separate quadrilaterals that touch.
    return centre, (corners - centre[:, None]).norm(dim=-1).amax(1) * (1 + 1e-9)


def _matrix(a: Tensor, b: Tensor, mode: int) -> Tensor:
    return overlap_matrix(a, b, circles_meet(*_circle(a), *_circle(b)), lambda p, q: _overlap(p, q, mode))


def _write_overlaps(a: Tensor, b: Tensor, ious: Tensor, mode: int, aligned: bool) -> None:
    ious.copy_((_overlap(a, b, mode) if aligned else _matrix(a, b, mode)).view_as(ious))


@operator
def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Write the overlap of rotated boxes to `ious`.

    Args:
        boxes1: ``[N, 5]``, (x, y, width, height, angle), in radians, clockwise with y pointing down.
        boxes2: ``[M, 5]``, or ``[N, 5]`` when aligned.
        ious: ``[N * M]`` or ``[N, M]``; ``[N]`` when aligned.
        mode_flag: 0 for IoU, 1 for intersection over the first box's area.
        aligned: compare row i with row i only.
    """
    _write_overlaps(boxes1.double(), boxes2.double(), ious, mode_flag, aligned)


@operator
def box_iou_quadri(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Like `box_iou_rotated` for convex quadrilaterals ``[N, 8]``, (x1, y1, ..., x4, y4) with the vertices in order."""
    _write_overlaps(boxes1.double(), boxes2.double(), ious, mode_flag, aligned)


def _suppressor(boxes: Tensor, labels: Tensor | None, iou_threshold: float) -> Callable[[Tensor, Tensor], Tensor]:
    def suppresses(better: Tensor, worse: Tensor) -> Tensor:
        over = _matrix(boxes[better], boxes[worse], mode=0) > iou_threshold
        return over if labels is None else over & (labels[better][:, None] == labels[worse])

    return suppresses


@operator
def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Return the indices of the rotated boxes kept by greedy NMS, in descending order of score.

    Args:
        dets: ``[N, 5]``, or ``[N, 6]`` with the label last when `multi_label`; boxes of different labels
            never suppress one another (compiled mmcv respects labels on CUDA only).
        scores: ``[N]``.
        order, dets_sorted, labels: unused; compiled kernels need them precomputed.
        iou_threshold: in [0, 1].
        multi_label: whether `dets` contains labels.
    """
    boxes = dets[:, :5].double()
    return greedy_nms(boxes, scores, _suppressor(boxes, dets[:, 5] if multi_label else None, iou_threshold))


@operator
def nms_quadri(
    dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor, iou_threshold: float, multi_label: bool
) -> Tensor:
    """Like `nms_rotated` for convex quadrilaterals: ``[N, 8]``, or ``[N, 9]`` with the label last."""
    boxes = dets[:, :8].double()
    return greedy_nms(boxes, scores, _suppressor(boxes, dets[:, 8] if multi_label else None, iou_threshold))
