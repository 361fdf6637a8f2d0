"""Evaluation protocol of the spatial-aware token (Wu et al., ICCV 2023, arXiv 2303.10438).

It uses one threshold and the box of the largest region, and measures box accuracy with and without the requirement
that the class is correct.
"""

from dataclasses import dataclass

import numpy as np

from visionattn.errors import require
from visionattn.heads.localization.metrics import box_iou

__all__ = ["LocalizationAccuracy", "LocalizationScores", "box_of_largest_region", "crop_boxes", "normalize_map"]


def normalize_map(score_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Normalize a heatmap to [0, 1], then resize it by bilinear interpolation; float32 ``[height, width]``."""
    cv2 = require("cv2")
    values = np.asarray(score_map, dtype=np.float32)
    lowest, highest = values.min(), values.max()
    return cv2.resize((values - lowest) / (highest - lowest + np.float32(1e-5)), (size[1], size[0]))


def box_of_largest_region(score_map: np.ndarray, threshold: float) -> np.ndarray:
    """Bounding box of the largest 8-connected region above a threshold, int64 ``[4]``.

    Among regions of equal size, the first in row-major order is used. The right and bottom are one pixel past the
    region. If no pixel exceeds the threshold, the box is the whole map.

    Args:
        score_map: ``[H, W]``.
        threshold: threshold that pixels must exceed.
    """
    cv2 = require("cv2")
    height, width = score_map.shape
    above = (score_map > threshold).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    if count == 1:
        return np.array([0, 0, width, height], dtype=np.int64)
    areas = stats[1:, cv2.CC_STAT_AREA]
    largest = 1 + np.flatnonzero(areas == areas.max())
    label = largest[0]
    if len(largest) > 1:  # OpenCV does not label regions in row-major order
        flat = regions.ravel()
        label = flat[np.isin(flat, largest).argmax()]
    left, top, w, h = (int(v) for v in stats[label, :4])
    return np.array([left, top, left + w, top + h], dtype=np.int64)


def crop_boxes(boxes: np.ndarray, size: tuple[int, int], resize: int = 256, crop: int = 224) -> np.ndarray:
    """Convert ground-truth boxes to pixels of the center crop of the resized image, clipped to it, int64 ``[N, 4]``.

    Args:
        boxes: ``[N, 4]`` in pixels of the original image.
        size: height and width of the original image, which is resized to a square.
        resize: side length of the resized image.
        crop: side length of the crop.
    """
    values = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    scaled = values * resize / np.array([size[1], size[0]] * 2, dtype=np.float64) - (resize - crop) // 2
    return scaled.clip(0, crop - 1).astype(np.int64)


@dataclass(frozen=True)
class LocalizationScores:
    """Accuracies in percent.

    Attributes:
        gt_known: GT-known localization accuracy: the IoU of the box is at least 0.5.
        top1: Top-1 localization accuracy: box and class are correct.
        top5: Top-5 localization accuracy: the box is correct and the class is among the top five.
        by_iou: box accuracy for each IoU (in percent).
        cls_top1: Top-1 classification accuracy.
        cls_top5: Top-5 classification accuracy.
    """

    gt_known: float
    top1: float
    top5: float
    by_iou: dict[int, float]
    cls_top1: float
    cls_top5: float


class LocalizationAccuracy:
    """GT-known, Top-1 and Top-5 localization accuracy at one threshold.

    Args:
        threshold: threshold on maps normalized by `normalize_map`.
    """

    def __init__(self, threshold: float = 0.4) -> None:
        self.threshold = threshold
        self._rows: list[tuple[float, bool, bool]] = []

    def add(self, score_map: np.ndarray, boxes: np.ndarray, scores: np.ndarray, label: int) -> tuple[np.ndarray, float]:
        """Add one image.

        Args:
            score_map: ``[H, W]`` from `normalize_map`.
            boxes: ground-truth boxes in pixels of the map, ``[N, 4]`` with N >= 1.
            scores: class scores ``[K]``.
            label: ground-truth class.

        Returns:
            The predicted box and its maximum IoU.
        """
        box = box_of_largest_region(score_map, self.threshold)
        iou = float(box_iou(box, boxes).max())
        top = np.argsort(-np.asarray(scores), kind="stable")
        self.count(iou, bool(top[0] == label), bool(label in top[:5]))
        return box, iou

    def count(self, iou: float, top1: bool, top5: bool) -> None:
        """Add one image by the IoU of its box and whether its class is the top one, or among the top five."""
        self._rows.append((iou, top1, top5))

    def compute(self) -> LocalizationScores:
        """Compute the accuracies over all images."""
        if not self._rows:
            raise ValueError("no images were added")
        iou, first, five = (np.array(column) for column in zip(*self._rows, strict=True))
        right = iou >= 0.5

        def share(hits: np.ndarray) -> float:
            return float(hits.mean() * 100)

        return LocalizationScores(
            gt_known=share(right),
            top1=share(right & first),
            top5=share(right & five),
            by_iou={level: share(iou >= level / 100) for level in (30, 50, 70)},
            cls_top1=share(first),
            cls_top5=share(five),
        )
