"""KITTI average precision of oriented boxes in bird's-eye view and in 3D.

Geiger, Lenz, Urtasun, "Are we ready for autonomous driving?", CVPR 2012; with 40 recall points as in the benchmark
since 2019 (Simonelli et al., ICCV 2019), or the 11 used before. A detection is a true positive if its IoU with a
ground-truth box of its class exceeds a threshold. For classes with fewer than 41 boxes, on which KITTI's procedure
cannot reach 100, precision is sampled at the true recalls instead. `BevPrecision.measure` evaluates one frame, in any
process; `BevPrecision.summarize` combines the records of all frames.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionattn.heads.lidar.rotated_boxes import bev_iou, iou_3d

__all__ = ["LEVELS", "BevPrecision", "precision_at_recalls", "score_levels"]

LEVELS = ("easy", "moderate", "hard")
IOU_TYPES = ("bev", "3d")
IOU = {"car": 0.7, "truck": 0.7, "bus": 0.7, "van": 0.7, "vehicle": 0.7}
"""Default IoU threshold of each class; 0.5 for all others."""

_SAMPLES = 41  # KITTI samples precision at recalls 0, 1/40, ..., 1


class BevPrecision:
    """KITTI average precision and average orientation similarity.

    Excluded from the evaluation: ground-truth boxes harder than the level and detections matched to one, detections
    matched to an ignored box (of their class, or of any class if it has none), and detections outside the labeled
    region.

    Args:
        classes: class names, in the order of the labels.
        iou: IoU threshold of each class, or one for all. Defaults to 0.7 for vehicles and 0.5 for other classes.
        recall_points: 40 or 11.
        levels: names of the difficulties 0, 1, ...; each level includes the easier ones. Give one name for datasets
            without difficulties.
        dont_care: also exclude detections in the camera's DontCare regions. KITTI does so for 2D boxes only.
        least_height: for each level, the minimum height in pixels of a detection's 2D box in the camera image; smaller
            detections are excluded. KITTI uses 40, 25 and 25. None disables the rule; it needs a camera view.

    Raises:
        ValueError: if an argument is invalid.
    """

    def __init__(
        self,
        classes: Sequence[str],
        iou: Mapping[str, float] | float | None = None,
        recall_points: int = 40,
        levels: Sequence[str] = LEVELS,
        dont_care: bool = False,
        least_height: Sequence[float] | None = None,
    ) -> None:
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(f"`classes` must be one or more distinct names, got {list(classes)}")
        if recall_points not in (11, 40):
            raise ValueError(f"`recall_points` must be 11 or 40, got {recall_points}")
        if not levels:
            raise ValueError("`levels` must have at least one name, got none")
        if least_height is not None and len(least_height) != len(levels):
            raise ValueError(
                f"`least_height` must have one number for each of {list(levels)}, got {list(least_height)}"
            )
        if isinstance(iou, Mapping):
            missing = [name for name in classes if name not in iou]
            if missing:
                raise ValueError(f"`iou` must have a value for the class {missing[0]!r}, got {dict(iou)}")
            self.iou = [float(iou[name]) for name in classes]
        else:
            self.iou = [IOU.get(name.lower(), 0.5) if iou is None else float(iou) for name in classes]
        if not all(0 < value < 1 for value in self.iou):
            raise ValueError(f"`iou` must be between 0 and 1, got {iou}")
        self.classes, self.recall_points, self.levels = tuple(classes), recall_points, tuple(levels)
        self.dont_care, self.least_height = dont_care, least_height

    def measure(self, found: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
        """Evaluate one frame.

        Args:
            found: detections: ``boxes`` ``[D, 7]``, ``scores`` ``[D]``, ``labels`` ``[D]``.
            truth: an item of `visionattn.heads.lidar.data.frames.PointCloudSet` with ``boxes``, ``labels`` and,
                optionally, ``difficulty``, ``ignore_boxes``, ``ignore_labels``, ``labelled_region``, and ``path`` or
                ``frame``, which identifies duplicate records.

        Returns:
            The record that `summarize` takes: IoU matrices, scores, labels, headings and difficulties.

        Raises:
            ValueError: if the shapes do not match, or a score is NaN.
        """
        boxes, scores, labels = (
            _array(found["boxes"]),
            _array(found["scores"]),
            _array(found["labels"]).astype(np.int64),
        )
        if boxes.ndim != 2 or boxes.shape[1] < 7 or not len(boxes) == len(scores) == len(labels):
            raise ValueError(
                f"`boxes`, `scores` and `labels` must have shapes [D, 7], [D] and [D], "
                f"got {boxes.shape}, {scores.shape} and {labels.shape}"
            )
        if np.isnan(scores).any():
            raise ValueError("`scores` must not contain NaN")
        boxes = boxes[:, :7].astype(np.float64)
        true = _array(truth["boxes"])[:, :7].astype(np.float64)
        true_labels = _array(truth["labels"]).astype(np.int64)
        none = np.zeros(0, np.int64)
        ignored = _array(truth.get("ignore_boxes", np.zeros((0, 7))))[:, :7].astype(np.float64)
        difficulty = _array(truth.get("difficulty", np.zeros(len(true), np.int64)))
        height = np.full(len(boxes), np.inf)
        region = truth.get("labelled_region")
        if region is not None:
            counted = region.counts(boxes) if self.dont_care else region.sees(boxes)
            boxes, scores, labels = boxes[counted], scores[counted], labels[counted]
            rectangles = region.image_boxes(boxes)
            height = rectangles[:, 3] - rectangles[:, 1]
        everything = np.concatenate([true, ignored])
        record = {
            "key": truth.get("path", truth.get("frame")),
            "scores": scores.astype(np.float64),
            "labels": labels,
            "height": height,
            "heading": boxes[:, 6],
            "true_labels": np.concatenate([true_labels, _array(truth.get("ignore_labels", none - 1))]).astype(np.int64),
            "difficulty": np.concatenate([difficulty, np.full(len(ignored), -1)]).astype(np.int64),
            "true_heading": everything[:, 6],
        }
        pair = torch.from_numpy(boxes), torch.from_numpy(everything)
        record["bev"] = bev_iou(*pair).numpy().astype(np.float32)
        record["3d"] = iou_3d(*pair).numpy().astype(np.float32)
        return record

    def summarize(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Compute the metrics over all frames, in percent; duplicate records of a frame are dropped.

        Returns:
            ``AP_3d_car_easy``: one value per IoU type (``bev``, ``3d``), class and level with ground-truth boxes;
            ``AOS_3d_car_easy``: the same with each true positive weighted by ``(1 + cos(heading difference)) / 2``;
            ``mAP_3d_easy``: the mean AP over classes. AP of the main level comes first, AOS last.
        """
        seen: dict[Any, Mapping[str, Any]] = {}
        for number, record in enumerate(records):
            seen.setdefault(("frame", record["key"]) if record["key"] is not None else number, record)
        frames = list(seen.values())
        figures: dict[str, float] = {}
        for iou_type in IOU_TYPES:
            for number, level in enumerate(self.levels):
                values = []
                for label, name in enumerate(self.classes):
                    result = self._class_precision(frames, iou_type, label, number)
                    if result is not None:
                        figures[f"AP_{iou_type}_{name}_{level}"], figures[f"AOS_{iou_type}_{name}_{level}"] = result
                        values.append(result[0])
                if values:
                    figures[f"mAP_{iou_type}_{level}"] = float(np.mean(values))
        return dict(sorted(figures.items(), key=lambda f: (f[0].startswith("AOS"), f[0].endswith(("_easy", "_hard")))))

    def _class_precision(
        self, frames: Sequence[Mapping[str, Any]], iou_type: str, label: int, level: int
    ) -> tuple[float, float] | None:
        parts = [part for frame in frames if (part := self._part(frame, iou_type, label, level)) is not None]
        total = sum(int(part["counted"].sum()) for part in parts)
        if total == 0:
            return None
        least = self.iou[label]
        right = np.concatenate([_scores_of_right(part, least) for part in parts])
        levels = score_levels(right, total)
        counts = np.zeros((3, len(levels)))
        for part in parts:
            counts += _count(part, least, levels)
        true, false, similar = counts
        with np.errstate(invalid="ignore"):
            precision = np.nan_to_num(np.stack([true, similar]) / (true + false))
        if total < _SAMPLES:
            # KITTI counts each true positive as a step of 1/40 in recall, which with few boxes ends long before 1.
            needed = np.ceil(np.arange(_SAMPLES) * total / (_SAMPLES - 1)).clip(min=1).astype(int) - 1
            precision = np.pad(precision, [(0, 0), (0, total - precision.shape[1])])[:, needed]
        first, second = (precision_at_recalls(row, self.recall_points) for row in precision)
        return first * 100, second * 100

    def _part(self, frame: Mapping[str, Any], iou_type: str, label: int, level: int) -> dict[str, np.ndarray] | None:
        """Select one class of a frame; ``counted`` marks its ground-truth boxes within the level."""
        mine = frame["labels"] == label
        true = (frame["true_labels"] == label) | (frame["true_labels"] == -1)
        if not mine.any() and not true.any():
            return None
        difficulty = frame["difficulty"][true]
        small = np.zeros(int(mine.sum()), bool)
        if self.least_height is not None:
            small = frame["height"][mine] < self.least_height[level]
        return {
            "scores": frame["scores"][mine],
            "small": small,
            "iou": frame[iou_type][mine][:, true],
            "counted": (difficulty >= 0) & (difficulty <= level),
            "similar": (1 + np.cos(frame["heading"][mine][:, None] - frame["true_heading"][true][None])) / 2,
        }


