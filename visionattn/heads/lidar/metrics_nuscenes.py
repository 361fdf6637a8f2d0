"""The nuScenes detection metrics: average precision by center distance, and true-positive errors.

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020, section 3.1. A detection is a true
positive if the bird's-eye-view distance from its center to the center of an unmatched ground-truth box of its class
is below a threshold; detections are matched in descending order of score. Translation, scale, orientation and velocity
errors are measured on the true positives at 2 m. Attributes are not evaluated, so the nuScenes detection score (NDS)
is not available.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["RANGES", "DistancePrecision"]

DISTANCES = (0.5, 1.0, 2.0, 4.0)
RANGES = {
    "car": 50.0, "truck": 50.0, "bus": 50.0, "trailer": 50.0, "construction_vehicle": 50.0, "pedestrian": 40.0,
    "motorcycle": 40.0, "bicycle": 40.0, "traffic_cone": 30.0, "barrier": 30.0,
}  # fmt: skip
"""Evaluation range of each class, in meters from the ego vehicle."""

_ERRORS = ("ATE", "ASE", "AOE", "AVE")
_RECALLS = np.linspace(0, 1, 101)
_MIN_VALUE = 0.1  # recall and precision below this are excluded
_NO_HEADING = ("traffic_cone",)
_HALF_TURN = ("barrier",)  # front and back cannot be distinguished


class DistancePrecision:
    """nuScenes average precision: `measure` evaluates one frame, `summarize` combines the records of all frames.

    Args:
        classes: class names, in the order of the labels.
        distances: matching thresholds on the center distance, in meters.
        ranges: maximum distance from the origin of each class, in meters. Defaults to `RANGES`; classes without an
            entry are evaluated at any distance.

    Raises:
        ValueError: if an argument is invalid.
    """

    def __init__(
        self,
        classes: Sequence[str],
        distances: Sequence[float] = DISTANCES,
        ranges: Mapping[str, float] | None = None,
    ) -> None:
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"`classes` must be one or more distinct names, got {list(classes)}")
        if not distances or min(distances) <= 0:
            raise ValueError(f"`distances` must be positive numbers, got {list(distances)}")
        known = RANGES if ranges is None else ranges
        self.classes, self.distances = tuple(classes), tuple(float(d) for d in distances)
        self.reach = np.array([known.get(name, np.inf) for name in classes])

    def measure(self, found: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate one frame.

        Keeps the boxes within the range of their class; detections must also lie in the labeled region.

        Args:
            found: detections: ``boxes`` ``[D, 7]`` (``[D, 9]`` with velocity), ``scores`` ``[D]``, ``labels`` ``[D]``.
            truth: an item of `visionattn.heads.lidar.data.frames.PointCloudSet`. Its ``ignore_boxes`` are not used
                because nuScenes has none.

        Returns:
            The record that `summarize` takes.

        Raises:
            ValueError: if the shapes do not match.
        """
        boxes, scores, labels = (_array(found[key]) for key in ("boxes", "scores", "labels"))
        if boxes.ndim != 2 or boxes.shape[1] not in (7, 9) or not len(boxes) == len(scores) == len(labels):
            raise ValueError(
                f"`boxes`, `scores` and `labels` must have shapes [D, 7 or 9], [D] and [D], "
                f"got {boxes.shape}, {scores.shape} and {labels.shape}"
            )
        boxes = boxes.astype(np.float64)
        if boxes.shape[1] == 7:
            boxes = np.concatenate([boxes, np.full((len(boxes), 2), np.nan)], 1)
        labels = labels.astype(np.int64)
        kept = np.hypot(boxes[:, 0], boxes[:, 1]) < self.reach[labels]
        region = truth.get("labelled_region")
        if region is not None:
            kept &= region.sees(boxes)
        true, true_labels = _array(truth["boxes"])[:, :7].astype(np.float64), _array(truth["labels"]).astype(np.int64)
        velocity = truth.get("velocity")
        velocity = np.full((len(true), 2), np.nan) if velocity is None else _array(velocity).astype(np.float64)
        near = np.hypot(true[:, 0], true[:, 1]) < self.reach[true_labels]
        return {
            "key": truth.get("path", truth.get("frame")),
            "boxes": boxes[kept],
            "scores": scores[kept].astype(np.float64),
            "labels": labels[kept],
            "true": np.concatenate([true, velocity], 1)[near],
            "true_labels": true_labels[near],
        }

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Compute the metrics over all frames; duplicate records of a frame are dropped.

        Returns:
            In percent: ``AP_car_0.5m`` (one per class and threshold), ``AP_car`` (their mean) and ``mAP`` (mean over
            classes). Errors: ``ATE_car`` (meters), ``ASE_car`` (1 - IoU of the aligned boxes), ``AOE_car`` (radians),
            ``AVE_car`` (meters per second), and their means ``mATE``, ``mASE``, ``mAOE`` and ``mAVE``. Classes
            without ground-truth boxes are omitted.
        """
        seen: dict[Any, Mapping[str, Any]] = {}
        for number, record in enumerate(records):
            seen.setdefault(("frame", record["key"]) if record["key"] is not None else number, record)
        frames = list(seen.values())
        figures: dict[str, float] = {}
        means: dict[str, list[float]] = {"mAP": [], **{f"m{name}": [] for name in _ERRORS}}
        for label, name in enumerate(self.classes):
            true = [frame["true"][frame["true_labels"] == label] for frame in frames]
            total = sum(len(boxes) for boxes in true)
            if total == 0:
                continue
            values = []
            for distance in self.distances:
                right, scores, pairs = _match(frames, true, label, distance)
                values.append(_average_precision(right, total) * 100)
                figures[f"AP_{name}_{distance:g}m"] = values[-1]
                if distance == 2.0:
                    for error, value in self._errors(name, right, scores, pairs, total).items():
                        figures[f"{error}_{name}"] = value
                        means[f"m{error}"].append(value)
            figures[f"AP_{name}"] = float(np.mean(values))
            means["mAP"].append(figures[f"AP_{name}"])
        return figures | {name: float(np.mean(values)) for name, values in means.items() if values}

    @staticmethod
    def _errors(name: str, right: np.ndarray, scores: np.ndarray, pairs: np.ndarray, total: int) -> dict[str, float]:
        """True-positive errors: cumulative means averaged over recalls above 0.1; 1 if recall does not exceed 0.1."""
        found, true = pairs[:, 0], pairs[:, 1]
        smaller = np.minimum(found[:, 3:6], true[:, 3:6]).prod(-1)
        union = found[:, 3:6].prod(-1) + true[:, 3:6].prod(-1) - smaller
        period = np.pi if name in _HALF_TURN else 2 * np.pi
        turn = (found[:, 6] - true[:, 6] + period / 2) % period - period / 2
        errors = {
            "ATE": np.linalg.norm(found[:, :2] - true[:, :2], axis=-1),
            "ASE": 1 - smaller / union,
            "AOE": np.abs(turn),
            "AVE": np.linalg.norm(found[:, 7:9] - true[:, 7:9], axis=-1),
        }
        if name in _NO_HEADING:
            del errors["AOE"]
        if name in _NO_HEADING + _HALF_TURN or not np.isfinite(errors["AVE"]).any():
            del errors["AVE"]
        recall = right.cumsum() / total
        at = np.interp(_RECALLS, recall, scores, right=0) if len(right) else np.zeros(101)
        last = int(np.flatnonzero(at)[-1]) if at.any() else 0
        first = round(100 * _MIN_VALUE) + 1
        if last < first:
            return dict.fromkeys(errors, 1.0)
        hit = scores[right]
        result = {}
        for error, values in errors.items():
            sampled = np.interp(at[::-1], hit[::-1], _running_mean(values)[::-1])[::-1]
            result[error] = float(sampled[first : last + 1].mean())
        return result


def _match(
    frames: Sequence[Mapping[str, Any]], true: Sequence[np.ndarray], label: int, distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the detections of one class, best score first: true-positive flags, scores, and the matched pairs."""
    rows = [np.flatnonzero(frame["labels"] == label) for frame in frames]
    owner = np.repeat(np.arange(len(frames)), [len(r) for r in rows])
    row = np.concatenate(rows).astype(np.int64)
    scores = np.concatenate([frame["scores"][r] for frame, r in zip(frames, rows, strict=True)])
    free = [np.ones(len(boxes), bool) for boxes in true]
    order = np.argsort(-scores, kind="stable")
    right = np.zeros(len(order), bool)
    pairs = []
    for place, index in enumerate(order):
        number = owner[index]
        if not free[number].any():
            continue
        box = frames[number]["boxes"][row[index]]
        apart = np.hypot(*(true[number][:, :2] - box[:2]).T)
        apart[~free[number]] = np.inf
        nearest = int(apart.argmin())
        if apart[nearest] < distance:
            free[number][nearest] = False
            right[place] = True
            pairs.append((box, true[number][nearest]))
    return right, scores[order], np.array(pairs, np.float64).reshape(-1, 2, 9)


def _average_precision(right: np.ndarray, total: int) -> float:
    """Normalized area under the 101-point precision-recall curve above precision 0.1 and recall 0.1."""
    if not right.any():
        return 0.0
    true = right.cumsum()
    precision = np.interp(_RECALLS, true / total, true / np.arange(1, len(right) + 1), right=0)
    above = precision[round(100 * _MIN_VALUE) + 1 :] - _MIN_VALUE
    return float(above.clip(min=0).mean() / (1 - _MIN_VALUE))


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Cumulative mean ignoring NaN; 1 before the first finite value."""
    known = np.isfinite(values)
    count = known.cumsum()
    return np.where(count > 0, np.where(known, values, 0).cumsum() / np.maximum(count, 1), 1.0)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
