"""The nuScenes detection metrics: average precision by center distance, true-positive errors, and their summary NDS.

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020, section 3.1. A detection is a true
positive if the bird's-eye-view distance from its center to the center of an unmatched ground-truth box of its class
is below a threshold; detections are matched in descending order of score. Translation, scale, orientation, velocity and
attribute errors are measured on the true positives at 2 m. The nuScenes detection score (NDS) is the mean of mAP, with
weight 5, and of 1 - error for each of the five errors, where errors above 1 count as 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from visionattn.heads.lidar.data.boxes import points_in_box
from visionattn.heads.lidar.data.nuscenes_results import ATTRIBUTES, attribute_names

__all__ = ["RANGES", "DistancePrecision"]

DISTANCES = (0.5, 1.0, 2.0, 4.0)
RANGES = {
    "car": 50.0, "truck": 50.0, "bus": 50.0, "trailer": 50.0, "construction_vehicle": 50.0, "pedestrian": 40.0,
    "motorcycle": 40.0, "bicycle": 40.0, "traffic_cone": 30.0, "barrier": 30.0,
}  # fmt: skip
"""Evaluation range of each class, in meters from the ego vehicle."""

_ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")
_ERROR_DISTANCE = 2.0  # matching threshold for the errors, in meters
_RECALLS = np.linspace(0, 1, 101)
_MIN_VALUE = 0.1  # recall and precision below this are excluded
_EXCLUDED = {"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")}  # errors without a meaning
_HALF_TURN = ("barrier",)  # front and back cannot be distinguished
_RACK_CLASSES = ("bicycle", "motorcycle")  # not evaluated in bicycle racks


class DistancePrecision:
    """nuScenes average precision: `measure` evaluates one frame, `summarize` combines the records of all frames.

    Args:
        classes: class names, in the order of the labels.
        distances: matching thresholds on the center distance, in meters.
        ranges: maximum distance from the origin of each class, in meters. Defaults to `RANGES`; classes without an
            entry are evaluated at any distance.
        all_classes: whether classes without ground-truth boxes count too, with an AP of 0 and errors of 1, as in the
            development kit of nuScenes.

    Raises:
        ValueError: if an argument is invalid.
    """

    def __init__(
        self,
        classes: Sequence[str],
        distances: Sequence[float] = DISTANCES,
        ranges: Mapping[str, float] | None = None,
        all_classes: bool = False,
    ) -> None:
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"`classes` must be one or more distinct names, got {list(classes)}")
        if not distances or min(distances) <= 0:
            raise ValueError(f"`distances` must be positive numbers, got {list(distances)}")
        known = RANGES if ranges is None else ranges
        self.classes, self.distances = tuple(classes), tuple(float(d) for d in distances)
        self.reach = np.array([known.get(name, np.inf) for name in classes])
        self.all_classes = all_classes

    def measure(self, found: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate one frame.

        Keeps the boxes within the range of their class from the vehicle, and no bicycles and motorcycles in bicycle
        racks; detections must also lie in the labeled region. Ground-truth boxes without points are not in items.

        Args:
            found: detections: ``boxes`` ``[D, 7]`` (``[D, 9]`` with velocity), ``scores`` ``[D]``, ``labels`` ``[D]``.
                Their attributes follow from class and speed, see `attribute_names`.
            truth: an item of `visionattn.heads.lidar.data.frames.PointCloudSet`. Its ``ignore_boxes`` are not used.

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
        names = attribute_names(self.classes, labels, boxes[:, 7:9])
        kept = self._evaluated(boxes, labels, truth)
        region = truth.get("labelled_region")
        if region is not None:
            kept &= region.sees(boxes)
        true, true_labels = _array(truth["boxes"])[:, :7].astype(np.float64), _array(truth["labels"]).astype(np.int64)
        known = {"AVE": truth.get("velocity") is not None, "AAE": truth.get("attributes") is not None}
        velocity = _array(truth["velocity"]) if known["AVE"] else np.full((len(true), 2), np.nan)
        attributes = _array(truth["attributes"]) if known["AAE"] else np.full(len(true), -1)
        near = self._evaluated(true, true_labels, truth)
        return {
            "key": truth.get("path", truth.get("frame")),
            "boxes": np.column_stack([boxes, _codes(names, len(boxes))])[kept],
            "scores": scores[kept].astype(np.float64),
            "labels": labels[kept],
            "true": np.column_stack([true, velocity.astype(np.float64), attributes])[near],
            "true_labels": true_labels[near],
            "known": known,
        }

    def _evaluated(self, boxes: np.ndarray, labels: np.ndarray, truth: Mapping[str, Any]) -> np.ndarray:
        """Return which boxes are within the range of their class and not in a bicycle rack, bool ``[N]``."""
        ego, pose = truth.get("ego"), truth.get("to_global")
        offset = boxes[:, :3] if ego is None else boxes[:, :3] - _array(ego)
        if pose is not None:  # distances are horizontal, and the sensor may be tilted
            offset = offset @ _array(pose)[:3, :3].T
        kept = np.hypot(offset[:, 0], offset[:, 1]) < self.reach[labels]
        cycles = np.array([name in _RACK_CLASSES for name in self.classes])[labels]
        for rack in _array(truth.get("bike_racks", ())):
            inside = np.zeros(len(boxes), bool)
            inside[points_in_box(boxes, rack)] = True
            kept &= ~(inside & cycles)
        return kept

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Compute the metrics over all frames; duplicate records of a frame are dropped.

        Returns:
            In percent: ``NDS``, ``mAP`` (mean over classes), ``AP_car`` (mean over thresholds) and ``AP_car_0.5m`` (one
            per class and threshold). Errors: ``ATE_car`` (meters), ``ASE_car`` (1 - IoU of the aligned boxes),
            ``AOE_car`` (radians), ``AVE_car`` (meters per second), ``AAE_car`` (1 - accuracy of the attributes), and
            their means ``mATE``, ``mASE``, ``mAOE``, ``mAVE`` and ``mAAE``. Without known velocities or attributes,
            AVE, AAE and NDS are omitted; so are classes without ground-truth boxes unless ``all_classes`` is set.
        """
        seen: dict[Any, Mapping[str, Any]] = {}
        for number, record in enumerate(records):
            seen.setdefault(("frame", record["key"]) if record["key"] is not None else number, record)
        frames = list(seen.values())
        unknown = {error for error in ("AVE", "AAE") if not any(frame["known"][error] for frame in frames)}
        figures: dict[str, float] = {}
        means: dict[str, list[float]] = {"mAP": [], **{f"m{name}": [] for name in _ERRORS}}
        for label, name in enumerate(self.classes):
            true = [frame["true"][frame["true_labels"] == label] for frame in frames]
            total = sum(len(boxes) for boxes in true)
            if total == 0 and not self.all_classes:
                continue
            matched = {
                distance: _match(frames, true, label, distance) for distance in {*self.distances, _ERROR_DISTANCE}
            }
            values = []
            for distance in self.distances:
                values.append(_average_precision(matched[distance][0], total) * 100)
                figures[f"AP_{name}_{distance:g}m"] = values[-1]
            figures[f"AP_{name}"] = float(np.mean(values))
            means["mAP"].append(figures[f"AP_{name}"])
            measured = _true_positive_errors(name, *matched[_ERROR_DISTANCE], total)
            for error, value in measured.items():
                if error not in unknown:
                    figures[f"{error}_{name}"] = value
                    means[f"m{error}"].append(value)
        summary = {name: float(np.mean(values)) for name, values in means.items() if values}
        if all(f"m{error}" in summary for error in _ERRORS):
            right = sum(1 - min(1.0, summary[f"m{error}"]) for error in _ERRORS)
            summary = {"NDS": (5 * summary["mAP"] + 100 * right) / 10, **summary}
        return summary | figures

    def table(self, figures: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Arrange the figures of `summarize` by class: AP and errors, -1 for those that do not exist."""
        columns = ("AP", *_ERRORS)
        return {
            name: {column: figures.get(f"{column}_{name}", -1.0) for column in columns}
            for name in self.classes
            if f"AP_{name}" in figures
        }


def _true_positive_errors(
    name: str, right: np.ndarray, scores: np.ndarray, pairs: np.ndarray, total: int
) -> dict[str, float]:
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
        "AAE": np.where(true[:, 9] < 0, np.nan, found[:, 9] != true[:, 9]),
    }
    errors = {error: values for error, values in errors.items() if error not in _EXCLUDED.get(name, ())}
    recall = right.cumsum() / max(total, 1)
    at = np.interp(_RECALLS, recall, scores, right=0) if right.any() else np.zeros(101)
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
    return right, scores[order], np.array(pairs, np.float64).reshape(-1, 2, 10)


def _average_precision(right: np.ndarray, total: int) -> float:
    """Normalized area under the 101-point precision-recall curve above precision 0.1 and recall 0.1."""
    if not right.any():
        return 0.0
    true = right.cumsum()
    precision = np.interp(_RECALLS, true / total, true / np.arange(1, len(right) + 1), right=0)
    above = precision[round(100 * _MIN_VALUE) + 1 :] - _MIN_VALUE
    return float(above.clip(min=0).mean() / (1 - _MIN_VALUE))


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Cumulative mean ignoring NaN: 0 before the first number, and 1 everywhere if there is none."""
    known = np.isfinite(values)
    if not known.any():
        return np.ones(len(values))
    return np.where(known, values, 0).cumsum() / np.maximum(known.cumsum(), 1)


def _codes(names: Sequence[str] | None, count: int) -> np.ndarray:
    """Indices of attributes in `ATTRIBUTES`, -1 for none."""
    return np.array([ATTRIBUTES.index(name) if name else -1 for name in names or [""] * count], np.int64)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
