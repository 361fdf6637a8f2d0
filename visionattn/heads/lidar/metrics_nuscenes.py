"""Average precision of boxes by the distance of their centres seen from above, as nuScenes measures it.

Caesar et al., "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020, section 3.1. A detection is right if
its centre is nearer than a threshold to that of a labelled box of its class, which no better-scored one has taken.
Right ones also have errors of translation, scale, orientation and velocity, at a threshold of 2 m. The attributes of
nuScenes are not measured here, so that its detection score (NDS) is not either.
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
"""Metres from the vehicle within which nuScenes measures a class."""

_ERRORS = ("ATE", "ASE", "AOE", "AVE")
_RECALLS = np.linspace(0, 1, 101)
_LEAST = 0.1  # recall and precision below it do not count
_NO_HEADING = ("traffic_cone",)
_HALF_TURN = ("barrier",)  # front and back are alike


class DistancePrecision:
    """Measures detections; frames one by one by `measure`, all records together by `summarize`.

    Args:
        classes: names, in the order of the labels.
        distances: thresholds in metres.
        ranges: metres from the origin within which boxes of each class are measured; None for `RANGES`, and
            everywhere for classes that are not in it.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        classes: Sequence[str],
        distances: Sequence[float] = DISTANCES,
        ranges: Mapping[str, float] | None = None,
    ) -> None:
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"classes={list(classes)} must be one or more different names")
        if not distances or min(distances) <= 0:
            raise ValueError(f"distances={list(distances)} must be above 0")
        known = RANGES if ranges is None else ranges
        self.classes, self.distances = tuple(classes), tuple(float(d) for d in distances)
        self.reach = np.array([known.get(name, np.inf) for name in classes])

    def measure(self, found: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
        """The record of one frame: what lies within the range of its class and, for detections, the labelled region.

        Args:
            found: ``boxes`` ``[D, 7]`` or ``[D, 9]`` with a velocity, ``scores`` ``[D]``, ``labels`` ``[D]``.
            truth: an item of `visionattn.heads.lidar.data.frames.PointCloudSet`; its ``ignore_boxes`` are not used, as
                nuScenes has none.

        Raises:
            ValueError: shapes do not fit together.
        """
        boxes, scores, labels = (_array(found[key]) for key in ("boxes", "scores", "labels"))
        if boxes.ndim != 2 or boxes.shape[1] not in (7, 9) or not len(boxes) == len(scores) == len(labels):
            raise ValueError(
                f"boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} must be [D, 7 or 9], [D], [D]"
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
        """Figures over all frames; a frame that several processes measured counts once.

        In percent ``AP_car_0.5m`` and so on, ``AP_car``, their mean, and ``mAP``, the mean over classes; errors
        ``ATE_car`` (metres), ``ASE_car`` (1 - IoU of aligned boxes), ``AOE_car`` (radians), ``AVE_car`` (metres per
        second), and their means ``mATE`` and so on. Classes without a labelled box have none.
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
        """Means over recalls of the running means of errors; 1 where recall does not come above 0.1."""
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
        first = round(100 * _LEAST) + 1
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
    """Whether each detection of a class is right, its score, and pairs of right ones; the best-scored first."""
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
    """Area above precision 0.1 and recall 0.1 of precision interpolated at 101 recalls, by the area there is."""
    if not right.any():
        return 0.0
    true = right.cumsum()
    precision = np.interp(_RECALLS, true / total, true / np.arange(1, len(right) + 1), right=0)
    above = precision[round(100 * _LEAST) + 1 :] - _LEAST
    return float(above.clip(min=0).mean() / (1 - _LEAST))


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean of all up to each, those that are NaN left out; 1 before the first that is not."""
    known = np.isfinite(values)
    count = known.cumsum()
    return np.where(count > 0, np.where(known, values, 0).cumsum() / np.maximum(count, 1), 1.0)


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
