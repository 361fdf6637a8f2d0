"""Non-maximum suppression of axis-aligned boxes: greedy NMS, Soft-NMS, and NMS that returns the suppressed boxes.

Boxes with NaN or infinite coordinates, or a score of NaN, are dropped.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
import torchvision  # noqa: F401  registers the operators used below
from torch import Tensor

from visionattn.kernels.box_overlap import valid_boxes

from .common import operator, work_dtype

__all__ = ["nms", "nms_match", "softnms"]

NAIVE, LINEAR, GAUSSIAN = range(3)


@operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes kept by greedy NMS, in descending order of score.

    Args:
        boxes: ``[N, 4]``, (x1, y1, x2, y2).
        scores: ``[N]``.
        iou_threshold: a box is removed if its IoU with a kept box is greater.
        offset: 0, or 1 if the width of a box is x2 - x1 + 1.
    """
    dtype = work_dtype(boxes, scores)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])  # equivalent boxes with offset 0
    # Compiled mmcv takes the threshold as a float32: 0.6 must not suppress an IoU of exactly 3 / 5.
    threshold = float(np.float32(iou_threshold)) if dtype == torch.float32 else float(iou_threshold)
    valid = valid_boxes(boxes, scores)
    if bool(valid.all()):
        return torch.ops.torchvision.nms(boxes, scores, threshold)
    index = valid.nonzero().squeeze(1)
    return index[torch.ops.torchvision.nms(boxes[index], scores[index], threshold)]


def without_invalid(batched_nms: Callable) -> Callable:
    """Wrap ``mmcv.ops.batched_nms`` to leave out invalid boxes before it shifts boxes by the largest coordinate."""

    @functools.wraps(batched_nms)
    def wrapped(boxes: Tensor, scores: Tensor, idxs: Tensor, *args, **kwargs):
        valid = valid_boxes(boxes, scores)
        if bool(valid.all()):
            return batched_nms(boxes, scores, idxs, *args, **kwargs)
        index = valid.nonzero().squeeze(1)
        dets, keep = batched_nms(boxes[index], scores[index], idxs[index], *args, **kwargs)
        return dets, index[keep]

    return wrapped


def _overlaps(box: np.ndarray, area: np.ndarray, others: np.ndarray, areas: np.ndarray, offset: int) -> np.ndarray:
    """Return the IoU of one box ``[4]`` with ``others [N, 4]``; NaN if both are empty (compares as False)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0]) + offset
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1]) + offset
    intersection = width.clip(0) * height.clip(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return intersection / (area + areas - intersection)


def _areas(boxes: np.ndarray, offset: int) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


@operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., 2017): the scores of overlapping boxes are reduced instead of removing the boxes.

    Args:
        boxes, scores: ``[N, 4]`` and ``[N]``, on the CPU.
        dets: ``[N, 5]``, written in place: box and decayed score of the kept boxes, in order of selection;
            the remaining rows are unchanged.
        iou_threshold: minimum IoU for the decay of methods 0 and 1.
        sigma: parameter of method 2, whose decay is exp(-IoU² / sigma).
        min_score: boxes whose score decays below it are removed. The box with the highest score is always kept.
        method: 0 hard, 1 linear (1 - IoU), 2 Gaussian.
        offset: 0 or 1, added to widths and heights.

    Returns:
        Indices of the kept boxes, in order of selection. Ties are broken as in compiled mmcv, which replaces a
        removed box by the last box of its array.
    """
    dtype = work_dtype(boxes, scores)
    corners = boxes.to("cpu", dtype, copy=True).numpy()
    score = scores.to("cpu", dtype, copy=True).numpy()
    area = _areas(corners, offset)
    order = valid_boxes(torch.from_numpy(corners), torch.from_numpy(score)).nonzero().squeeze(1).numpy()
    threshold, sigma = score.dtype.type(iou_threshold), score.dtype.type(sigma)
    count, i = len(order), 0
    while i < count:
        best = i + int(score[order[i:count]].argmax())
        order[i], order[best] = order[best], order[i]
        top, rest = order[i], order[i + 1 : count]
        iou = _overlaps(corners[top], area[top], corners[rest], area[rest], offset)
        if method == GAUSSIAN:
            decay = np.exp(-(iou * iou) / sigma)
        else:
            decay = np.where(iou >= threshold, 1 - iou if method == LINEAR else np.zeros_like(iou), 1)
        score[rest] *= decay
        dead = score[rest] < min_score
        alive = len(rest) - int(dead.sum())
        holes = dead[:alive].nonzero()[0]
        movers = (~dead[alive:]).nonzero()[0][::-1] + alive
        rest[holes] = rest[movers]  # a view: changes `order`
        i, count = i + 1, i + 1 + alive
    keep = torch.from_numpy(order[:count].copy())
    dets[:count, :4] = boxes[keep].to(dets)
    dets[:count, 4] = torch.from_numpy(score)[keep].to(dets)
    return keep.to(boxes.device)


@operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy NMS that also returns the boxes suppressed by each kept box.

    Args:
        dets: ``[N, 5]``, (x1, y1, x2, y2, score).
        iou_threshold: a box is suppressed by a kept box if their IoU is greater or equal.

    Returns:
        One list of indices per kept box, in descending order of score: the kept box, then the boxes that it
        suppressed, in descending order of score.
    """
    array = dets.to("cpu", work_dtype(dets)).numpy()
    boxes, threshold = array[:, :4], array.dtype.type(iou_threshold)
    area = _areas(boxes, 0)
    order = np.argsort(-array[:, 4], kind="stable")
    order = order[valid_boxes(torch.from_numpy(boxes), torch.from_numpy(array[:, 4])).numpy()[order]]
    groups = []
    while len(order):
        top, rest = order[0], order[1:]
        near = _overlaps(boxes[top], area[top], boxes[rest], area[rest], 0) >= threshold
        groups.append([int(top), *rest[near].tolist()])
        order = rest[~near]
    return groups
