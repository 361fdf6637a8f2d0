"""Metrics of weakly supervised object localization: MaxBoxAcc, MaxBoxAccV2 and PxAP.

They follow Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR 2020, arXiv
2001.07437) and its extension (arXiv 2007.04178), including their pixel conventions, so values are comparable to
published ones. Boxes are left, top, right, bottom, in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionattn.errors import require

__all__ = [
    "BOX_STEP",
    "PIXEL_STEP",
    "BoxAccuracy",
    "BoxResult",
    "PixelPrecision",
    "best_center_box",
    "box_iou",
    "boxes_from_map",
    "contour_boxes",
    "prepare_map",
    "resize_boxes",
    "thresholds",
    "truth_mask",
]

BOX_STEP = 0.01
PIXEL_STEP = 0.001


def thresholds(step: float = BOX_STEP) -> np.ndarray:
    """Score thresholds ``0, step, ..., 1 - step``, float64."""
    if not 0 < step <= 1:
        raise ValueError(f"`step` must be in (0, 1], got {step}")
    return np.arange(0, 1, step)


def prepare_map(score_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a heatmap by bicubic interpolation, then normalize it to [0, 1].

    Args:
        score_map: ``[h, w]``, of any range.
        size: height and width of the output.

    Returns:
        float64 ``[height, width]``; all zeros if the map is constant or contains NaN or infinity.
    """
    cv2 = require("cv2")
    source = np.asarray(score_map, dtype=np.float64)
    if source.ndim != 2 or source.size == 0:
        raise ValueError(f"`score_map` must be a non-empty [h, w], got shape {source.shape}")
    values = cv2.resize(source, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    if not np.isfinite(values).all() or values.min() == values.max():
        return np.zeros_like(values)
    values = values - values.min()
    return values / values.max()


def _checked(score_map: np.ndarray) -> np.ndarray:
    score_map = np.asarray(score_map)
    if score_map.ndim != 2 or score_map.dtype != np.float64:
        raise ValueError(f"`score_map` must be float64 [H, W], got {score_map.dtype} {score_map.shape}")
    if not (score_map.min() >= 0 and score_map.max() <= 1):  # also True for NaN
        raise ValueError("`score_map` must be in [0, 1] without NaN; see prepare_map")
    return score_map


def contour_boxes(score_map: np.ndarray, levels: Sequence[float]) -> list[tuple[np.ndarray, int]]:
    """Bounding boxes of the contours (including holes) of the regions above each threshold.

    The map is truncated (not rounded) to 8 bits, and thresholds are fractions of its maximum; pixels must exceed them.
    The right and bottom of a box are one pixel past the contour, except at the border of the map.

    Args:
        score_map: float64 ``[H, W]`` in [0, 1]. float32 could round to other 8-bit values.
        levels: thresholds in [0, 1].

    Returns:
        For each threshold, the boxes, int64 ``[N, 4]``, and the index of the contour with the largest polygon area. A
        single box of zeros if no pixel exceeds the threshold. Thresholds with the same 8-bit value share one entry.
    """
    cv2 = require("cv2")
    image = (_checked(score_map) * 255).astype(np.uint8)
    height, width = image.shape
    highest = int(image.max())
    limits = [int(level * highest) for level in levels]
    cached: dict[int, tuple[np.ndarray, int]] = {}
    for limit in set(limits):
        above = cv2.threshold(image, limit, 255, cv2.THRESH_BINARY)[1]
        contours = cv2.findContours(above, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
        boxes = [
            (x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in map(cv2.boundingRect, contours)
        ]
        areas = [cv2.contourArea(contour) for contour in contours]
        largest = areas.index(max(areas)) if areas else 0
        cached[limit] = np.asarray(boxes or [(0, 0, 0, 0)], dtype=np.int64), largest
    return [cached[limit] for limit in limits]


def boxes_from_map(score_map: np.ndarray, levels: Sequence[float], *, multi: bool) -> list[np.ndarray]:
    """Bounding boxes of the regions above each threshold, int64 ``[N, 4]`` each; see `contour_boxes`.

    Args:
        score_map: float64 ``[H, W]`` in [0, 1].
        levels: thresholds in [0, 1].
        multi: return the boxes of all contours instead of only the largest.
    """
    found = contour_boxes(score_map, levels)
    return [boxes if multi else boxes[largest : largest + 1] for boxes, largest in found]


def box_iou(first: np.ndarray, second: np.ndarray, *, extra: int = 1) -> np.ndarray:
    """Pairwise intersection over union of boxes.

    Args:
        first: ``[N, 4]``.
        second: ``[M, 4]``.
        extra: added to the width and height: 1 for the pixel-inclusive convention of localization benchmarks, 0 for
            the standard IoU.

    Returns:
        float64 ``[N, M]``; 0 where the union is empty.
    """
    a = np.asarray(first, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(1, -1, 4)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    inside = overlap.clip(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2] + extra).prod(-1) + (b[..., 2:] - b[..., :2] + extra).prod(-1) - inside
    return np.where(union > 0, inside / np.where(union > 0, union, 1), 0.0)


def resize_boxes(boxes: np.ndarray, size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Scale boxes to a resized image and truncate them to integers, int64 ``[N, 4]``.

    Args:
        boxes: ``[N, 4]``.
        size: height and width of the image.
        target: height and width of the resized image.
    """
    values = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    new = np.array([target[1], target[0]] * 2, dtype=np.float64)
    return (values * new / np.array([size[1], size[0]] * 2, dtype=np.float64)).astype(np.int64)


@dataclass(frozen=True)
class BoxResult:
    """Result of `BoxAccuracy`; accuracies in percent.

    Attributes:
        max_box_acc: maximum accuracy over thresholds at an IoU of 0.5.
        max_box_acc_v2: mean over the IoUs of the maximum accuracy, each at its own threshold.
        by_iou: maximum accuracy for each IoU (in percent).
        best_threshold: first threshold that reaches the maximum, for each IoU.
        counts: number of correctly localized images at each threshold, int64 ``[T]``, for each IoU.
        thresholds: float64 ``[T]``.
        images: number of images.
    """

    max_box_acc: float
    max_box_acc_v2: float
    by_iou: dict[int, float]
    best_threshold: dict[int, float]
    counts: dict[int, np.ndarray]
    thresholds: np.ndarray
    images: int

    def at(self, iou: int, threshold: float) -> float:
        """Accuracy in percent at an IoU (in percent) and the closest available threshold."""
        return float(self.counts[iou][np.abs(self.thresholds - threshold).argmin()] * 100.0 / self.images)


class BoxAccuracy:
    """MaxBoxAcc and MaxBoxAccV2.

    An image is correctly localized at a threshold if one of its boxes (see `boxes_from_map`) reaches the IoU with one
    of the ground-truth boxes. MaxBoxAcc is defined with ``multi=False``, MaxBoxAccV2 with ``multi=True``.

    Args:
        multi: use all contours of a map instead of only the largest.
        step: step of the thresholds.
        ious: IoUs in percent.
        extra: see `box_iou`; 1 is the convention of the benchmarks.
    """

    def __init__(
        self, *, multi: bool, step: float = BOX_STEP, ious: Sequence[int] = (30, 50, 70), extra: int = 1
    ) -> None:
        self.multi, self.extra = multi, extra
        self.thresholds, self.ious = thresholds(step), tuple(ious)
        self._ious: list[np.ndarray] = []

    def add(self, score_map: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Add one image; arguments and return value are those of `best_ious`."""
        ious = self.best_ious(score_map, boxes)
        self.count(ious)
        return ious

    def count(self, ious: np.ndarray) -> None:
        """Add one image by its `best_ious`, which may be computed in another process."""
        self._ious.append(ious)

    def best_ious(
        self, score_map: np.ndarray, boxes: np.ndarray, found: list[tuple[np.ndarray, int]] | None = None
    ) -> np.ndarray:
        """Maximum IoU of an image at each threshold, float64 ``[T]``.

        Args:
            score_map: float64 ``[H, W]`` in [0, 1], see `prepare_map`.
            boxes: ground-truth boxes in pixels of the map, ``[N, 4]`` with N >= 1.
            found: `contour_boxes` of the map at `thresholds`, if already computed.
        """
        boxes = np.asarray(boxes).reshape(-1, 4)
        if not len(boxes):
            raise ValueError("`boxes` must have at least one ground-truth box, got none")
        known: dict[int, float] = {}  # thresholds that share their boxes also share their IoU
        result = np.empty(len(self.thresholds))
        for index, entry in enumerate(found or contour_boxes(score_map, self.thresholds)):
            if id(entry) not in known:
                candidates, largest = entry
                chosen = candidates if self.multi else candidates[largest]
                known[id(entry)] = float(box_iou(chosen, boxes, extra=self.extra).max())
            result[index] = known[id(entry)]
        return result

    def compute(self, select: np.ndarray | None = None) -> BoxResult:
        """Compute the result over all images.

        Args:
            select: bool ``[images]`` in the order of `add`; images with False count as not localized. With the
                correctness of the classifier, this gives Top-1 or Top-5 localization accuracy.
        """
        if not self._ious:
            raise ValueError("no images were added")
        ious = np.stack(self._ious)
        found = {iou: ious >= iou / 100 for iou in self.ious}
        if select is not None:
            found = {iou: hits & np.asarray(select, bool)[:, None] for iou, hits in found.items()}
        counts = {iou: hits.sum(0) for iou, hits in found.items()}
        highest = {iou: float(count.max() * 100.0 / len(ious)) for iou, count in counts.items()}
        return BoxResult(
            max_box_acc=highest.get(50, float("nan")),
            max_box_acc_v2=float(np.mean(list(highest.values()))),
            by_iou=highest,
            best_threshold={iou: float(self.thresholds[count.argmax()]) for iou, count in counts.items()},
            counts=counts,
            thresholds=self.thresholds,
            images=len(ious),
        )


def truth_mask(masks: Sequence[np.ndarray], ignore: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """Merge the masks of an image for `PixelPrecision`, uint8 ``[height, width]``: 1 object, 0 background, 255 ignored.

    Args:
        masks: one grayscale mask ``[h, w]`` per object; values above 0.5 are object pixels.
        ignore: mask ``[h, w]`` of the pixels to ignore where there is no object, or None.
        size: height and width of the output, which is resized by nearest-neighbor interpolation.
    """
    cv2 = require("cv2")

    def resized(mask: np.ndarray) -> np.ndarray:
        gray = np.asarray(mask, dtype=np.float32)
        return cv2.resize(gray, (size[1], size[0]), interpolation=cv2.INTER_NEAREST) > 0.5

    objects = np.zeros(size, dtype=bool)
    for mask in masks:
        objects |= resized(mask)
    result = objects.astype(np.uint8)
    if ignore is not None:
        result[resized(ignore) & ~objects] = 255
    return result


class PixelPrecision:
    """PxAP, the area under the precision-recall curve of all pixels.

    Scores are accumulated in the bins ``[0, step), ..., [1 - step, 1), [1, 2), [2, 3]``.

    Args:
        step: width of the bins.
    """

    def __init__(self, step: float = PIXEL_STEP) -> None:
        self._edges = np.append(thresholds(step), [1.0, 2.0, 3.0])
        self._object = np.zeros(len(self._edges) - 1)
        self._background = np.zeros(len(self._edges) - 1)

    def add(self, score_map: np.ndarray, mask: np.ndarray) -> None:
        """Add one image; the arguments are those of `histograms`."""
        self.count(self.histograms(score_map, mask))

    def count(self, histograms: np.ndarray) -> None:
        """Add one image by its `histograms`, which may be computed in another process."""
        self._object += histograms[0]
        self._background += histograms[1]

    def histograms(self, score_map: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Number of object and background pixels in each bin, int64 ``[2, bins]``.

        Args:
            score_map: float64 ``[H, W]`` in [0, 1], see `prepare_map`.
            mask: ``[H, W]``: 1 object, 0 background, other values ignored; see `truth_mask`.
        """
        score_map, mask = _checked(score_map), np.asarray(mask)
        if score_map.shape != mask.shape:
            raise ValueError(f"`mask` must have the shape of `score_map` {score_map.shape}, got {mask.shape}")
        return np.stack([np.histogram(score_map[mask == value], bins=self._edges)[0] for value in (1, 0)])

    def compute(self) -> float:
        """Compute PxAP in percent.

        Raises:
            ValueError: if no image has an object pixel.
        """
        true, false = self._object[::-1].cumsum(), self._background[::-1].cumsum()
        if not len(true) or true[-1] <= 0:
            raise ValueError("the masks contain no object pixels")
        any_here = (true + false) > 0
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=any_here)
        recall = true / true[-1]
        return float((precision[1:] * np.diff(recall))[any_here[1:]].sum() * 100)


def best_center_box(
    boxes: Sequence[np.ndarray], size: tuple[int, int], *, step: float = 0.05, ious: Sequence[int] = (30, 50, 70)
) -> tuple[np.ndarray, float]:
    """Find the centered box with the highest localization accuracy, a baseline for localization methods.

    Args:
        boxes: ground-truth boxes of each image in pixels of the resized image, ``[N_i, 4]`` each.
        size: height and width of the resized images.
        step: step of the candidate heights and widths, as fractions of the image size.
        ious: IoUs in percent; the accuracy is averaged over them, as in MaxBoxAccV2.

    Returns:
        The box, float64 ``[4]``, and its mean accuracy on these images in percent.
    """
    height, width = size
    shares = np.arange(step, 1 + step / 2, step)
    sides = np.stack(np.meshgrid(shares * width, shares * height, indexing="ij"), -1).reshape(-1, 2)
    center = np.array([width, height]) / 2
    candidates = np.concatenate([center - sides / 2, center + sides / 2 - 1], axis=1)  # the last pixel is inside
    best = np.stack([box_iou(candidates, truth).max(1) for truth in boxes], axis=1)
    scores = np.mean([(best >= iou / 100).mean(1) * 100 for iou in ious], axis=0)
    winner = int(np.lexsort((best.mean(1), scores))[-1])  # ties are broken by the mean IoU
    return candidates[winner], float(scores[winner])
