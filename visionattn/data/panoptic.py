"""Panoptic quality (PQ), the agreement of predicted and true segments that do not overlap.

Kirillov et al., "Panoptic Segmentation" (CVPR 2019, arXiv 1801.00868), section 4. For one class, a predicted and a
true segment match if their intersection over union is greater than one half, which makes the match unique. Then

    PQ = sum of the matches' IoU / (TP + FP / 2 + FN / 2) = SQ * RQ

with SQ the mean IoU of the matches and RQ their F1 score. Pixels without a true segment (void) are excluded from the
union; a prediction of which more than half is void or in crowds of its class is not a false positive; crowds are never
matched and are not false negatives (section 4.2).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["VOID", "ClassCounts", "PanopticStats", "id2rgb", "rgb2id"]

VOID = 0
"""The id of pixels without a segment."""


def rgb2id(color: Any) -> Any:
    """Convert a color-coded map to segment ids, ``R + 256 G + 256^2 B``.

    Args:
        color: integers ``[..., 3]`` in the order red, green, blue; or three numbers.

    Returns:
        int32 ``[...]``; an int for three numbers.
    """
    values = np.asarray(color)
    if values.ndim == 0 or values.shape[-1] != 3:
        raise ValueError(f"`color` must have shape [..., 3], got {list(values.shape)}")
    values = values.astype(np.int32)
    ids = values[..., 0] + 256 * values[..., 1] + 65536 * values[..., 2]
    return int(ids) if ids.ndim == 0 else ids


def id2rgb(ids: Any) -> Any:
    """Convert segment ids to colors, the inverse of `rgb2id`.

    Args:
        ids: integers ``[...]`` in [0, 2^24 - 1], or one number.

    Returns:
        uint8 ``[..., 3]`` in the order red, green, blue; a list of three ints for one number.
    """
    values = np.asarray(ids).astype(np.int64)
    if values.size and not 0 <= values.min() <= values.max() < 1 << 24:
        raise ValueError(f"`ids` must be in [0, {(1 << 24) - 1}], got values from {values.min()} to {values.max()}")
    color = np.stack([values % 256, values // 256 % 256, values // 65536], axis=-1)
    return color.tolist() if values.ndim == 0 else color.astype(np.uint8)


@dataclass
class ClassCounts:
    """The matches of one class, summed over images.

    Attributes:
        iou: sum of the matches' intersections over union.
        tp, fp, fn: numbers of matches, unmatched predicted segments and unmatched true segments.
    """

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __iadd__(self, other: "ClassCounts") -> "ClassCounts":
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self

    def quality(self) -> dict[str, float]:
        """``pq``, ``sq`` and ``rq`` in [0, 1]; all 0 if the class has no segments."""
        weight = self.tp + 0.5 * self.fp + 0.5 * self.fn
        return {
            "pq": self.iou / weight if weight else 0.0,
            "sq": self.iou / self.tp if self.tp else 0.0,
            "rq": self.tp / weight if weight else 0.0,
        }


class PanopticStats:
    """Counts of all classes, by category id; counts of different images are added with ``+=``.

    Attributes:
        pq_per_cat: `ClassCounts` by category id, also available by indexing the object.
    """

    def __init__(self) -> None:
        self.pq_per_cat: dict[Any, ClassCounts] = defaultdict(ClassCounts)

    def __getitem__(self, category_id: Any) -> ClassCounts:
        return self.pq_per_cat[category_id]

    def __iadd__(self, other: "PanopticStats") -> "PanopticStats":
        for category_id, counts in other.pq_per_cat.items():
            self.pq_per_cat[category_id] += counts
        return self

    def add_image(
        self,
        truth: np.ndarray,
        truth_segments: Iterable[Mapping[str, Any]],
        prediction: np.ndarray,
        prediction_segments: Iterable[Mapping[str, Any]],
    ) -> None:
        """Count one image.

        Args:
            truth, prediction: integers ``[H, W]``, the segment id of each pixel or `VOID`.
            truth_segments: ``id``, ``category_id`` and optionally ``iscrowd`` of each true segment.
            prediction_segments: ``id`` and ``category_id`` of each predicted segment.

        Raises:
            ValueError: the maps have different sizes, or the predicted map and its segments have different ids.
        """
        if truth.shape != prediction.shape:
            shapes = f"{list(truth.shape)} and {list(prediction.shape)}"
            raise ValueError(f"`truth` and `prediction` must have the same shape, got {shapes}")
        true_class = {s["id"]: s["category_id"] for s in truth_segments}
        crowds = {s["id"] for s in truth_segments if s.get("iscrowd")}
        found_class = {s["id"]: s["category_id"] for s in prediction_segments}
        true_ids, true_index = np.unique(truth, return_inverse=True)
        found_ids, found_index = np.unique(prediction, return_inverse=True)
        if set(found_ids.tolist()) - {VOID} != set(found_class):
            odd = sorted(set(found_ids.tolist()) - {VOID} ^ set(found_class))[:5]
            raise ValueError(f"`prediction` and `prediction_segments` must have the same ids, but differ in {odd}")
        pairs = true_index.reshape(-1) * len(found_ids) + found_index.reshape(-1)
        common = np.bincount(pairs, minlength=len(true_ids) * len(found_ids)).reshape(len(true_ids), len(found_ids))
        true_area, found_area = common.sum(axis=1), common.sum(axis=0)
        row_of = {value: row for row, value in enumerate(true_ids.tolist())}
        in_void = common[row_of[VOID]] if VOID in row_of else np.zeros_like(found_area)
        matched: set[Any] = set()
        for column, found in enumerate(found_ids.tolist()):
            if found == VOID:
                continue
            category = found_class[found]
            ignored, hit = int(in_void[column]), False
            for row in np.flatnonzero(common[:, column]):
                true = int(true_ids[row])
                if true_class.get(true) != category or true == VOID:
                    continue
                if true in crowds:
                    ignored += int(common[row, column])
                    continue
                union = true_area[row] + found_area[column] - common[row, column] - in_void[column]
                iou = float(common[row, column] / union)
                if iou > 0.5:
                    self.pq_per_cat[category] += ClassCounts(iou=iou, tp=1)
                    matched.add(true)
                    hit = True
            if not hit and ignored <= 0.5 * found_area[column]:
                self.pq_per_cat[category].fp += 1
        for true, category in true_class.items():
            if true not in matched and true not in crowds:
                self.pq_per_cat[category].fn += 1

    def pq_average(
        self, categories: Mapping[Any, Mapping[str, Any]], isthing: bool | None
    ) -> tuple[dict[str, float], dict[Any, dict[str, float]]]:
        """Mean over the classes that occur in the ground truth or in a prediction.

        Args:
            categories: records with ``isthing``, by id.
            isthing: only thing classes (True) or stuff classes (False); None for all.

        Returns:
            ``pq``, ``sq``, ``rq`` in [0, 1] and the number ``n`` of classes, all 0 if no class occurs; and ``pq``,
            ``sq``, ``rq`` by category id.
        """
        results, occurring = {}, []
        for category_id, category in categories.items():
            if isthing is not None and bool(category["isthing"]) != isthing:
                continue
            counts = self.pq_per_cat.get(category_id, ClassCounts())
            results[category_id] = counts.quality()
            if counts.tp + counts.fp + counts.fn:
                occurring.append(results[category_id])
        count = len(occurring)
        mean = {key: sum(r[key] for r in occurring) / max(count, 1) for key in ("pq", "sq", "rq")}
        return {**mean, "n": count}, results