def _scores_of_right(part: Mapping[str, np.ndarray], least: float) -> np.ndarray:
    """Scores of the true positives, with each ground-truth box matched to the best-scored overlapping detection."""
    free = np.ones(len(part["scores"]), bool)
    found = []
    for number, counted in enumerate(part["counted"]):
        candidates = np.flatnonzero(free & (part["iou"][:, number] > least))
        if len(candidates):
            best = candidates[part["scores"][candidates].argmax()]
            free[best] = False
            if counted and not part["small"][best]:
                found.append(part["scores"][best])
    return np.array(found, np.float64)


def _count(part: Mapping[str, np.ndarray], least: float, levels: np.ndarray) -> np.ndarray:
    """True positives, false positives and summed orientation similarity at each score level, float64 ``[3, levels]``.

    At each level, a ground-truth box is matched to the detection with the highest IoU; detections below the minimum
    height are matched only if no other overlaps.
    """
    rows = np.arange(len(levels))
    free = part["scores"][None] >= levels[:, None]
    small = part["small"]
    true, similar = np.zeros(len(levels)), np.zeros(len(levels))
    if len(part["scores"]) == 0:
        return np.stack([true, true, similar])
    for number, counted in enumerate(part["counted"]):
        iou = part["iou"][:, number]
        # The offset of 2 ranks evaluated detections before the excluded ones, of which the first is taken.
        rank = np.where(iou > least, np.where(small, 1.0, 2.0 + iou), 0.0)
        open_rank = np.where(free, rank[None], 0.0)
        best = open_rank.argmax(1)
        taken = open_rank[rows, best] > 0
        free[rows[taken], best[taken]] = False
        if counted:
            right = taken & ~small[best]
            true += right
            similar += np.where(right, part["similar"][best, number], 0.0)
    return np.stack([true, (free & ~small[None]).sum(1), similar])


