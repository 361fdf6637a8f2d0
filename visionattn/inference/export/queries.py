"""Instances and panoptic segments from the queries of Mask2Former (arXiv 2112.01527), in tensor operations.

The functions work on batches, in an exported program as well as on its outputs, and follow the test code of mmdet.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["mask_boxes", "mask_scores", "panoptic_ids", "resize_masks"]

INSTANCE_OFFSET = 1000
"""Segments of things have the id ``label + INSTANCE_OFFSET * number``, as in mmdet."""


def resize_masks(logits: Tensor, padded: Sequence[int]) -> Tensor:
    """Resize the logits of masks ``[B, Q, h, w]`` to the padded input."""
    return F.interpolate(logits, size=tuple(padded), mode="bilinear", align_corners=False)


def mask_scores(logits: Tensor) -> Tensor:
    """Return the mean probability of the pixels inside of each mask, ``[...]`` for logits ``[..., H, W]``."""
    inside = (logits > 0).to(logits.dtype)
    return (logits.sigmoid() * inside).flatten(-2).sum(-1) / (inside.flatten(-2).sum(-1) + 1e-6)


def mask_boxes(masks: Tensor) -> Tensor:
    """Return the bounding boxes ``[..., 4]`` of masks, bool ``[..., H, W]``; 0 for empty masks."""
    sides = []
    for axis in (-2, -1):  # x from the columns, then y from the rows
        line = masks.any(axis)
        length = line.shape[-1]
        position = torch.arange(length, device=masks.device)
        low = torch.where(line, position, length).amin(-1)
        high = torch.where(line, position + 1, 0).amax(-1)
        sides.append((torch.minimum(low, high), high))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], -1).to(torch.float32)


def panoptic_ids(
    scores: Tensor,
    labels: Tensor,
    logits: Tensor,
    classes: int,
    things: int,
    score_threshold: Tensor | float,
    overlap_threshold: Tensor | float,
    filter_low_score: bool,
) -> Tensor:
    """Return the segment of each pixel, int32 ``[B, H, W]``: the id of a segment, or ``classes`` for none.

    Args:
        scores: score of the best class of each query, ``[B, Q]``.
        labels: this class, ``[B, Q]``; ``classes`` for no object.
        logits: logits of the masks, ``[B, Q, H, W]``.
        classes: number of classes.
        things: number of thing classes; labels below it are things.
        score_threshold: queries with a score that does not exceed it are ignored.
        overlap_threshold: minimum fraction of a mask that is not covered by better ones.
        filter_low_score: leave out pixels with a mask probability below 0.5.
    """
    count = logits.shape[1]
    valid = (labels != classes) & (scores > score_threshold)
    probabilities = logits.sigmoid()
    weighted = torch.where(valid[..., None, None], probabilities * scores[..., None, None], -1.0)
    best = weighted.argmax(1)  # [B, H, W]
    inside = probabilities >= 0.5
    index = torch.arange(count, device=logits.device).reshape(1, -1, 1, 1)
    area = (best[:, None] == index).flatten(2).sum(-1).to(torch.float32)
    whole = inside.flatten(2).sum(-1).to(torch.float32)
    kept = valid & (area > 0) & (whole > 0) & (area / whole.clamp(min=1) >= overlap_threshold)
    thing = labels < things
    number = (kept & thing).to(torch.int64).cumsum(1)
    ids = torch.where(thing, labels + INSTANCE_OFFSET * number, labels)
    ids = torch.where(kept, ids, classes)
    rows = best.flatten(1)
    found = ids.gather(1, rows).reshape(best.shape)
    if filter_low_score:
        found = torch.where(inside.gather(1, best[:, None])[:, 0], found, classes)
    return found.to(torch.int32)
