"""Matching of detections with ground truth as in COCO's evaluation, for all IoU thresholds and size ranges at once.

The results are those of ``pycocotools.cocoeval.COCOeval``, without a limit on the number of detections per image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionattn.errors import require

__all__ = ["IOUS", "RANGES", "Matches", "Objects", "average_precision", "match", "mean_ap"]

IOUS = np.linspace(0.5, 0.95, 10)
"""COCO's IoU thresholds."""
RANGES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
"""COCO's ranges of the area in square pixels; both ends are inclusive."""
RECALLS = np.linspace(0, 1, 101)
NEAR = 0.1
"""Pairs with a smaller IoU are not kept."""
BITS = 1 << np.arange(len(IOUS), dtype=np.uint16)


@dataclass(frozen=True)
class Objects:
    """Detections or ground-truth objects of all images, ordered by image.

    Detections of an image are ordered by descending score.

    Attributes:
        image: index of the image, int64 ``[N]``.
        label: class index, int64 ``[N]``.
        area: area in square pixels, float64 ``[N]``.
        box: x, y, width, height in pixels, float64 ``[N, 4]``.
        rle: masks as compressed RLE of COCO, or None for boxes.
        score: scores of detections, float64 ``[N]``.
        crowd: ground truth that is a crowd region, bool ``[N]``.
    """

    image: np.ndarray
    label: np.ndarray
    area: np.ndarray
    box: np.ndarray
    rle: Sequence[dict] | None = None
    score: np.ndarray | None = None
    crowd: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.image)

    def shapes(self, rows: slice) -> Any:
        """Return boxes or masks in a form for ``pycocotools.mask.iou``."""
        return self.box[rows] if self.rle is None else list(self.rle[rows])


@dataclass(frozen=True)
class Matches:
    """Result of `match` for D detections and G ground-truth objects; A is the number of `RANGES`, T of `IOUS`.

    Attributes:
        truth: object that a detection matches at an IoU of 0.5, int64 ``[D]``, -1 for none. It may be a crowd.
        hits: whether a detection matches, by range and IoU, as bits: uint16 ``[A, D]``.
        ignored: whether a detection does not count, by range and IoU, as bits: uint16 ``[A, D]``.
        excluded: whether an object does not count by range, bool ``[A, G]``.
        pairs: detection and object of each pair with an IoU of at least `NEAR`, int64 ``[2, P]``, without crowds, of
            any classes.
        ious: their IoU, float64 ``[P]``.
    """

    truth: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    excluded: np.ndarray
    pairs: np.ndarray
    ious: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """True positives at an IoU of 0.5, bool ``[D]``."""
        return (self.hits[0] & 1 == 1) & self.counted

    @property
    def counted(self) -> np.ndarray:
        """Detections that count at an IoU of 0.5, that is, that match no crowd, bool ``[D]``."""
        return self.ignored[0] & 1 == 0


