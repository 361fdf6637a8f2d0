"""Average precision of boxes in point clouds, from above and in three dimensions, as KITTI measures it.

Geiger, Lenz, Urtasun, "Are we ready for autonomous driving?", CVPR 2012; with 40 recall points as the benchmark has
it since 2019 (Simonelli et al., ICCV 2019), or the 11 of before. Classes with fewer than 41 boxes, for which KITTI's
procedure cannot reach 100, are sampled at their true recalls instead. A detection is right if its overlap with a
labelled box of its class is above a threshold. Frames are measured one by one (`BevPrecision.measure`), in any
process; the records of all together give the figures (`BevPrecision.summarize`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionattn.heads.lidar.rotated_boxes import bev_iou, iou_3d

__all__ = ["LEVELS", "BevPrecision", "precision_at_recalls", "score_levels"]

LEVELS = ("easy", "moderate", "hard")
KINDS = ("bev", "3d")
IOU = {"car": 0.7, "truck": 0.7, "bus": 0.7, "van": 0.7, "vehicle": 0.7}
"""Overlap that a class needs where none is given; the others need 0.5."""

_SAMPLES = 41  # KITTI samples precision at recalls 0, 1/40, ..., 1


class BevPrecision:
    """Measures detections against the labels of a dataset.

    What counts neither way: labelled boxes harder than the level and detections that hit one; detections that hit an
    ignored box of their class (or of none); detections outside of the labelled region.

    Args:
        classes: names, in the order of the labels.
        iou: least overlap of each class, or one for all; by default 0.7 for vehicles and 0.5 for others.
        recall_points: 40 or 11.
        levels: names of the difficulties 0, 1, ...; each includes those before it. Without difficulties, give one.
        dont_care: leave out detections in a camera's don't-care regions too. KITTI does so for its boxes in pictures
            only.
        least_height: of a detection's rectangle in the camera's picture, in pixels, for each level, below which it
            counts neither way; KITTI's are 40, 25 and 25. None for no such rule; without a camera it is not applied.

    Raises:
        ValueError: an argument is out of its range.
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
            raise ValueError(f"classes={list(classes)} must be one or more different names")
        if recall_points not in (11, 40):
            raise ValueError(f"recall_points={recall_points} must be 11 or 40")
        if not levels:
            raise ValueError("levels is empty; give one name at least")
        if least_height is not None and len(least_height) != len(levels):
            raise ValueError(f"least_height={list(least_height)} must have one number for each of {list(levels)}")
        if isinstance(iou, Mapping):
            missing = [name for name in classes if name not in iou]
            if missing:
                raise ValueError(f"iou={dict(iou)} lacks the class {missing[0]!r}")
            self.iou = [float(iou[name]) for name in classes]
        else:
            self.iou = [IOU.get(name.lower(), 0.5) if iou is None else float(iou) for name in classes]
        if not all(0 < value < 1 for value in self.iou):
            raise ValueError(f"iou={iou} must be between 0 and 1")
        self.classes, self.recall_points, self.levels = tuple(classes), recall_points, tuple(levels)
        self.dont_care, self.least_height = dont_care, least_height

    def measure(self, found: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, Any]:
        """The record of one frame: overlaps and what else is needed later, in small arrays.

        Args:
            found: ``boxes`` ``[D, 7]``, ``scores`` ``[D]``, ``labels`` ``[D]``.
            truth: an item of `visionattn.heads.lidar.data.frames.PointCloudSet` with ``boxes``, ``labels`` and,
                optionally, ``difficulty``, ``ignore_boxes``, ``ignore_labels``, ``labelled_region``; and ``path`` or
                ``frame``, which tell whether a frame was measured twice.

        Raises:
            ValueError: shapes do not fit together, or a score is NaN.
        """
        boxes, scores, labels = (
            _array(found["boxes"]),
            _array(found["scores"]),
            _array(found["labels"]).astype(np.int64),
        )
        if boxes.ndim != 2 or boxes.shape[1] < 7 or not len(boxes) == len(scores) == len(labels):
            raise ValueError(
                f"boxes {boxes.shape}, scores {scores.shape} and labels {labels.shape} must be [D, 7], [D], [D]"
            )
        if np.isnan(scores).any():
            raise ValueError("scores hold NaN")
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
            rectangles = region.picture_boxes(boxes)
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
        """Figures in percent over all frames; a frame that several processes measured counts once.

        ``AP_3d_car_easy`` and so on, of each kind (``bev``, ``3d``), class and level that has a labelled box;
        ``AOS_...``, the same with each right detection weighted by ``(1 + cos(difference of headings)) / 2``; and
        ``mAP_3d_easy``, the mean over classes.
        """
        seen: dict[Any, Mapping[str, Any]] = {}
        for number, record in enumerate(records):
            seen.setdefault(("frame", record["key"]) if record["key"] is not None else number, record)
        frames = list(seen.values())
        figures: dict[str, float] = {}
        for kind in KINDS:
            for number, level in enumerate(self.levels):
                values = []
                for label, name in enumerate(self.classes):
                    result = self._class_precision(frames, kind, label, number)
                    if result is not None:
                        figures[f"AP_{kind}_{name}_{level}"], figures[f"AOS_{kind}_{name}_{level}"] = result
                        values.append(result[0])
                if values:
                    figures[f"mAP_{kind}_{level}"] = float(np.mean(values))
        return figures

    def _class_precision(
        self, frames: Sequence[Mapping[str, Any]], kind: str, label: int, level: int
    ) -> tuple[float, float] | None:
        parts = [part for frame in frames if (part := self._part(frame, kind, label, level)) is not None]
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
            # KITTI takes each right detection for a step of 1/40 in recall, which with few boxes ends long before 1.
            needed = np.ceil(np.arange(_SAMPLES) * total / (_SAMPLES - 1)).clip(min=1).astype(int) - 1
            precision = np.pad(precision, [(0, 0), (0, total - precision.shape[1])])[:, needed]
        first, second = (precision_at_recalls(row, self.recall_points) for row in precision)
        return first * 100, second * 100

    def _part(self, frame: Mapping[str, Any], kind: str, label: int, level: int) -> dict[str, np.ndarray] | None:
        """What of a frame is of a class; counted are its boxes within the level."""
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
            "iou": frame[kind][mine][:, true],
            "counted": (difficulty >= 0) & (difficulty <= level),
            "similar": (1 + np.cos(frame["heading"][mine][:, None] - frame["true_heading"][true][None])) / 2,
        }


