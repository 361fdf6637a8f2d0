"""Curves over the score threshold, the confusion matrix, and the calibration of detectors, at an IoU of 0.5."""

from dataclasses import dataclass

import numpy as np

from visionattn.heads.detection.matching import Matches, Objects

__all__ = ["Curve", "calibration", "class_curve", "confusion"]

BINS = 10


@dataclass(frozen=True)
class Curve:
    """Precision and recall of one class at each score, from the highest.

    Attributes:
        score, precision, recall, f1: float64 ``[S]``, of the detections with at least this score.
        best: threshold of the highest F1, halfway between the lowest score above and the highest below it; None if
            there is no true positive.
        at: index of the highest F1, or None.
    """

    score: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best: float | None
    at: int | None


def class_curve(scores: np.ndarray, correct: np.ndarray, objects: int) -> Curve:
    """Compute the curve of one class.

    Args:
        scores: scores of the detections, ``[N]``.
        correct: whether each is a true positive, bool ``[N]``.
        objects: number of ground-truth objects.
    """
    order = np.argsort(-scores, kind="stable")
    scores, positives = scores[order], np.cumsum(correct[order])
    last = np.flatnonzero(np.diff(scores, append=-1.0))  # of each run of equal scores, which no threshold separates
    scores, positives, number = scores[last], positives[last], last + 1
    f1 = 2 * positives / (number + objects)
    at = int(f1.argmax()) if len(f1) and positives[-1] else None
    best = None
    if at is not None:
        below = scores[at + 1] if at + 1 < len(scores) else 0.0
        best = round(float((scores[at] + below) / 2), 6)
    recall = positives / objects if objects else np.zeros(len(number))
    return Curve(scores, positives / number, recall, f1, best, at)


def confusion(detections: Objects, truth: Objects, matches: Matches, kept: np.ndarray, classes: int) -> np.ndarray:
    """Compute the confusion matrix of objects (rows) and detections (columns); the last index is the background.

    Detections match objects of their class as in COCO's evaluation, so the diagonal has its true positives. Then,
    detections without a match take, in the order of their scores, the free object of another class with the largest
    IoU of at least 0.5. What remains is confused with the background. Detections that match crowds do not count.

    Args:
        detections, truth, matches: see `match`.
        kept: detections above the score threshold, bool ``[D]``.
        classes: number of classes.

    Returns:
        int64 ``[classes + 1, classes + 1]``.
    """
    kept = kept & matches.counted
    right = kept & matches.correct
    partner = np.where(right, matches.truth, -1)
    used = np.zeros(len(truth), bool)
    used[partner[right]] = True
    first, second = matches.pairs
    open_pairs = np.flatnonzero((matches.ious >= 0.5) & (kept & ~right)[first] & ~used[second])
    order = np.lexsort((-matches.ious[open_pairs], -detections.score[first[open_pairs]]))
    for pair in open_pairs[order]:
        if partner[first[pair]] < 0 and not used[second[pair]]:
            partner[first[pair]], used[second[pair]] = second[pair], True
    result = np.zeros((classes + 1, classes + 1), np.int64)
    labels = np.append(truth.label, classes)  # the index -1 is the background
    np.add.at(result, (labels[partner[kept]], detections.label[kept]), 1)
    np.add.at(result, (truth.label[~used & ~truth.crowd], classes), 1)
    return result


def calibration(scores: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Compute how well scores agree with the share of correct detections, in bins of equal width.

    Returns:
        The share of correct detections in each bin, NaN in empty ones, ``[BINS]``; the number of detections in each
        bin; and the expected calibration error (ECE): the mean difference of score and share, weighted by number.
    """
    index = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    right, total = np.bincount(index, correct, BINS), np.bincount(index, scores, BINS)
    observed = np.divide(right, counts, out=np.full(BINS, np.nan), where=counts > 0)
    return observed, counts, float(np.abs(right - total).sum() / max(len(scores), 1))