def score_levels(scores: np.ndarray, total: int) -> np.ndarray:
    """Score thresholds at which recall is closest to 0, 1/40, ..., 1: at most 41, in descending order.

    Args:
        scores: scores of the true positives.
        total: number of ground-truth boxes.
    """
    ordered = np.sort(scores)[::-1]
    levels: list[float] = []
    wanted = 0.0
    for number, score in enumerate(ordered):
        here, after = (number + 1) / total, (number + 2) / total
        if number < len(ordered) - 1 and after - wanted < wanted - here:
            continue  # the next score is closer
        levels.append(float(score))
        wanted += 1 / (_SAMPLES - 1)
    return np.array(levels, np.float64)


def precision_at_recalls(precision: np.ndarray, recall_points: int) -> float:
    """Mean over recall points of the maximum precision at that recall or above, in [0, 1].

    Args:
        precision: precision at the thresholds of `score_levels`; missing values up to 41 count as 0.
        recall_points: 40 (1/40, ..., 1) or 11 (0, 0.1, ..., 1).
    """
    sampled = np.zeros(_SAMPLES)
    sampled[: len(precision)] = precision[:_SAMPLES]
    best = np.maximum.accumulate(sampled[::-1])[::-1]
    return float(best[1:].mean() if recall_points == 40 else best[::4].mean())


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
