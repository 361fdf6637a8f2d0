"""Predictions for one image: typed, drawable, and convertible to the COCO format."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import MissingDependencyError, require

__all__ = ["InstanceMasks", "Panoptic", "Prediction"]


class InstanceMasks:
    """Instance masks of one image, each stored as a crop to its bounding rectangle.

    Dense masks take one byte per pixel each: 1.2 GB for 100 masks of a 12-megapixel image. ``masks[i]`` is one dense
    bool mask ``[H, W]``, and ``np.asarray(masks)`` is the dense array ``[N, H, W]``.

    Args:
        crops: one bool array ``[h, w]`` per instance.
        corners: (x, y) of the upper left pixel of each crop in the image.
        image_size: (height, width) of the image in pixels.
    """

    def __init__(self, crops: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], image_size: tuple[int, int]):
        if len(crops) != len(corners):
            raise ValueError(f"`crops` and `corners` must have the same length, got {len(crops)} and {len(corners)}")
        self.crops, self.corners, self.image_size = list(crops), list(corners), image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the dense array, ``(N, H, W)``."""
        return (len(self.crops), *self.image_size)

    @classmethod
    def from_dense(
        cls,
        masks: np.ndarray,
        corner: tuple[int, int] = (0, 0),
        image_size: tuple[int, int] | None = None,
        keep: Sequence[int] | np.ndarray | None = None,
    ) -> "InstanceMasks":
        """Create from dense masks.

        Args:
            masks: bool ``[N, h, w]``.
            corner: (x, y) of the upper left pixel of the masks in the image.
            image_size: (height, width) of the image in pixels; None is the size of the masks.
            keep: indices of the masks to include, in this order; None is all. ``masks[keep]`` would copy them.
        """
        if masks.ndim != 3:
            raise ValueError(f"`masks` must have shape [N, H, W], got {list(masks.shape)}")
        masks = masks.astype(bool, copy=False)
        crops, corners = [], []
        for mask in masks if keep is None else (masks[index] for index in keep):
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            if len(rows) == 0:
                y0, y1, x0, x1 = 0, 0, 0, 0
            else:
                y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            crops.append(mask[y0:y1, x0:x1].copy())
            corners.append((int(x0) + corner[0], int(y0) + corner[1]))
        return cls(crops, corners, masks.shape[1:] if image_size is None else image_size)

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> np.ndarray:
        crop, (x, y) = self.crops[index], self.corners[index]
        mask = np.zeros(self.image_size, dtype=bool)
        mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return mask

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        dense = np.zeros((len(self), *self.image_size), dtype=bool)
        for row, mask in zip(dense, self, strict=True):
            row[:] = mask
        return dense if dtype is None else dense.astype(dtype)

    def __repr__(self) -> str:
        return f"InstanceMasks({len(self)} masks of {self.image_size[0]}x{self.image_size[1]})"

    def select(self, keep: np.ndarray) -> "InstanceMasks":
        """Return the masks at the given indices, in that order."""
        return InstanceMasks([self.crops[i] for i in keep], [self.corners[i] for i in keep], image_size=self.image_size)

    def flipped(self) -> "InstanceMasks":
        """Return the masks of the horizontally mirrored image."""
        width = self.image_size[1]
        corners = [(width - x - crop.shape[1], y) for crop, (x, y) in zip(self.crops, self.corners, strict=True)]
        return InstanceMasks([crop[:, ::-1] for crop in self.crops], corners, self.image_size)

    def moved(self, corner: tuple[int, int], image_size: tuple[int, int]) -> "InstanceMasks":
        """Return the masks in a larger image that contains this one at `corner` (x, y)."""
        corners = [(x + corner[0], y + corner[1]) for x, y in self.corners]
        return InstanceMasks(self.crops, corners, image_size)

    def within(self, index: int, window: tuple[int, int, int, int]) -> np.ndarray:
        """Return the part of a mask inside a window (x0, y0, x1, y1) of the image, bool ``[y1 - y0, x1 - x0]``."""
        x0, y0, x1, y1 = window
        part = np.zeros((y1 - y0, x1 - x0), dtype=bool)
        crop, (x, y) = self.crops[index], self.corners[index]
        left, top = max(x, x0), max(y, y0)
        right, bottom = min(x + crop.shape[1], x1), min(y + crop.shape[0], y1)
        if left < right and top < bottom:
            part[top - y0 : bottom - y0, left - x0 : right - x0] = crop[top - y : bottom - y, left - x : right - x]
        return part

    def union(self, groups: Sequence[Sequence[int]]) -> "InstanceMasks":
        """Return the union of the masks of each group of indices."""
        crops, corners = [], []
        for group in groups:
            parts = [i for i in group if self.crops[i].size]
            if len(parts) < 2:
                only = (parts or group)[0]
                crops.append(self.crops[only])
                corners.append(self.corners[only])
                continue
            x0, y0 = np.min([self.corners[i] for i in parts], axis=0)
            ends = [np.add(self.corners[i], self.crops[i].shape[::-1]) for i in parts]
            window = (int(x0), int(y0), *(int(end) for end in np.max(ends, axis=0)))
            crops.append(np.any([self.within(i, window) for i in parts], axis=0))
            corners.append(window[:2])
        return InstanceMasks(crops, corners, self.image_size)

    def to_rle(self) -> list[dict[str, Any]]:
        """Return each mask as a COCO compressed RLE: ``{"size": [H, W], "counts": str}``."""
        if not len(self):  # pycocotools fails for an empty list
            return []
        height, width = (int(side) for side in self.image_size)
        coco_mask = require("pycocotools.mask")
        codes = coco_mask.frPyObjects(
            [
                {"size": [height, width], "counts": _run_lengths(crop, corner, height, width)}
                for crop, corner in zip(self.crops, self.corners, strict=True)
            ],
            height, width,
        )  # fmt: skip
        return [{"size": [height, width], "counts": code["counts"].decode("ascii")} for code in codes]


