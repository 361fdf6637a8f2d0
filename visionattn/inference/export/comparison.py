"""The difference between the outputs of an exported program and those of its model."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["difference", "match_boxes"]

SAME_BOX = 0.98
"""Minimum IoU of a detection of the program and the same detection of the model."""
ISOLATED = 0.001
"""Fraction of the elements of a map that may differ ten times as much as the rest: attention to the keys with the
smallest probabilities selects another one of two that are equal up to rounding."""


def difference(names: Sequence[str], expected: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    """Return how much two lists of outputs differ: a number that is 0 for equal outputs.

    - Numbers: maximum difference relative to the largest absolute value that is expected; of maps, the larger one of a
      tenth of the maximum and the difference that 99.9 % do not exceed.
    - Integers, such as class maps: fraction of different elements.
    - Detections, sorted by score, of which two with equal scores may be exchanged: matched by class and IoU; the
      fraction of detections without a partner, or the maximum difference of scores and masks of partners.
    """
    wanted, found = dict(zip(names, expected, strict=False)), dict(zip(names, given, strict=False))
    if {"boxes", "scores", "labels"} <= set(names):
        worst = _detections(wanted, found)
        rest = [index for index, name in enumerate(names) if wanted[name].shape[:2] != wanted["scores"].shape[:2]]
        rest = [index for index in rest if names[index] != "count"]
    else:
        worst, rest = 0.0, list(range(len(expected)))
    for index in rest:
        worst = max(worst, _tensors(expected[index], given[index]))
    return worst


def _tensors(one: Tensor, other: Tensor) -> float:
    if not one.is_floating_point():
        return float((one != other).float().mean())
    change = (one - other).abs().flatten()
    worst = change.max()
    if one.ndim > 2:
        rank = change.numel() - int(ISOLATED * change.numel())
        worst = torch.maximum(worst / 10, change.kthvalue(rank).values)
    return float(worst) / float(one.abs().max().clamp(min=1e-6))


def _detections(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> float:
    worst, total, alone = 0.0, 0, 0
    for index in range(len(wanted["scores"])):
        ours = _select(wanted, index, wanted["scores"][index] > 0)
        theirs = _select(found, index, found["scores"][index] > 0)
        rows, partners = match_boxes(ours["boxes"], ours["labels"], theirs["boxes"], theirs["labels"])
        count = max(len(ours["scores"]), len(theirs["scores"]))
        total, alone = total + count, alone + count - len(rows)
        for name in set(ours) - {"boxes", "labels"}:
            if len(rows):
                change = (ours[name][rows].float() - theirs[name][partners].float()).abs()
                worst = max(worst, float(change.max() if change.ndim == 1 else change.flatten(1).mean(1).max()))
    # in a few percent of the images, two boxes with an IoU close to the threshold of the suppression change places
    return max(worst, alone / total if alone > max(1, 0.01 * total) else 0.0)


def _select(outputs: dict[str, Tensor], index: int, keep: Tensor) -> dict[str, Tensor]:
    rows = {name: tensor[index] for name, tensor in outputs.items() if tensor.ndim > 1}
    return {name: tensor[keep] for name, tensor in rows.items() if tensor.shape[:1] == keep.shape}


def match_boxes(
    boxes: Tensor, labels: Tensor, other_boxes: Tensor, other_labels: Tensor, iou: float = SAME_BOX
) -> tuple[Tensor, Tensor]:
    """Match each box with a different one of the same class, in order; returns the indices of both.

    Args:
        boxes, other_boxes: ``[N, 4]`` and ``[M, 4]``.
        labels, other_labels: ``[N]`` and ``[M]``.
        iou: minimum IoU of a pair.
    """
    if not len(boxes) or not len(other_boxes):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    low = torch.maximum(boxes[:, None, :2], other_boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], other_boxes[None, :, 2:])
    common = (high - low).clamp(min=0).prod(2)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, other_boxes)]
    overlap = common / (areas[0][:, None] + areas[1][None] - common).clamp(min=1e-9)
    overlap[(boxes[:, None] - other_boxes[None]).abs().amax(2) < 0.01] = 1  # boxes of area 0 too
    overlap[labels[:, None] != other_labels[None]] = 0
    rows, partners = [], []
    for row in range(len(boxes)):
        best = int(overlap[row].argmax())
        if overlap[row, best] >= iou:
            rows.append(row)
            partners.append(best)
            overlap[:, best] = 0
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(partners, dtype=torch.int64)