def match(detections: Objects, truth: Objects, images: int) -> Matches:
    """Match detections with ground truth of their class.

    In the order of their scores, each detection takes the free object of the largest IoU that reaches the threshold;
    objects that count come before those that do not (crowds, objects outside of the size range).

    Args:
        detections: the detections, with scores.
        truth: the ground truth.
        images: number of images.
    """
    mask_api = require("pycocotools.mask")
    low, high = np.array(list(RANGES.values())).T[:, :, None]
    excluded = truth.crowd | (truth.area < low) | (truth.area > high)
    shape = (len(RANGES), len(IOUS), len(detections))
    found = np.full(shape[2], -1)
    hits, ignored = np.zeros((shape[0], shape[2]), np.uint16), np.zeros((shape[0], shape[2]), np.uint16)
    outside = (detections.area < low) | (detections.area > high)
    pairs, ious = [np.zeros((2, 0), np.int64)], [np.zeros(0)]
    ends = np.arange(images + 1)
    first, start = np.searchsorted(detections.image, ends), np.searchsorted(truth.image, ends)
    for index in range(images):
        rows, columns = slice(first[index], first[index + 1]), slice(start[index], start[index + 1])
        if rows.start == rows.stop:
            continue
        overlap = np.zeros((rows.stop - rows.start, 0))
        if columns.start < columns.stop:
            crowd = truth.crowd[columns]
            overlap = mask_api.iou(detections.shapes(rows), truth.shapes(columns), crowd.astype(np.uint8).tolist())
            near = np.nonzero((overlap >= NEAR) & ~crowd)
            pairs.append(np.stack([near[0] + rows.start, near[1] + columns.start]))
            ious.append(overlap[near])
            overlap = overlap * (detections.label[rows, None] == truth.label[columns])
        taken = _match_image(overlap, truth.crowd[columns], excluded[:, columns])
        hit = taken >= 0
        unwanted = hit & excluded[:, columns][np.arange(shape[0])[:, None, None], taken] if hit.any() else hit
        hits[:, rows] = (hit * BITS[:, None]).sum(1)
        ignored[:, rows] = ((unwanted | (~hit & outside[:, None, rows])) * BITS[:, None]).sum(1)
        found[rows] = np.where(hit[0, 0], taken[0, 0] + columns.start, -1)
    return Matches(found, hits, ignored, excluded, np.concatenate(pairs, 1), np.concatenate(ious))


def _match_image(overlap: np.ndarray, crowd: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Match the detections of one image.

    Args:
        overlap: IoU of each detection and object, 0 for different classes, ``[D, G]``.
        crowd: bool ``[G]``.
        excluded: bool ``[A, G]``.

    Returns:
        Index of the object, -1 for none, int64 ``[A, T, D]``.
    """
    free = np.ones((len(excluded), len(IOUS), len(crowd)), bool)
    result = np.full((len(excluded), len(IOUS), len(overlap)), -1)
    eligible = overlap >= IOUS[0]
    sizes, levels = np.ogrid[: len(excluded), : len(IOUS)]
    for row in np.flatnonzero(eligible.any(1)):
        near = np.flatnonzero(eligible[row])[::-1]  # of equal IoUs, COCO chooses the last object
        value = overlap[row, near]
        usable = free[:, :, near] & (value >= IOUS[:, None])
        order = np.where(usable, value + 2 * ~excluded[:, None, near], 0)
        best = order.argmax(-1)
        hit = order.max(-1) > 0
        chosen = near[best]
        result[:, :, row] = np.where(hit, chosen, -1)
        free[sizes, levels, chosen] &= ~hit | crowd[chosen]
    return result


def average_precision(scores: np.ndarray, correct: np.ndarray, objects: int) -> float:
    """Compute the AP of one class with COCO's 101 recall values.

    Args:
        scores: scores of the detections in the order of the images, ``[N]``.
        correct: whether each is a true positive, bool ``[N]``.
        objects: number of ground-truth objects, at least the number of true positives.

    Returns:
        AP in [0, 1]; NaN without objects.
    """
    if not objects:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    positives = np.cumsum(correct[order])
    precision = positives / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(positives / objects, RECALLS, side="left")
    return float(np.append(precision, 0.0)[at].mean())


def mean_ap(detections: Objects, truth: Objects, matches: Matches, classes: int, area: int) -> np.ndarray:
    """Compute COCO's AP of each class and IoU threshold for one of the `RANGES`.

    Returns:
        float64 ``[classes, T]``, NaN for classes without objects.
    """
    result = np.full((classes, len(IOUS)), np.nan)
    objects = np.bincount(truth.label[~matches.excluded[area]], minlength=classes)
    order = np.lexsort((-detections.score, detections.label))  # sorted once, not for each level
    ends = np.searchsorted(detections.label[order], np.arange(classes + 1))
    for label in np.flatnonzero(objects):
        rows = order[ends[label] : ends[label + 1]]
        for level, bit in enumerate(BITS):
            counted = rows[matches.ignored[area, rows] & bit == 0]
            correct = matches.hits[area, counted] & bit != 0
            result[label, level] = average_precision(detections.score[counted], correct, objects[label])
    return result
