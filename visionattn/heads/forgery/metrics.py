"""Metrics of forgery localization and detection, in the published conventions.

Pixel metrics are averaged over images, or pooled over all pixels of a dataset. The per-image metrics with their modes
follow IMDLBenCo (Ma et al., NeurIPS 2024): predictions above (not at) the threshold are forged.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

__all__ = [
    "IMAGE_METRICS",
    "MODES",
    "PIXEL_METRICS",
    "PooledPixels",
    "binary_auc",
    "image_scores",
    "pixel_scores",
    "summarize",
]

PIXEL_METRICS = ("f1", "iou", "accuracy", "auc")
IMAGE_METRICS = ("f1", "auc", "accuracy")
MODES = ("origin", "reverse", "double")
EPS = 1e-8
IMAGE_EPS = 1e-9


def binary_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve, with ties between equal scores; NaN if one of the two classes is absent.

    Args:
        scores: scores of any shape; larger means more likely positive.
        labels: labels of the same shape, nonzero for positive.
        weights: sample weights of the same shape. Defaults to 1.
    """
    scores, labels = np.asarray(scores).ravel(), np.asarray(labels).ravel() != 0
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], np.where(labels, weights, 0)[order]
    negative = np.where(labels, 0, weights)[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    return _area(np.cumsum(positive)[last], np.cumsum(negative)[last]) if len(scores) else float("nan")


def _area(true_positive: np.ndarray, false_positive: np.ndarray) -> float:
    """Area under the curve of cumulative counts by the trapezoidal rule, normalized by their final values."""
    if not len(true_positive) or true_positive[-1] <= 0 or false_positive[-1] <= 0:
        return float("nan")
    tpr = np.concatenate([[0.0], true_positive / true_positive[-1]])
    fpr = np.concatenate([[0.0], false_positive / false_positive[-1]])
    return float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))