def _scores_of_right(part: Mapping[str, np.ndarray], least: float) -> np.ndarray:
    """Scores of the detections that are right, where every labelled box takes the best-scored one that hits it."""
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
    """Right ones, wrong ones and the sum of similarities at each score level, float64 ``[3, levels]``.

    At each level, a labelled box takes what overlaps it most; detections too small to count only if nothing else does.
    """
    rows = np.arange(len(levels))
    free = part["scores"][None] >= levels[:, None]
    small = part["small"]
    true, similar = np.zeros(len(levels)), np.zeros(len(levels))
    if len(part["scores"]) == 0:
        return np.stack([true, true, similar])
    for number, counted in enumerate(part["counted"]):
        iou = part["iou"][:, number]
        # Offset by 2, any that counts is before all that do not; of these the first is taken.
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
    """The scores at which recall comes nearest to 0, 1/40, ..., 1: at most 41, the highest first.

    Args:
        scores: of right detections.
        total: number of labelled boxes.
    """
    ordered = np.sort(scores)[::-1]
    levels: list[float] = []
    wanted = 0.0
    for number, score in enumerate(ordered):
        here, after = (number + 1) / total, (number + 2) / total
        if number < len(ordered) - 1 and after - wanted < wanted - here:
            continue  # the next one is nearer
        levels.append(float(score))
        wanted += 1 / (_SAMPLES - 1)
    return np.array(levels, np.float64)


def precision_at_recalls(precision: np.ndarray, recall_points: int) -> float:
    """Mean over recall points of the best precision at that recall or a higher one, 0..1.

    Args:
        precision: at the levels of `score_levels`; where there are fewer than 41, it is 0 beyond.
        recall_points: 40 (1/40, ..., 1) or 11 (0, 0.1, ..., 1).
    """
    sampled = np.zeros(_SAMPLES)
    sampled[: len(precision)] = precision[:_SAMPLES]
    best = np.maximum.accumulate(sampled[::-1])[::-1]
    return float(best[1:].mean() if recall_points == 40 else best[::4].mean())


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
