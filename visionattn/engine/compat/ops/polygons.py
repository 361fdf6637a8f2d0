"""Overlap and suppression of rotated boxes and convex quadrilaterals.

The intersection of two convex quadrilaterals is the hull of at most 24 points: the crossings of their edges
and the corners of each that lie in the other. Everything is computed in float64, and points within `EPS` of
an edge count as on it, so that shared edges and corners are found.
"""

import numpy as np
import torch
from torch import Tensor

from .common import operator

__all__ = ["box_iou_quadri", "box_iou_rotated", "nms_quadri", "nms_rotated"]

EPS = 1e-9  # relative to the lengths involved
MIN_AREA = 1e-14  # a smaller box overlaps nothing, as in compiled mmcv
PAIRS = 1 << 16  # intersected at once: about 100 MiB of temporaries


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _shoelace(points: Tensor) -> Tensor:
    """Signed area of polygons ``[..., V, 2]``."""
    return _cross(points, points.roll(-1, -2)).sum(-1) / 2


def _rotated_corners(boxes: Tensor) -> Tensor:
    """``[N, 5]`` (x, y, width, height, radians, clockwise as seen with y down) to corners ``[N, 4, 2]``."""
    centre, half, angle = boxes[:, :2], boxes[:, 2:4] / 2, boxes[:, 4]
    along = torch.stack((angle.cos(), angle.sin()), -1) * half[:, :1]
    across = torch.stack((-angle.sin(), angle.cos()), -1) * half[:, 1:]
    return torch.stack((-along - across, along - across, along + across, -along + across), 1) + centre[:, None]


def _corners_in(points: Tensor, quad: Tensor) -> Tensor:
    """Which of ``points [P, 4, 2]`` lie in counter-clockwise ``quad [P, 4, 2]``, edges included."""
    edges = quad.roll(-1, 1) - quad
    side = _cross(edges[:, None], points[:, :, None] - quad[:, None])
    reach = edges.norm(dim=-1).amax(1)[:, None, None]
    return (side >= -EPS * reach * edges.norm(dim=-1)[:, None]).all(-1)


def _intersection_area(a: Tensor, b: Tensor) -> Tensor:
    """Area common to convex quadrilaterals ``a, b [P, 4, 2]``, float64, in either orientation."""
    centre = torch.cat((a, b), 1).mean(1, keepdim=True)
    a, b = a - centre, b - centre
    a = torch.where((_shoelace(a) < 0)[:, None, None], a.flip(1), a)
    b = torch.where((_shoelace(b) < 0)[:, None, None], b.flip(1), b)
    edge_a, edge_b = (a.roll(-1, 1) - a)[:, :, None], (b.roll(-1, 1) - b)[:, None]
    between = b[:, None] - a[:, :, None]
    denominator = _cross(edge_a, edge_b)
    parallel = denominator.abs() <= EPS * edge_a.norm(dim=-1) * edge_b.norm(dim=-1)
    denominator = denominator.masked_fill(parallel, 1)
    t, u = _cross(between, edge_b) / denominator, _cross(between, edge_a) / denominator
    crosses = ~parallel & (t >= -EPS) & (t <= 1 + EPS) & (u >= -EPS) & (u <= 1 + EPS)
    points = torch.cat(((a[:, :, None] + t[..., None] * edge_a).flatten(1, 2), a, b), 1)
    valid = torch.cat((crosses.flatten(1), _corners_in(a, b), _corners_in(b, a)), 1)

    number = valid.sum(1, keepdim=True)
    points = points - (points * valid[..., None]).sum(1, keepdim=True) / number.clamp(min=1)[..., None]
    angle = torch.atan2(points[..., 1], points[..., 0]).masked_fill(~valid, torch.inf)
    angle, order = angle.sort(1)
    points = points.gather(1, order[..., None].expand_as(points))
    points = torch.where(angle.isfinite()[..., None], points, points[:, :1])  # adds nothing to the area
    return _shoelace(points).abs() * (number.squeeze(1) > 2)