def _benco_auc(scores: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """AUC of IMDLBenCo: ties are not handled; 0 for an empty mask, NaN for a full one.

    Pixels outside ``valid`` remain in the ranking with weight 0.
    """
    positive, total = float((truth * valid).sum()), float(valid.sum())
    if positive == 0:
        return 0.0
    if positive == total:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    counted = valid[order]
    hits = truth[order] * counted
    return _area(np.cumsum(hits), np.cumsum(counted - hits))


def _counts(forged: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> tuple[float, float, float, float]:
    """Weighted counts: true positive, false positive, false negative, true negative."""
    forged = forged.astype(np.float64)
    hit = float((forged * truth * valid).sum())
    false_positive = float((forged * (1 - truth) * valid).sum())
    missed = float(((1 - forged) * truth * valid).sum())
    rest = float(((1 - forged) * (1 - truth) * valid).sum())
    return hit, false_positive, missed, rest


def _f1(hit: float, false_positive: float, missed: float, eps: float = EPS) -> float:
    precision, recall = hit / (hit + false_positive + eps), hit / (hit + missed + eps)
    return 2 * precision * recall / (precision + recall + eps)


def pixel_scores(
    prediction: np.ndarray,
    truth: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    mode: Literal["origin", "reverse", "double"] = "origin",
    threshold: float = 0.5,
    auc: Literal["exact", "benco"] = "exact",
) -> dict[str, float]:
    """Compute ``f1``, ``iou``, ``accuracy`` and ``auc`` of one image.

    F1 and IoU of an authentic image are always 0; use ``accuracy`` for these.

    Args:
        prediction: probability that each pixel is forged, ``[H, W]`` or ``[1, H, W]``, in [0, 1].
        truth: ground-truth mask of the same shape, nonzero where forged.
        valid: mask of the same shape, 0 on pixels to ignore.
        mode: ``"origin"`` uses the prediction unchanged. ``"reverse"`` inverts it, for models that may mark the
            authentic region: F1 and accuracy invert the binary map (so that values at the threshold become forged),
            IoU and AUC invert the probabilities. ``"double"`` takes the maximum of the two for each metric.
        threshold: pixels with a probability above it are forged.
        auc: ``"exact"`` handles ties, and is NaN for an empty or full mask; ``"benco"`` ignores ties, and is 0 for an
            empty and NaN for a full mask, as in IMDLBenCo.

    Raises:
        ValueError: if the shapes differ, or an argument is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}, got {mode!r}")
    if auc not in ("exact", "benco"):
        raise ValueError(f"`auc` must be 'exact' or 'benco', got {auc!r}")
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or (valid is not None and np.shape(valid) != truth.shape):
        raise ValueError(
            f"`prediction`, `truth` and `valid` must have the same shape, got {prediction.shape}, {truth.shape} and "
            f"{None if valid is None else np.shape(valid)}"
        )
    if mode == "double":
        one, two = (
            pixel_scores(prediction, truth, valid, mode=m, threshold=threshold, auc=auc) for m in ("origin", "reverse")
        )
        return {name: float(np.fmax(one[name], two[name])) for name in one}
    flat = prediction.ravel()
    real = (truth.ravel() != 0).astype(np.float64)
    counted = np.ones_like(real) if valid is None else (np.asarray(valid).ravel() != 0).astype(np.float64)
    forged = flat > threshold
    inverted = mode == "reverse"
    if inverted:
        flat = 1 - flat
    hit, false_positive, missed, rest = _counts(~forged if inverted else forged, real, counted)
    above = flat > threshold if inverted else forged
    overlap, extra, absent, _ = _counts(above, real, counted)
    total = max(hit + false_positive + missed + rest, 1)
    if auc == "benco":
        area = _benco_auc(flat, real, counted)
    else:
        inside = counted > 0
        area = binary_auc(flat[inside], real[inside])
    return {
        "f1": _f1(hit, false_positive, missed),
        "iou": overlap / (overlap + extra + absent + EPS),
        "accuracy": (hit + rest) / total,
        "auc": area,
    }


def image_scores(scores: Sequence[float], labels: Sequence[int], threshold: float = 0.5) -> dict[str, float]:
    """Compute ``f1``, ``auc`` and ``accuracy`` of forgery detection; forged is the positive class.

    The AUC handles ties, and is NaN if only one class is present.

    Args:
        scores: probability that each image is forged.
        labels: 1 for forged images.
        threshold: images with a score above it are classified as forged.

    Raises:
        ValueError: if the numbers of scores and labels differ, or are 0.
    """
    scores, labels = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(labels).ravel() != 0
    if len(scores) != len(labels) or not len(scores):
        raise ValueError(
            f"`scores` and `labels` must have the same length of at least 1, got {len(scores)} and {len(labels)}"
        )
    forged = scores > threshold
    hit, false_positive = int((forged & labels).sum()), int((forged & ~labels).sum())
    return {
        "f1": _f1(hit, false_positive, int((~forged & labels).sum()), IMAGE_EPS),
        "auc": binary_auc(scores, labels),
        "accuracy": float((forged == labels).mean()),
    }


class PooledPixels:
    """Pixel metrics pooled over all pixels of a dataset, in constant memory.

    F1, IoU and accuracy are exact. The AUC is computed from scores rounded to ``bins`` levels.

    Args:
        threshold: pixels with a probability above it are forged.
        bins: number of score levels.
    """

    def __init__(self, threshold: float = 0.5, bins: int = 4096) -> None:
        self.threshold, self.bins = threshold, bins
        self.counts = np.zeros(4)
        self.histogram = np.zeros((2, bins), dtype=np.int64)

    def add(self, prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Add one image; see `pixel_scores` for the arguments."""
        flat, real = np.asarray(prediction).ravel(), np.asarray(truth).ravel() != 0
        if valid is not None:
            inside = np.asarray(valid).ravel() != 0
            flat, real = flat[inside], real[inside]
        forged = flat > self.threshold
        self.counts += [(forged & real).sum(), (forged & ~real).sum(), (~forged & real).sum(), (~forged & ~real).sum()]
        level = np.clip(np.rint(flat * (self.bins - 1)), 0, self.bins - 1).astype(np.int64)
        for row, chosen in enumerate((~real, real)):
            self.histogram[row] += np.bincount(level[chosen], minlength=self.bins)

    def merge(self, other: "PooledPixels") -> None:
        """Add the counts of another instance."""
        self.counts += other.counts
        self.histogram += other.histogram

    def scores(self) -> dict[str, float]:
        """Compute ``f1``, ``iou``, ``accuracy`` and ``auc``; all NaN if no pixel was added."""
        hit, false_positive, missed, rest = self.counts.tolist()
        total = hit + false_positive + missed + rest
        if not total:
            return dict.fromkeys(PIXEL_METRICS, float("nan"))
        return {
            "f1": _f1(hit, false_positive, missed),
            "iou": hit / (hit + false_positive + missed + EPS),
            "accuracy": (hit + rest) / total,
            "auc": _area(np.cumsum(self.histogram[1, ::-1]), np.cumsum(self.histogram[0, ::-1])),
        }


def summarize(
    records: Sequence[Mapping[str, Any]],
    include_authentic: bool | Literal["benco"] = False,
    threshold: float = 0.5,
) -> dict[str, float]:
    """Combine the records of all images of a dataset.

    Args:
        records: for each image, ``label`` (1 if forged), ``score`` (probability that it is forged) and ``pixel``, a
            dict of its pixel metrics.
        include_authentic: False averages pixel metrics over forged images only, the published convention. True or
            ``"benco"`` averages over all images; authentic images have F1, IoU and (only for ``"benco"``) AUC 0.
        threshold: threshold of the image score.

    Returns:
        ``pixel_f1``, ``pixel_iou``, ..., means over the images with a value other than NaN; ``authentic_accuracy``,
        the pixel accuracy of authentic images; ``image_f1``, ``image_auc`` and ``image_accuracy``. Undefined values,
        such as the AUC of images of one class, are omitted.
    """
    result: dict[str, float] = {}
    if not records:
        return result
    forged = [r for r in records if r["label"]]
    chosen = list(records) if include_authentic else forged
    for name in chosen[0]["pixel"] if chosen else ():
        values = np.array([r["pixel"][name] for r in chosen], dtype=np.float64)
        if (~np.isnan(values)).any():
            result[f"pixel_{name}"] = float(np.nanmean(values))
    authentic = [r["pixel"]["accuracy"] for r in records if not r["label"] and "accuracy" in r["pixel"]]
    if authentic:
        result["authentic_accuracy"] = float(np.mean(authentic))
    found = image_scores([r["score"] for r in records], [r["label"] for r in records], threshold)
    result |= {f"image_{name}": value for name, value in found.items() if not np.isnan(value)}
    return result
