"""The Waymo detection metrics: AP and heading-weighted AP (APH) of 3-D boxes at two levels of difficulty.

Sun et al., "Scalability in Perception for Autonomous Driving: Waymo Open Dataset", CVPR 2020, section 4.1, with the
details of the development kit of Waymo. For each score threshold, the detections of a frame are matched with the
ground-truth boxes of their class so that the sum of the IoU of the pairs, which must reach a threshold, is largest.
Matching and true positives are the same for both levels: at level 1, a missed box of level 2 is not a false negative.
In APH, the precision counts each true positive with 1 - heading error / pi.

The development kit evaluates a limited number of score thresholds; here every score is one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionattn.errors import require
from visionattn.heads.lidar.data.boxes import wrap_angle
from visionattn.heads.lidar.rotated_boxes import iou_3d

__all__ = ["WaymoPrecision"]

LEVELS = ("L1", "L2")
IOU = {"vehicle": 0.7, "car": 0.7}
"""IoU threshold of each class; 0.5 for all others."""

_RECALL_STEP = 0.05  # the curve has a point at least at each such difference in recall


class WaymoPrecision:
    """Waymo AP and APH: `measure` evaluates one frame, `summarize` combines the records of all frames.

    A false positive is not counted if it overlaps an ignored box (of its class, or of any class if it has none) with
    the IoU threshold, or is outside the labeled region.

    Args:
        classes: class names, in the order of the labels.
        iou: IoU threshold of each class, or one for all. Defaults to 0.7 for vehicles and 0.5 for other classes.

    Raises:
        ValueError: if an argument is invalid.
    """

    def __init__(self, classes: Sequence[str], iou: Mapping[str, float] | float | None = None) -> None:
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"`classes` must be one or more distinct names, got {list(classes)}")
        if isinstance(iou, Mapping) and not set(classes) <= set(iou):
            raise ValueError(f"`iou` must have a value for each of {list(classes)}, got {dict(iou)}")
        default = IOU if iou is None else iou
        self.iou = [default.get(name.lower() if iou is None else name, 0.5) if isinstance(default, Mapping) else default
                    for name in classes]  # fmt: skip
        if not all(0 < value < 1 for value in self.iou):
            raise ValueError(f"`iou` must be between 0 and 1, got {iou}")
        self.classes = tuple(classes)

    def measure(self, found: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate one frame.

        Args:
            found: detections: ``boxes`` ``[D, 7 or more]``, ``scores`` ``[D]``, ``labels`` ``[D]``.
            truth: an item of `visionattn.heads.lidar.data.frames.PointCloudSet`: ``boxes``, ``labels`` and, optionally,
                ``difficulty`` (0 is level 1, greater is level 2, less is ignored), ``ignore_boxes``, ``ignore_labels``,
                ``labelled_region``, and ``path`` or ``frame``, which identifies duplicate records.

        Returns:
            The record that `summarize` takes: by label, the number of boxes of both levels and one row for each
            counted detection, see `_events`.

        Raises:
            ValueError: if the shapes do not match, or a score is NaN.
        """
        boxes, scores, labels = (_array(found[key]) for key in ("boxes", "scores", "labels"))
        if boxes.ndim != 2 or boxes.shape[1] < 7 or not len(boxes) == len(scores) == len(labels):
            raise ValueError(
                f"`boxes`, `scores` and `labels` must have shapes [D, 7], [D] and [D], "
                f"got {boxes.shape}, {scores.shape} and {labels.shape}"
            )
        if np.isnan(scores).any():
            raise ValueError("`scores` must not contain NaN")
        boxes = boxes[:, :7].astype(np.float64)
        true, true_labels = _array(truth["boxes"])[:, :7].astype(np.float64), _array(truth["labels"])
        difficulty = _array(truth.get("difficulty", np.zeros(len(true), np.int64)))
        ignored = _array(truth.get("ignore_boxes", np.zeros((0, 7))))[:, :7].astype(np.float64)
        ignored_labels = _array(truth.get("ignore_labels", np.zeros(0, np.int64)))
        hard = difficulty < 0
        ignored, ignored_labels = (
            np.concatenate([ignored, true[hard]]),
            np.concatenate([ignored_labels, true_labels[hard]]),
        )
        true, true_labels, difficulty = true[~hard], true_labels[~hard], difficulty[~hard]
        region = truth.get("labelled_region")
        if region is not None:
            seen = region.sees(boxes)
            boxes, scores, labels = boxes[seen], scores[seen], labels[seen]
        record: dict[str, Any] = {"key": truth.get("path", truth.get("frame"))}
        for label, threshold in enumerate(self.iou):
            mine = np.flatnonzero(labels == label)
            mine = mine[np.argsort(-scores[mine], kind="stable")]
            own = true_labels == label
            other = ignored[(ignored_labels == label) | (ignored_labels == -1)]
            excused = (_iou(boxes[mine], other) >= threshold).any(1)
            overlap = _iou(boxes[mine], true[own])
            accuracy = 1 - np.abs(wrap_angle(boxes[mine, None, 6] - true[own][None, :, 6])) / np.pi
            events = _events(np.where(overlap >= threshold, overlap, 0.0), accuracy, difficulty[own] == 0, excused)
            count = np.array([(difficulty[own] == 0).sum(), own.sum()])
            record[label] = (count, scores[mine].astype(np.float64), events)
        return record

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Compute the metrics over all frames, in percent; duplicate records of a frame are dropped.

        Returns:
            ``mAP_L1``, ``mAPH_L1``, ``mAP_L2`` and ``mAPH_L2`` (means over classes), then ``AP_vehicle_L1``,
            ``APH_vehicle_L1``, ... Classes without ground-truth boxes of a level are omitted.
        """
        seen: dict[Any, Mapping[str, Any]] = {}
        for number, record in enumerate(records):
            seen.setdefault(("frame", record["key"]) if record["key"] is not None else number, record)
        figures: dict[str, float] = {}
        means: dict[str, list[float]] = {f"m{name}_{level}": [] for level in LEVELS for name in ("AP", "APH")}
        for label, name in enumerate(self.classes):
            parts = [record[label] for record in seen.values()]
            total = sum(count for count, _, _ in parts) if parts else np.zeros(2)
            scores = np.concatenate([scores for _, scores, _ in parts]) if parts else np.zeros(0)
            events = np.concatenate([events for _, _, events in parts]) if parts else np.zeros((0, 4))
            order = np.argsort(-scores, kind="stable")
            scores, (true, false, level_1, accuracy) = scores[order], events[order].cumsum(0).T
            # Detections with equal scores enter together.
            last = np.append(scores[1:] != scores[:-1], True)[: len(scores)]
            for level, number, matched in zip(LEVELS, total, (level_1, true), strict=True):
                if number == 0:
                    continue
                missed = number - matched
                recall = true / np.maximum(true + missed, 1e-12)
                for kind, right in (("AP", true), ("APH", accuracy)):
                    precision = right / np.maximum(true + false, 1e-12)
                    value = _average_precision(precision[last], recall[last]) * 100
                    figures[f"{kind}_{name}_{level}"] = value
                    means[f"m{kind}_{level}"].append(value)
        return {name: float(np.mean(values)) for name, values in means.items() if values} | figures

    def table(self, figures: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """Arrange the figures of `summarize` by class: AP and APH of both levels, -1 for those that do not exist."""
        kinds = [f"{kind}_{{}}_{level}" for level in LEVELS for kind in ("AP", "APH")]
        return {
            name: {kind.replace("_{}_", " "): figures.get(kind.format(name), -1.0) for kind in kinds}
            for name in self.classes
            if any(kind.format(name) in figures for kind in kinds)
        }


def _events(overlap: np.ndarray, accuracy: np.ndarray, level_1: np.ndarray, excused: np.ndarray) -> np.ndarray:
    """Changes of the counts of a frame when its detections are added one by one.

    Args:
        overlap: IoU ``[D, M]`` of detections in descending order of score with boxes, 0 below the threshold.
        accuracy: heading accuracy ``[D, M]``, in [0, 1].
        level_1: which boxes are of level 1, bool ``[M]``.
        excused: which detections are not false positives, bool ``[D]``.

    Returns:
        float64 ``[D, 4]``: change of the numbers of true positives, of false positives, of matched boxes of level 1,
        and of the summed heading accuracy.
    """
    events = np.zeros((len(overlap), 4))
    events[:, 1] = ~excused
    group = _components(overlap > 0)
    for number in np.unique(group[group >= 0]):
        rows = np.flatnonzero(group == number)
        before = np.zeros(4)
        for size in range(1, len(rows) + 1):
            used = rows[:size]
            columns = np.flatnonzero((overlap[used] > 0).any(0))
            chosen, matched = _assign(overlap[np.ix_(used, columns)])
            pairs = used[chosen], columns[matched]
            rest = np.setdiff1d(used, pairs[0])
            after = np.array(
                [len(chosen), (~excused[rest]).sum(), level_1[pairs[1]].sum(), accuracy[pairs].sum()], np.float64
            )
            events[used[-1]] = after - before
            before = after
    return events


def _components(linked: np.ndarray) -> np.ndarray:
    """Number of the connected component of each row of a bipartite graph ``[D, M]``, -1 for rows without an edge."""
    count = len(linked)
    graph = require("scipy.sparse").coo_array(
        (np.ones(linked.sum()), (linked.nonzero()[0], count + linked.nonzero()[1])), shape=(sum(linked.shape),) * 2
    )
    _, group = require("scipy.sparse.csgraph").connected_components(graph, directed=False)
    return np.where(linked.any(1), group[:count], -1)


def _assign(overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pairs with the largest sum of IoU, without pairs of IoU 0."""
    rows, columns = require("scipy.optimize").linear_sum_assignment(overlap, maximize=True)
    positive = overlap[rows, columns] > 0
    return rows[positive], columns[positive]


def _average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area under the precision-recall curve by the trapezoidal rule, in [0, 1].

    The precision at a recall is the highest at that recall or above. Where the recall of neighboring points differs by
    more than 0.05, points with the precision of the higher recall are inserted at steps of 0.05 below it, so that no
    straight line spans more. From the lowest recall to 0 the precision is constant.
    """
    recalls, where = np.unique(recall, return_inverse=True)
    best = np.zeros(len(recalls))
    np.maximum.at(best, where, precision)
    best = np.maximum.accumulate(best[::-1])[::-1]
    best, recalls = best[recalls > 0], recalls[recalls > 0]
    if not len(recalls):
        return 0.0
    area = best[0] * recalls[0]
    for low, high, p_low, p_high in zip(recalls[:-1], recalls[1:], best[:-1], best[1:], strict=True):
        flat = max(int(np.ceil((high - low - 1e-6) / _RECALL_STEP)) - 1, 0) * _RECALL_STEP
        area += p_high * flat + (high - low - flat) * (p_low + p_high) / 2
    return float(area)


def _iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    return iou_3d(torch.from_numpy(boxes_a), torch.from_numpy(boxes_b)).numpy()


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