def _run_lengths(crop: np.ndarray, corner: tuple[int, int], height: int, width: int) -> list[int]:
    """Return the lengths of the runs of zeros and ones of a mask, column by column, without building it."""
    x, y = corner
    strip = np.zeros((crop.shape[1], height), bool)  # the columns of the crop
    strip[:, y : y + crop.shape[0]] = crop.T
    ends = np.flatnonzero(np.diff(strip.ravel(), prepend=False, append=False)) + x * height
    runs = np.diff(ends, prepend=0, append=height * width).tolist() if len(ends) else [height * width]
    return runs if runs[-1] else runs[:-1]


@dataclass(frozen=True)
class Panoptic:
    """Panoptic segmentation: each pixel belongs to one segment or to none.

    Attributes:
        segments: segment number of each pixel, int32 ``[H, W]``; 0 is no segment.
        labels: class of segments 1 to N, int64 ``[N]``.
        scores: score of segments 1 to N, float32 ``[N]``.
    """

    segments: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """Predictions for one image.

    Attributes:
        image_size: (height, width) in pixels.
        classes: class names by label.
        boxes: x0, y0, x1, y1 in pixels, float32 ``[N, 4]``, sorted by descending score.
        scores: float32 ``[N]`` in [0, 1]; NaN for annotations.
        labels: indices into `classes`, int64 ``[N]``.
        masks: one mask per box, or None if the model predicts no masks.
        track_ids: id of the tracked object of each box, int64 ``[N]``, -1 for none; None if nothing is tracked.
        semantic: class index of each pixel, integer ``[H, W]``, or None. Values that are not indices into `classes`
            mean no class.
        heatmap: float32 ``[H, W]`` in [0, 1], or None: class activation map of a localization model, or probability
            of forgery of each pixel.
        image_scores: score of each class for the whole image, float32 ``[classes]``, or None.
        category_ids: id of each class in COCO files; None is 1, 2, 3, ...
        seconds: inference time for this image in seconds, including preprocessing, without drawing and writing.
        path: the image file, or None.
        image: the image, BGR uint8 ``[H, W, 3]``, if the input was an array.
        colors: RGB color of each class in drawn class maps; None uses the colors of `visionattn.inference.draw`.
        opacity: opacity of drawn masks, class maps and heat maps, in [0, 1]; None chooses it by their number.
        line_width: width of drawn lines in pixels; None chooses it by the size of the image.
        hide_labels: draw no names, scores and legends.
    """

    image_size: tuple[int, int]
    classes: tuple[str, ...]
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    masks: InstanceMasks | None = None
    semantic: np.ndarray | None = field(default=None, repr=False)
    heatmap: np.ndarray | None = field(default=None, repr=False)
    image_scores: np.ndarray | None = field(default=None, repr=False)
    category_ids: tuple[int, ...] | None = field(default=None, repr=False)
    seconds: float = 0.0
    path: Path | None = None
    image: np.ndarray | None = field(default=None, repr=False)
    colors: tuple[tuple[int, int, int], ...] | None = field(default=None, repr=False)
    opacity: float | None = field(default=None, repr=False)
    line_width: int | None = field(default=None, repr=False)
    hide_labels: bool = field(default=False, repr=False)
    track_ids: np.ndarray | None = None

    def __post_init__(self):
        count = len(self.boxes)
        if self.boxes.shape != (count, 4):
            raise ValueError(f"`boxes` must have shape [N, 4], got {list(self.boxes.shape)}")
        if not np.isfinite(self.boxes).all():
            raise ValueError("`boxes` must be finite, got NaN or infinity")
        for name in ("scores", "labels", "masks", "track_ids"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"`{name}` must have one entry per box, got {len(value)} for {count} boxes")
        known = len(self.classes)
        if count and not 0 <= self.labels.min() <= self.labels.max() < known:
            raise ValueError(f"`labels` must be in [0, {known - 1}], got {self.labels.min()} to {self.labels.max()}")
        sizes = {name: value.shape for name in ("semantic", "heatmap") if (value := getattr(self, name)) is not None}
        if self.masks is not None:
            sizes["masks"] = tuple(self.masks.image_size)
        for name, size in sizes.items():
            if size != tuple(self.image_size):
                raise ValueError(f"`{name}` must have the image size {tuple(self.image_size)}, got {size}")
        for name in ("category_ids", "colors"):
            value = getattr(self, name)
            if value is not None and len(value) != known:
                raise ValueError(f"`{name}` must have one entry per class, got {len(value)} for {known} classes")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """Class name of each box."""
        return [self.classes[label] for label in self.labels]

    @property
    def panoptic(self) -> Panoptic | None:
        """Segments predicted by a panoptic model; None for other models."""
        if self.semantic is None or self.masks is None:
            return None
        segments = np.zeros(self.image_size, np.int32)
        for index, (crop, (x, y)) in enumerate(zip(self.masks.crops, self.masks.corners, strict=True)):
            segments[y : y + crop.shape[0], x : x + crop.shape[1]][crop] = index + 1
        return Panoptic(segments, self.labels, self.scores)

    def select(self, keep: np.ndarray) -> "Prediction":
        """Return the boxes and masks selected by an array of indices (in that order) or a bool array."""
        keep = np.asarray(keep)
        keep = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            masks=None if self.masks is None else self.masks.select(keep),
            track_ids=None if self.track_ids is None else self.track_ids[keep],
        )

    def above(self, score_thr: float) -> "Prediction":
        """Return the boxes with a score of at least `score_thr`."""
        return self.select(self.scores >= score_thr)

    def draw(
        self, image: np.ndarray | None = None, *, opacity: float | None = None, line_width: int | None = None
    ) -> np.ndarray:
        """Return the image with the prediction drawn on it, BGR uint8 ``[H, W, 3]``.

        Args:
            image: BGR uint8 ``[H, W, 3]``; by default the input image, which is read again if it was a file.
            opacity: opacity of masks, class maps and heat maps, in [0, 1]; None is that of the prediction.
            line_width: width of lines in pixels; None is that of the prediction.

        Raises:
            ValueError: the prediction has no image and none is given, or the size differs.
            ConfigError: ``opacity`` or ``line_width`` is out of range.
        """
        from visionattn.inference.options import check_style
        from visionattn.io.images import read_image

        if image is None:
            image = self.image
        if image is None:
            if self.path is None:
                raise ValueError("the prediction has neither an image nor a path; pass `image` to draw()")
            image = read_image(self.path, max_pixels=self.image_size[0] * self.image_size[1])
        if image.shape != (*self.image_size, 3):
            raise ValueError(f"`image` must have shape {(*self.image_size, 3)}, got {image.shape}")
        check_style(opacity, line_width)
        styled = replace(
            self,
            opacity=self.opacity if opacity is None else opacity,
            line_width=self.line_width if line_width is None else line_width,
        )
        return styled._overlay(image)

    def _overlay(self, image: np.ndarray) -> np.ndarray:
        from visionattn.inference.draw import draw_prediction

        return draw_prediction(image, self)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """Return the boxes as COCO results, which can be written as JSON and loaded by ``COCO.loadRes``.

        Each result has ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score``,
        ``segmentation`` (compressed RLE) if there are masks, and ``track_id`` for tracked objects.
        """
        ids = self.category_ids or range(1, len(self.classes) + 1)
        codes = None if self.masks is None else self.masks.to_rle()
        results = []
        for index in range(len(self)):
            x0, y0, x1, y1 = self.boxes[index].tolist()
            result = {
                "image_id": image_id,
                "category_id": int(ids[self.labels[index]]),
                "bbox": [round(value, 3) for value in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(float(self.scores[index]), 5),
            }
            if codes is not None:
                result["segmentation"] = codes[index]
            if self.track_ids is not None and self.track_ids[index] >= 0:
                result["track_id"] = int(self.track_ids[index])
            results.append(result)
        return results

    def to_supervision(self) -> Any:
        """Return the boxes and masks as ``supervision.Detections``, with class names in ``data["class_name"]``.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            raise MissingDependencyError("supervision is not installed; run: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes,
            mask=None if self.masks is None else np.asarray(self.masks),
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )
