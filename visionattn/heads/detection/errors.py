"""Types of errors of detectors and what each costs, after TIDE.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors" (ECCV 2020, arXiv 2008.08115). The
foreground threshold is an IoU of 0.5, the background threshold 0.1. Each false positive has one type, the first that
applies:

- localization: the largest IoU with an object of its class is in [0.1, 0.5];
- classification: its IoU with an object of another class is at least 0.5;
- duplicate: its IoU with an object of its class that another detection matches is at least 0.5;
- background: its IoU with every object is at most 0.1;
- both: otherwise, that is, its IoU with an object of another class is between 0.1 and 0.5.

An object without a match is missed, unless a localization or classification error belongs to it.

The cost of a type is the AP at an IoU of 0.5 with its errors corrected minus the AP. A localization or classification
error becomes a true positive if it has the highest score of those that belong to its object, and the object has no
match; all other false positives are removed, and missed objects no longer count. The costs do not add up: correcting
one type may reveal another.
"""

from dataclasses import dataclass

import numpy as np

from visionattn.heads.detection.matching import Matches, Objects, average_precision

__all__ = ["TYPES", "Errors", "error_costs", "find_errors"]

TYPES = ("localization", "classification", "duplicate", "background", "both", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1
LOCALIZATION, CLASSIFICATION, DUPLICATE, EMPTY, BOTH, MISSED = range(len(TYPES))


@dataclass(frozen=True)
class Errors:
    """The errors for D detections and G ground-truth objects.

    Attributes:
        kind: index in `TYPES` of each false positive, -1 for other detections, int64 ``[D]``.
        target: object that a localization or classification error belongs to, -1 for others, int64 ``[D]``.
        repairs: the error becomes a true positive when its type is corrected, bool ``[D]``.
        missed: bool ``[G]``.
        unmatched: objects without a match, those that are missed included, bool ``[G]``.
    """

    kind: np.ndarray
    target: np.ndarray
    repairs: np.ndarray
    missed: np.ndarray
    unmatched: np.ndarray

    def counts(self) -> dict[str, int]:
        """Return the number of errors by type."""
        found = np.bincount(self.kind[self.kind >= 0], minlength=len(TYPES))
        found[MISSED] = self.missed.sum()
        return dict(zip(TYPES, found.tolist(), strict=True))


def find_errors(detections: Objects, truth: Objects, matches: Matches) -> Errors:
    """Find the type of each error."""
    number = len(detections)
    first, second = matches.pairs
    same = detections.label[first] == truth.label[second]
    matched = np.zeros(len(truth), bool)
    matched[matches.truth[matches.correct]] = True
    own, own_at = _largest(matches, same, number)
    other, other_at = _largest(matches, ~same, number)
    repeated, _ = _largest(matches, same & matched[second], number)
    wrong = matches.counted & ~matches.correct
    conditions = [
        (own >= BACKGROUND) & (own <= FOREGROUND),
        other >= FOREGROUND,
        repeated >= FOREGROUND,
        np.maximum(own, other) <= BACKGROUND,
    ]
    kind = np.where(wrong, np.select(conditions, (LOCALIZATION, CLASSIFICATION, DUPLICATE, EMPTY), BOTH), -1)
    target = np.select([kind == LOCALIZATION, kind == CLASSIFICATION], [own_at, other_at], -1)
    candidates = np.flatnonzero(target >= 0)
    candidates = candidates[~matched[target[candidates]]]
    # of the errors that belong to an object, the one with the highest score; the first of equal ones
    order = candidates[np.argsort(-detections.score[candidates], kind="stable")]
    objects, best = np.unique(target[order], return_index=True)
    repairs = np.zeros(number, bool)
    repairs[order[best]] = True
    unmatched = ~matched & ~truth.crowd
    missed = unmatched.copy()
    missed[objects] = False
    return Errors(kind, target, repairs, missed, unmatched)


def _largest(matches: Matches, chosen: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest IoU of each detection over the chosen pairs, and the first object with it (0, -1 if none)."""
    (first, second), ious = matches.pairs[:, chosen], matches.ious[chosen]
    order = np.lexsort((second, -ious, first))
    rows, at = np.unique(first[order], return_index=True)
    value, place = np.zeros(number), np.full(number, -1)
    value[rows], place[rows] = ious[order[at]], second[order[at]]
    return value, place


def error_costs(detections: Objects, truth: Objects, matches: Matches, errors: Errors, classes: int) -> dict:
    """Compute what each type of error costs.

    Returns:
        Differences of AP at an IoU of 0.5, in [0, 1], by the names in `TYPES`; those of ``false positives`` (all
        removed) and ``false negatives`` (all objects without a match no longer count); and the AP itself as ``AP50``.
        Like TIDE, a difference below 0 for one of the types becomes 0.
    """
    objects = np.bincount(truth.label[~truth.crowd], minlength=classes)
    evaluated = objects > 0
    counted, correct = matches.counted, matches.correct

    def score(keep: np.ndarray, positive: np.ndarray, label: np.ndarray, objects: np.ndarray) -> float:
        order = np.flatnonzero(keep)
        order = order[np.lexsort((-detections.score[order], label[order]))]
        ends = np.searchsorted(label[order], np.arange(classes + 1))
        values = []
        for index in np.flatnonzero(evaluated):
            rows = order[ends[index] : ends[index + 1]]
            if objects[index] or len(rows):  # a class of which nothing remains does not count
                ap = average_precision(detections.score[rows], positive[rows], objects[index])
                values.append(0.0 if np.isnan(ap) else ap)
        return float(np.mean(values)) if values else 0.0

    base = score(counted, correct, detections.label, objects)
    costs = {"AP50": base}
    for index, name in enumerate(TYPES[:MISSED]):
        mine = errors.kind == index
        fixed = mine & errors.repairs
        label = np.where(fixed, truth.label[errors.target], detections.label) if len(truth) else detections.label
        costs[name] = max(score((counted & ~mine) | fixed, correct | fixed, label, objects) - base, 0.0)
    remaining = objects - np.bincount(truth.label[errors.missed], minlength=classes)
    costs["missed"] = max(score(counted, correct, detections.label, remaining) - base, 0.0)
    costs["false positives"] = score(correct, correct, detections.label, objects) - base
    remaining = objects - np.bincount(truth.label[errors.unmatched], minlength=classes)
    costs["false negatives"] = score(counted, correct, detections.label, remaining) - base
    return costs
