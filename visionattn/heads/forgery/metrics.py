"""Measures of forgery localization and detection, each under the convention it is published in.

Pixel measures are taken for each image and averaged, or pooled over all pixels of a set. The per-image form, with its
modes, is that of IMDLBenCo (Ma et al., NeurIPS 2024): a prediction counts as forged above, not at, the threshold.
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
    """Area under the ROC curve, equal scores taken together; nan where one of the two classes is absent.

    Args:
        scores: any shape; larger means more likely positive.
        labels: of the same shape, nonzero for positive.
        weights: of the same shape, how often each counts.
    """
    scores, labels = np.asarray(scores).ravel(), np.asarray(labels).ravel() != 0
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], np.where(labels, weights, 0)[order]
    negative = np.where(labels, 0, weights)[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    return _area(np.cumsum(positive)[last], np.cumsum(negative)[last]) if len(scores) else float("nan")


def _area(true_positive: np.ndarray, false_positive: np.ndarray) -> float:
    """The trapezoids under cumulative counts, divided by their last values."""
    if not len(true_positive) or true_positive[-1] <= 0 or false_positive[-1] <= 0:
        return float("nan")
    tpr = np.concatenate([[0.0], true_positive / true_positive[-1]])
    fpr = np.concatenate([[0.0], false_positive / false_positive[-1]])
    return float(np.sum(np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2))


def _benco_auc(scores: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> float:
    """As IMDLBenCo: one step for each pixel even among equal scores; 0 for an empty mask, nan for a full one.

    Pixels outside ``valid`` stay in the ranking, and count for neither class.
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
    """``f1``, ``iou``, ``accuracy`` and ``auc`` of one image.

    An authentic image has an F1 and IoU of 0, however right the prediction is: measure it by ``accuracy``.

    Args:
        prediction: probability that a pixel is forged, ``[H, W]`` or ``[1, H, W]``, in 0..1.
        truth: nonzero where forged, of the same shape.
        valid: 0 on pixels that do not count, of the same shape.
        mode: ``"origin"`` takes the prediction as it is; ``"reverse"`` inverts it, as for models that may mark
            the untouched part: F1 and accuracy invert the binary map, so that a value at the threshold then counts
            as forged, IoU and AUC invert the probabilities; ``"double"`` takes the larger value of the two.
        threshold: a pixel above it counts as forged.
        auc: ``"exact"`` takes equal scores together, and is nan for an empty or a full mask; ``"benco"`` steps
            through equal scores one by one, and is 0 for an empty and nan for a full mask, as IMDLBenCo.

    Raises:
        ValueError: shapes differ, or an argument is not one of the above.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} must be one of {MODES}")
    if auc not in ("exact", "benco"):
        raise ValueError(f"auc={auc!r} must be 'exact' or 'benco'")
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape or (valid is not None and np.shape(valid) != truth.shape):
        raise ValueError(
            f"prediction {prediction.shape}, truth {truth.shape} and valid "
            f"{None if valid is None else np.shape(valid)} must be of one shape"
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
    """``f1``, ``auc`` and ``accuracy`` of telling forged images from authentic ones; forged is the positive class.

    The AUC takes equal scores together, and is nan for a set of one class only.

    Args:
        scores: probability that each image is forged.
        labels: 1 where it is.
        threshold: an image above it counts as forged.

    Raises:
        ValueError: not as many scores as labels, or none.
    """
    scores, labels = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(labels).ravel() != 0
    if len(scores) != len(labels) or not len(scores):
        raise ValueError(f"{len(scores)} scores and {len(labels)} labels; there must be as many, at least one")
    forged = scores > threshold
    hit, false_positive = int((forged & labels).sum()), int((forged & ~labels).sum())
    return {
        "f1": _f1(hit, false_positive, int((~forged & labels).sum()), IMAGE_EPS),
        "auc": binary_auc(scores, labels),
        "accuracy": float((forged == labels).mean()),
    }


class PooledPixels:
    """Pixel measures over all pixels of a set as one, in constant memory.

    F1, IoU and accuracy are exact. The AUC is of scores rounded to ``bins`` levels.

    Args:
        threshold: a pixel above it counts as forged.
        bins: levels of the scores.
    """

    def __init__(self, threshold: float = 0.5, bins: int = 4096) -> None:
        self.threshold, self.bins = threshold, bins
        self.counts = np.zeros(4)
        self.histogram = np.zeros((2, bins), dtype=np.int64)

    def add(self, prediction: np.ndarray, truth: np.ndarray, valid: np.ndarray | None = None) -> None:
        """Count one image; see `pixel_scores` for the arguments."""
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
        """Add what another one has counted."""
        self.counts += other.counts
        self.histogram += other.histogram

    def scores(self) -> dict[str, float]:
        """``f1``, ``iou``, ``accuracy`` and ``auc``; nan where nothing was counted."""
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
    """Figures of a set from records of its images.

    Args:
        records: for each image ``label`` (1 forged), ``score`` (probability that it is), and ``pixel``, a dict of
            its pixel measures.
        include_authentic: False, the published convention, averages pixel measures over forged images only; True
            or ``"benco"`` over all, in which an authentic image has an F1, IoU and (``"benco"`` only) AUC of 0.
        threshold: of the image score.

    Returns:
        ``pixel_f1``, ``pixel_iou``, ... as means over images whose value is not nan; ``authentic_accuracy``, the
        share of pixels of authentic images that are left unmarked; ``image_f1``, ``image_auc``, ``image_accuracy``.
        What does not apply to the set, such as an AUC of images of one class, is left out.
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