def _pair_overlaps(a: Tensor, b: Tensor, i: Tensor, j: Tensor, mode: int) -> Tensor:
    """Overlap of the pairs ``a[i], b[j]`` of quadrilaterals: IoU (mode 0) or over the first's area (1)."""
    area_a, area_b = _shoelace(a).abs(), _shoelace(b).abs()
    pieces = [_intersection_area(a[i_], b[j_]) for i_, j_ in zip(i.split(PAIRS), j.split(PAIRS), strict=True)]
    intersection = torch.cat(pieces) if pieces else area_a.new_zeros(0)
    base = area_a[i] + area_b[j] - intersection if mode == 0 else area_a[i]
    empty = (area_a[i] < MIN_AREA) | (area_b[j] < MIN_AREA)
    return torch.where(empty, 0, intersection / base.masked_fill(empty, 1))


def _touching(a: Tensor, b: Tensor) -> Tensor:
    """Whether the upright bounds of quadrilaterals meet, ``[N, M]``: spares most of the intersections."""
    (low_a, high_a), (low_b, high_b) = ((q.amin(1), q.amax(1)) for q in (a, b))
    return ((low_a[:, None] <= high_b) & (low_b <= high_a[:, None])).all(-1)


def _write_overlaps(a: Tensor, b: Tensor, ious: Tensor, mode: int, aligned: bool) -> None:
    if aligned:
        i = j = torch.arange(len(a), device=a.device)
        ious.copy_(_pair_overlaps(a, b, i, j, mode).view_as(ious))
        return
    i, j = _touching(a, b).nonzero(as_tuple=True)
    result = a.new_zeros(len(a), len(b))
    result[i, j] = _pair_overlaps(a, b, i, j, mode)
    ious.copy_(result.view_as(ious))


@operator
def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Overlap of rotated boxes, written into `ious`.

    Args:
        boxes1: ``[N, 5]``, (x, y, width, height, angle), in radians, clockwise with y pointing down.
        boxes2: ``[M, 5]``, or ``[N, 5]`` when aligned.
        ious: ``[N * M]`` or ``[N, M]``; ``[N]`` when aligned.
        mode_flag: 0 for IoU, 1 for intersection over the first box's area.
        aligned: compare row i with row i only.
    """
    _write_overlaps(_rotated_corners(boxes1.double()), _rotated_corners(boxes2.double()), ious, mode_flag, aligned)


@operator
def box_iou_quadri(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Like `box_iou_rotated` for convex quadrilaterals ``[N, 8]``, (x1, y1, ..., x4, y4) in ring order."""
    _write_overlaps(boxes1.double().view(-1, 4, 2), boxes2.double().view(-1, 4, 2), ious, mode_flag, aligned)


def _greedy(quads: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float) -> Tensor:
    """Indices kept by greedy suppression within each label, best score first."""
    order = scores.argsort(descending=True, stable=True)
    quads = quads[order]
    candidates = _touching(quads, quads).triu_(1)
    if labels is not None:
        labels = labels[order]
        candidates &= labels[:, None] == labels
    i, j = candidates.nonzero(as_tuple=True)
    over = _pair_overlaps(quads, quads, i, j, mode=0) > iou_threshold
    suppressor, suppressed = i[over].cpu().numpy(), j[over].cpu().numpy()
    starts = np.searchsorted(suppressor, np.arange(len(quads) + 1))
    keep = np.ones(len(quads), dtype=bool)
    for k in range(len(quads)):
        if keep[k]:
            keep[suppressed[starts[k] : starts[k + 1]]] = False
    return order[torch.from_numpy(keep).to(order.device)]


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
    """Indices of the rotated boxes kept by greedy suppression (IoU greater than the threshold), best first.

    Args:
        dets: ``[N, 5]``, or ``[N, 6]`` with the label last when `multi_label`; boxes of different labels
            never suppress one another (compiled mmcv respects labels on CUDA only).
        scores: ``[N]``.
        order, dets_sorted, labels: what compiled kernels want precomputed; not needed here.
        iou_threshold: in [0, 1].
        multi_label: whether dets carries labels.
    """
    return _greedy(_rotated_corners(dets[:, :5].double()), scores, dets[:, 5] if multi_label else None, iou_threshold)


@operator
def nms_quadri(
    dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor, iou_threshold: float, multi_label: bool
) -> Tensor:
    """Like `nms_rotated` for convex quadrilaterals: ``[N, 8]``, or ``[N, 9]`` with the label last."""
    quads = dets[:, :8].double().reshape(-1, 4, 2)
    return _greedy(quads, scores, dets[:, 8] if multi_label else None, iou_threshold)
