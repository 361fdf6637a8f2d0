"""Action recognition metrics: top-k accuracy and mean class accuracy."""

import numpy as np

__all__ = ["class_recalls", "combine_views", "mean_class_accuracy", "top_accuracy"]


def combine_views(scores: np.ndarray, reduction: str = "mean") -> np.ndarray:
    """Combine the scores of several views of a video.

    Args:
        scores: ``[V, classes]``.
        reduction: ``"mean"`` or ``"max"``.

    Returns:
        ``[classes]``.

    Raises:
        ValueError: if ``reduction`` is unknown.
    """
    if reduction not in ("mean", "max"):
        raise ValueError(f"`reduction` must be 'mean' or 'max', got {reduction!r}")
    return scores.mean(0) if reduction == "mean" else scores.max(0)


def top_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Top-k accuracy in percent.

    Args:
        scores: ``[N, classes]``; among equal scores, the class with the lower index ranks first.
        labels: integer labels ``[N]``.
        k: number of classes considered.
    """
    best = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    return float((best == np.asarray(labels)[:, None]).any(1).mean() * 100)


def class_recalls(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Recall of each class in percent, ``[classes]``; NaN for classes without videos.

    Args:
        scores: ``[N, classes]``.
        labels: integer labels ``[N]``.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    right = scores.argmax(1) == labels
    count = np.bincount(labels, minlength=scores.shape[1])
    hits = np.bincount(labels[right], minlength=scores.shape[1])
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, hits / count * 100, np.nan)


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the class recalls in percent, as for Toyota Smarthome; classes without videos are ignored.

    Args:
        scores: ``[N, classes]``.
        labels: integer labels ``[N]``.
    """
    return float(np.nanmean(class_recalls(scores, labels)))
