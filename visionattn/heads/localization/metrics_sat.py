"""How the authors of the spatial-aware token (Wu et al., ICCV 2023, arXiv 2303.10438) measure localization.

One threshold, one box around the largest region, and box accuracy with and without the classifier's answer.
"""

from dataclasses import dataclass

import numpy as np

from visionattn.errors import require
from visionattn.heads.localization.metrics import box_iou

__all__ = ["LocalizationAccuracy", "LocalizationScores", "box_of_largest_region", "crop_boxes", "normalize_map"]


def normalize_map(score_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values of a heat map to 0..1, then bilinear interpolation to a size; float32 ``[height, width]``."""
    cv2 = require("cv2")
    values = np.asarray(score_map, dtype=np.float32)
    lowest, highest = values.min(), values.max()
    return cv2.resize((values - lowest) / (highest - lowest + np.float32(1e-5)), (size[1], size[0]))


def box_of_largest_region(score_map: np.ndarray, threshold: float) -> np.ndarray:
    """Box around the largest 8-connected region above a threshold, int64 ``[4]``.

    Of equally large regions it is the one that begins first, row by row. The right and bottom are one pixel beyond
    the region. Where nothing is above, the box is the whole map.

    Args:
        score_map: ``[H, W]``.
        threshold: a pixel must be above it.
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
    if len(largest) > 1:  # OpenCV does not number regions row by row
        flat = regions.ravel()
        label = flat[np.isin(flat, largest).argmax()]
    left, top, w, h = (int(v) for v in stats[label, :4])
    return np.array([left, top, left + w, top + h], dtype=np.int64)


def crop_boxes(boxes: np.ndarray, size: tuple[int, int], resize: int = 256, crop: int = 224) -> np.ndarray:
    """True boxes of an image in the centre crop of its resized version, clipped to it, int64 ``[N, 4]``.

    Args:
        boxes: ``[N, 4]``.
        size: height and width of the image, which is resized to a square.
        resize: side of that square.
        crop: side of the crop.
    """
    values = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    scaled = values * resize / np.array([size[1], size[0]] * 2, dtype=np.float64) - (resize - crop) // 2
    return scaled.clip(0, crop - 1).astype(np.int64)


@dataclass(frozen=True)
class LocalizationScores:
    """Shares of images in percent.

    Attributes:
        gt_known: the box is right (IoU of at least 0.5).
        top1: so is the class.
        top5: the class is among the best five.
        by_iou: IoU in percent to the share of right boxes.
        cls_top1: the class is right.
        cls_top5: the class is among the best five.
    """

    gt_known: float
    top1: float
    top5: float
    by_iou: dict[int, float]
    cls_top1: float
    cls_top5: float


class LocalizationAccuracy:
    """Gathers images and gives GT-known, Top-1 and Top-5 localization accuracy at one threshold.

    Args:
        threshold: of maps that `normalize_map` brought to 0..1.
    """

    def __init__(self, threshold: float = 0.4) -> None:
        self.threshold = threshold
        self._rows: list[tuple[float, bool, bool]] = []

    def add(self, score_map: np.ndarray, boxes: np.ndarray, scores: np.ndarray, label: int) -> tuple[np.ndarray, float]:
        """Count one image.

        Args:
            score_map: ``[H, W]`` from `normalize_map`.
            boxes: the true ones in the map's pixels, ``[N, 4]``, N at least 1.
            scores: of the classes, ``[K]``.
            label: the true class.

        Returns:
            The box found and its best IoU.
        """
        box = box_of_largest_region(score_map, self.threshold)
        iou = float(box_iou(box, boxes).max())
        top = np.argsort(-np.asarray(scores), kind="stable")
        self.count(iou, bool(top[0] == label), bool(label in top[:5]))
        return box, iou

    def count(self, iou: float, top1: bool, top5: bool) -> None:
        """Count one image by the IoU of its box and whether its class is the best, or among the best five."""
        self._rows.append((iou, top1, top5))

    def compute(self) -> LocalizationScores:
        """The shares over all images."""
        if not self._rows:
            raise ValueError("no image was added")
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
