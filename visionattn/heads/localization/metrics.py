"""Measures of weakly supervised object localization: how well heat maps from image labels find the objects.

MaxBoxAcc, MaxBoxAccV2 and PxAP are those of Choe et al., "Evaluating Weakly Supervised Object Localization Methods
Right" (CVPR 2020, arXiv 2001.07437) and its extension (arXiv 2007.04178), with their conventions of pixels, so that
numbers compare with published ones. Boxes are left, top, right, bottom.
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
    "best_centre_box",
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
    """The score thresholds ``0, step, ..., 1 - step``, float64."""
    if not 0 < step <= 1:
        raise ValueError(f"step must be in 0..1, got {step}")
    return np.arange(0, 1, step)


def prepare_map(score_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a heat map to a size by cubic interpolation, then its values to 0..1.

    Args:
        score_map: ``[h, w]``, of any range.
        size: height and width of the result.

    Returns:
        float64 ``[height, width]``; zeros where the map is constant or holds NaN.
    """
    cv2 = require("cv2")
    source = np.asarray(score_map, dtype=np.float64)
    if source.ndim != 2 or source.size == 0:
        raise ValueError(f"score_map must be [h, w] with pixels, got shape {source.shape}")
    values = cv2.resize(source, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    if not np.isfinite(values).all() or values.min() == values.max():
        return np.zeros_like(values)
    values = values - values.min()
    return values / values.max()


def _checked(score_map: np.ndarray) -> np.ndarray:
    score_map = np.asarray(score_map)
    if score_map.ndim != 2 or score_map.dtype != np.float64:
        raise ValueError(f"score_map must be float64 [H, W], got {score_map.dtype} {score_map.shape}")
    if not (score_map.min() >= 0 and score_map.max() <= 1):  # NaN fails too
        raise ValueError("score_map must be in 0..1 without NaN; see prepare_map")
    return score_map


def contour_boxes(score_map: np.ndarray, levels: Sequence[float]) -> list[tuple[np.ndarray, int]]:
    """Boxes around the contours of what is above each threshold, holes included.

    Thresholds are shares of the map's highest 8-bit value, to which a map is cut (not rounded); a pixel must be
    above. A contour's right and bottom are one pixel beyond its last, except at the edge of the map.

    Args:
        score_map: float64 ``[H, W]`` in 0..1. float32 gives other 8-bit values where they are tied.
        levels: thresholds in 0..1.

    Returns:
        For each threshold the boxes, int64 ``[N, 4]``, and which of them is that of the contour with the largest
        polygon area. One box of zeros where nothing is above. Thresholds that part the same pixels share one entry.
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
    """Boxes around what is above each threshold, int64 ``[N, 4]`` each; see `contour_boxes`.

    Args:
        score_map: float64 ``[H, W]`` in 0..1.
        levels: thresholds in 0..1.
        multi: the boxes of all contours, instead of that of the largest.
    """
    found = contour_boxes(score_map, levels)
    return [boxes if multi else boxes[largest : largest + 1] for boxes, largest in found]


def box_iou(first: np.ndarray, second: np.ndarray, *, extra: int = 1) -> np.ndarray:
    """Intersection over union of boxes ``[N, 4]`` and ``[M, 4]``, float64 ``[N, M]``; 0 without a union.

    Args:
        first: boxes.
        second: boxes.
        extra: added to each side's length: 1 as the localization benchmarks count pixels, 0 for plain IoU.
    """
    a = np.asarray(first, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(1, -1, 4)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    inside = overlap.clip(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2] + extra).prod(-1) + (b[..., 2:] - b[..., :2] + extra).prod(-1) - inside
    return np.where(union > 0, inside / np.where(union > 0, union, 1), 0.0)


def resize_boxes(boxes: np.ndarray, size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Boxes of an image in the pixels of its resized version, each corner cut to a whole number, int64 ``[N, 4]``.

    Args:
        boxes: ``[N, 4]``.
        size: height and width of the image.
        target: height and width of the version.
    """
    values = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    new = np.array([target[1], target[0]] * 2, dtype=np.float64)
    return (values * new / np.array([size[1], size[0]] * 2, dtype=np.float64)).astype(np.int64)


@dataclass(frozen=True)
class BoxResult:
    """What `BoxAccuracy` found; accuracies in percent.

    Attributes:
        max_box_acc: highest share of images found at an IoU of 0.5.
        max_box_acc_v2: mean over the IoUs of the highest share, each at its own threshold.
        by_iou: IoU in percent to the highest share.
        best_threshold: IoU in percent to the first threshold that gives it.
        counts: IoU in percent to the number of images found at each threshold, int64 ``[T]``.
        thresholds: float64 ``[T]``.
        images: how many there were.
    """

    max_box_acc: float
    max_box_acc_v2: float
    by_iou: dict[int, float]
    best_threshold: dict[int, float]
    counts: dict[int, np.ndarray]
    thresholds: np.ndarray
    images: int

    def at(self, iou: int, threshold: float) -> float:
        """Share of images found at an IoU in percent and the threshold nearest to the one given."""
        return float(self.counts[iou][np.abs(self.thresholds - threshold).argmin()] * 100.0 / self.images)


class BoxAccuracy:
    """Gathers images and gives MaxBoxAcc and MaxBoxAccV2.

    An image is found at a threshold when one of its boxes (see `boxes_from_map`) has at least the IoU with one of
    the true boxes. MaxBoxAcc is defined with ``multi=False``, MaxBoxAccV2 with ``multi=True``.

    Args:
        multi: all contours of a map, or the largest only.
        step: of the thresholds.
        ious: in percent.
        extra: added to each side in IoUs; 1 is the benchmarks' convention.
    """

    def __init__(
        self, *, multi: bool, step: float = BOX_STEP, ious: Sequence[int] = (30, 50, 70), extra: int = 1
    ) -> None:
        self.multi, self.extra = multi, extra
        self.thresholds, self.ious = thresholds(step), tuple(ious)
        self._ious: list[np.ndarray] = []

    def add(self, score_map: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Count one image; arguments and result are those of `best_ious`."""
        ious = self.best_ious(score_map, boxes)
        self.count(ious)
        return ious

    def count(self, ious: np.ndarray) -> None:
        """Count one image by its `best_ious`, which another process may have found."""
        self._ious.append(ious)

    def best_ious(
        self, score_map: np.ndarray, boxes: np.ndarray, found: list[tuple[np.ndarray, int]] | None = None
    ) -> np.ndarray:
        """The best IoU of an image at each threshold, float64 ``[T]``.

        Args:
            score_map: float64 ``[H, W]`` in 0..1, see `prepare_map`.
            boxes: the true ones in the map's pixels, ``[N, 4]``, N at least 1.
            found: the `contour_boxes` of the map at `thresholds`, where they are known already.
        """
        boxes = np.asarray(boxes).reshape(-1, 4)
        if not len(boxes):
            raise ValueError("boxes is empty: an image without a true box cannot be counted")
        known: dict[int, float] = {}  # thresholds that share their boxes share their IoU
        result = np.empty(len(self.thresholds))
        for index, entry in enumerate(found or contour_boxes(score_map, self.thresholds)):
            if id(entry) not in known:
                candidates, largest = entry
                chosen = candidates if self.multi else candidates[largest]
                known[id(entry)] = float(box_iou(chosen, boxes, extra=self.extra).max())
            result[index] = known[id(entry)]
        return result

    def compute(self, select: np.ndarray | None = None) -> BoxResult:
        """The result over all images.

        Args:
            select: bool ``[images]`` in the order of `add`: an image counts as found only where this is true, such
                as where the classifier is right, which turns box accuracy into Top-1 or Top-5 localization.
        """
        if not self._ious:
            raise ValueError("no image was added")
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
    """One mask of an image for `PixelPrecision`, uint8 ``[height, width]``: 1 object, 0 background, 255 left out.

    Args:
        masks: one grey picture for each object, ``[h, w]``; an object is where it is above 0.5.
        ignore: likewise, what to leave out where there is no object; or None.
        size: height and width of the result, reached by nearest neighbour.
    """
    cv2 = require("cv2")

    def resized(picture: np.ndarray) -> np.ndarray:
        grey = np.asarray(picture, dtype=np.float32)
        return cv2.resize(grey, (size[1], size[0]), interpolation=cv2.INTER_NEAREST) > 0.5

    objects = np.zeros(size, dtype=bool)
    for mask in masks:
        objects |= resized(mask)
    result = objects.astype(np.uint8)
    if ignore is not None:
        result[resized(ignore) & ~objects] = 255
    return result


class PixelPrecision:
    """Gathers images with masks and gives PxAP, the area under the curve of precision and recall of all pixels.

    Scores are counted in bins ``[0, step), ..., [1 - step, 1), [1, 2), [2, 3]``.

    Args:
        step: width of the bins.
    """

    def __init__(self, step: float = PIXEL_STEP) -> None:
        self._edges = np.append(thresholds(step), [1.0, 2.0, 3.0])
        self._object = np.zeros(len(self._edges) - 1)
        self._background = np.zeros(len(self._edges) - 1)

    def add(self, score_map: np.ndarray, mask: np.ndarray) -> None:
        """Count one image; the arguments are those of `histograms`."""
        self.count(self.histograms(score_map, mask))

    def count(self, histograms: np.ndarray) -> None:
        """Count one image by its `histograms`, which another process may have found."""
        self._object += histograms[0]
        self._background += histograms[1]

    def histograms(self, score_map: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Numbers of pixels of objects and of background in each bin, int64 ``[2, bins]``.

        Args:
            score_map: float64 ``[H, W]`` in 0..1, see `prepare_map`.
            mask: ``[H, W]``, 1 object, 0 background, anything else left out; see `truth_mask`.
        """
        score_map, mask = _checked(score_map), np.asarray(mask)
        if score_map.shape != mask.shape:
            raise ValueError(f"mask has shape {mask.shape}, and its score_map {score_map.shape}")
        return np.stack([np.histogram(score_map[mask == value], bins=self._edges)[0] for value in (1, 0)])

    def compute(self) -> float:
        """PxAP in percent.

        Raises:
            ValueError: no image has a pixel of an object.
        """
        true, false = self._object[::-1].cumsum(), self._background[::-1].cumsum()
        if not len(true) or true[-1] <= 0:
            raise ValueError("the masks hold no pixel of an object")
        any_here = (true + false) > 0
        precision = np.divide(true, true + false, out=np.zeros_like(true), where=any_here)
        recall = true / true[-1]
        return float((precision[1:] * np.diff(recall))[any_here[1:]].sum() * 100)


def best_centre_box(
    boxes: Sequence[np.ndarray], size: tuple[int, int], *, step: float = 0.05, ious: Sequence[int] = (30, 50, 70)
) -> tuple[np.ndarray, float]:
    """The one centred box that fits the most images: what a method must beat to have localized anything.

    Args:
        boxes: true boxes of each image in the pixels of its resized version, ``[N_i, 4]`` each.
        size: height and width of that version.
        step: of the shares of height and width that are tried.
        ious: in percent; the box is best by the mean over these, as MaxBoxAccV2 is.

    Returns:
        The box, float64 ``[4]``, and its mean accuracy in percent on these images.
    """
    height, width = size
    shares = np.arange(step, 1 + step / 2, step)
    sides = np.stack(np.meshgrid(shares * width, shares * height, indexing="ij"), -1).reshape(-1, 2)
    centre = np.array([width, height]) / 2
    candidates = np.concatenate([centre - sides / 2, centre + sides / 2 - 1], axis=1)  # the last pixel is inside
    best = np.stack([box_iou(candidates, truth).max(1) for truth in boxes], axis=1)
    scores = np.mean([(best >= iou / 100).mean(1) * 100 for iou in ious], axis=0)
    winner = int(np.lexsort((best.mean(1), scores))[-1])  # of equals, the one with the highest mean IoU
    return candidates[winner], float(scores[winner])
