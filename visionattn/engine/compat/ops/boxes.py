"""Overlap of axis-aligned boxes."""

import torch
from torch import Tensor

from visionattn.kernels.box_overlap import valid_boxes

from .common import operator, work_dtype

__all__ = ["bbox_overlaps"]


@operator
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write the IoU (mode 0), or the intersection over the area of the first box (mode 1), to `ious`.

    Args:
        bboxes1: ``[N, 4]``, (x1, y1, x2, y2).
        bboxes2: ``[M, 4]``, or ``[N, 4]`` when aligned.
        ious: ``[N, M]``, or ``[N]`` when aligned.
        aligned: compare row i with row i only.
        offset: 0 or 1, added to widths and heights; also the minimum denominator, so the overlap of
            two empty boxes is NaN with 0. Boxes that are not finite have an overlap of 0.
    """
    dtype = work_dtype(bboxes1, bboxes2)
    a, b = bboxes1.to(dtype), bboxes2.to(dtype)
    area_a, area_b = ((t[:, 2:] - t[:, :2] + offset).prod(-1) for t in (a, b))
    if not aligned:
        a, area_a = a[:, None], area_a[:, None]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + offset
    intersection = sides.clamp(min=0).prod(-1)
    base = area_a + area_b - intersection if mode == 0 else area_a.expand_as(intersection)
    valid_a, valid_b = valid_boxes(a), valid_boxes(b)
    ious.copy_((intersection / base.clamp(min=offset)).where(valid_a & valid_b, 0))
