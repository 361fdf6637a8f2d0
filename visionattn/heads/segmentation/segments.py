"""Decoding of panoptic maps."""

from typing import Any

import numpy as np

from visionattn.inference.results import InstanceMasks

__all__ = ["decode_segments"]


def decode_segments(segments: np.ndarray, count: int) -> dict[str, Any]:
    """Return the fields of a `Prediction` with one mask, box and label for each segment.

    Args:
        segments: mmdet's panoptic ids, label + 1000 * number, int64 ``[H, W]``.
        count: number of classes; pixels with a larger label belong to no segment.
    """
    crops, labels, boxes = [], [], []
    for code in np.unique(segments):
        label = int(code) % 1000
        if label >= count:
            continue
        mask = segments == code
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        crops.append(mask[y0:y1, x0:x1].copy())
        labels.append(label)
        boxes.append((x0, y0, x1, y1))
    return {
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "scores": np.ones(len(labels), np.float32),
        "labels": np.asarray(labels, np.int64),
        "masks": InstanceMasks(crops, [(int(x), int(y)) for x, y, _, _ in boxes], segments.shape),
        "semantic": np.minimum(segments % 1000, count).astype(np.int64),
    }
