"""Measures of action recognition: the share of right clips, and the mean of that share over the classes."""

import numpy as np

__all__ = ["class_recalls", "combine_views", "mean_class_accuracy", "top_accuracy"]


def combine_views(scores: np.ndarray, how: str = "mean") -> np.ndarray:
    """Scores of the views of a video ``[V, classes]`` as one ``[classes]``: their ``"mean"`` or ``"max"``.

    Raises:
        ValueError: another ``how``.
    """
    if how not in ("mean", "max"):
        raise ValueError(f"how={how!r} must be 'mean' or 'max'")
    return scores.mean(0) if how == "mean" else scores.max(0)


def top_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Percent of videos whose class is among the `k` best.

    Args:
        scores: ``[N, classes]``; of equal ones the first is the better.
        labels: whole numbers ``[N]``.
    """
    best = np.argsort(-np.asarray(scores), axis=1, kind="stable")[:, :k]
    return float((best == np.asarray(labels)[:, None]).any(1).mean() * 100)


def class_recalls(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each class the percent of its videos that are recognised, ``[classes]``; NaN for a class without videos."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    right = scores.argmax(1) == labels
    count = np.bincount(labels, minlength=scores.shape[1])
    hits = np.bincount(labels[right], minlength=scores.shape[1])
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, hits / count * 100, np.nan)


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the classes' recalls in percent, as for Toyota Smarthome; classes without videos do not count."""
    return float(np.nanmean(class_recalls(scores, labels)))
