"""What a model says of one image, as a typed record that draws itself and turns into COCO's format."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import MissingDependencyError, require

__all__ = ["InstanceMasks", "Panoptic", "Prediction"]


class InstanceMasks:
    """The masks of an image's instances, each kept only as the rectangle it fills.

    A hundred dense masks of a 12-megapixel picture take 1.2 GB; as rectangles, what the objects cover.
    ``len``, indexing (one dense ``[H, W]`` bool mask) and iteration work, and ``np.asarray(masks)`` is the
    dense ``[N, H, W]`` array.

    Args:
        crops: one bool array ``[h, w]`` per instance.
        corners: (x, y) of each crop's first pixel in the image.
        image_size: (height, width) of the image in pixels.
    """

    def __init__(self, crops: Sequence[np.ndarray], corners: Sequence[tuple[int, int]], image_size: tuple[int, int]):
        if len(crops) != len(corners):
            raise ValueError(f"{len(crops)} crops but {len(corners)} corners")
        self.crops, self.corners, self.image_size = list(crops), list(corners), image_size

    @classmethod
    def from_dense(
        cls,
        masks: np.ndarray,
        corner: tuple[int, int] = (0, 0),
        image_size: tuple[int, int] | None = None,
    ) -> "InstanceMasks":
        """From a bool array ``[N, h, w]`` whose first pixel is at `corner` (x, y) of the image."""
        if masks.ndim != 3:
            raise ValueError(f"masks must be [N, H, W], got shape {masks.shape}")
        masks = masks.astype(bool, copy=False)
        crops, corners = [], []
        for mask in masks:
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
        """The masks at the given indices, in their order."""
        return InstanceMasks([self.crops[i] for i in keep], [self.corners[i] for i in keep], image_size=self.image_size)

    def flipped(self) -> "InstanceMasks":
        """The same masks in the image mirrored left to right."""
        width = self.image_size[1]
        corners = [(width - x - crop.shape[1], y) for crop, (x, y) in zip(self.crops, self.corners, strict=True)]
        return InstanceMasks([crop[:, ::-1] for crop in self.crops], corners, self.image_size)

    def moved(self, corner: tuple[int, int], image_size: tuple[int, int]) -> "InstanceMasks":
        """The same masks in a larger image in which this one starts at `corner` (x, y)."""
        corners = [(x + corner[0], y + corner[1]) for x, y in self.corners]
        return InstanceMasks(self.crops, corners, image_size)

    def within(self, index: int, window: tuple[int, int, int, int]) -> np.ndarray:
        """The part of one mask inside a window (x0, y0, x1, y1) of the image, bool ``[y1 - y0, x1 - x0]``."""
        x0, y0, x1, y1 = window
        part = np.zeros((y1 - y0, x1 - x0), dtype=bool)
        crop, (x, y) = self.crops[index], self.corners[index]
        left, top = max(x, x0), max(y, y0)
        right, bottom = min(x + crop.shape[1], x1), min(y + crop.shape[0], y1)
        if left < right and top < bottom:
            part[top - y0 : bottom - y0, left - x0 : right - x0] = crop[top - y : bottom - y, left - x : right - x]
        return part

    def union(self, groups: Sequence[Sequence[int]]) -> "InstanceMasks":
        """One mask for each group of indices, set where any of theirs is."""
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
        """Each mask in COCO's compressed run lengths: ``{"size": [H, W], "counts": str}``."""
        coco_mask = require("pycocotools.mask")
        codes = (coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in self)
        return [{"size": list(self.image_size), "counts": code["counts"].decode("ascii")} for code in codes]


@dataclass(frozen=True)
class Panoptic:
    """A panoptic map: each pixel belongs to one segment or none.

    Attributes:
        segments: int32 ``[H, W]``, the number of the segment at each pixel, 0 where there is none.
        labels: int64 ``[N]``, class of segments 1 to N.
        scores: float32 ``[N]``.
    """

    segments: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        image_size: (height, width) in pixels.
        classes: the name of each class.
        boxes: float32 ``[N, 4]``, x0 y0 x1 y1 in pixels of the image, best score first.
        scores: float32 ``[N]`` in 0..1; NaN for annotations, which have none.
        labels: int64 ``[N]``, indices into `classes`.
        masks: one mask per box, or None from a model that makes none.
        semantic: the class of each pixel, integer ``[H, W]``, or None. A value that is no index into
            `classes` means no class.
        heatmap: where the model sees what it says, float32 ``[H, W]`` in 0..1, or None; from forgery models, the
            probability that a pixel is forged.
        image_scores: score of each class for the whole image, float32 ``[classes]``, or None.
        category_ids: the id that each class has in COCO files; 1, 2, 3, ... unless given.
        seconds: time the model took on this image, its preparation included, drawing and writing not.
        path: the file it was read from, or None.
        image: the picture itself, BGR uint8 ``[H, W, 3]``, if it was given as an array.
        colors: the colour (red, green, blue) of each class in a drawn map, or None for those of
            `visionattn.inference.draw`.
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

    def __post_init__(self):
        count = len(self.boxes)
        if self.boxes.shape != (count, 4):
            raise ValueError(f"boxes must be [N, 4], got shape {self.boxes.shape}")
        for name in ("scores", "labels", "masks"):
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{count} boxes but {len(value)} {name}")
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels must be in 0..{len(self.classes) - 1}, got {self.labels.max()}")
        if self.masks is not None and tuple(self.masks.image_size) != tuple(self.image_size):
            raise ValueError(f"masks are of size {self.masks.image_size}, the image {self.image_size}")
        if self.semantic is not None and self.semantic.shape != tuple(self.image_size):
            raise ValueError(f"semantic is of size {self.semantic.shape}, the image {self.image_size}")
        if self.heatmap is not None and self.heatmap.shape != tuple(self.image_size):
            raise ValueError(f"heatmap is of size {self.heatmap.shape}, the image {self.image_size}")
        if self.category_ids is not None and len(self.category_ids) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes but {len(self.category_ids)} category_ids")
        if self.colors is not None and len(self.colors) != len(self.classes):
            raise ValueError(f"{len(self.classes)} classes but {len(self.colors)} colors")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each box."""
        return [self.classes[label] for label in self.labels]

    @property
    def panoptic(self) -> Panoptic | None:
        """The segments of a panoptic model, or None from other models."""
        if self.semantic is None or self.masks is None:
            return None
        segments = np.zeros(self.image_size, np.int32)
        for index, (crop, (x, y)) in enumerate(zip(self.masks.crops, self.masks.corners, strict=True)):
            segments[y : y + crop.shape[0], x : x + crop.shape[1]][crop] = index + 1
        return Panoptic(segments, self.labels, self.scores)

    def select(self, keep: np.ndarray) -> "Prediction":
        """Only the boxes (and masks) at the given indices, in their order, or where a bool array is true."""
        keep = np.asarray(keep)
        keep = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        return replace(
            self,
            boxes=self.boxes[keep],
            scores=self.scores[keep],
            labels=self.labels[keep],
            masks=None if self.masks is None else self.masks.select(keep),
        )

    def above(self, score_thr: float) -> "Prediction":
        """Only the boxes with at least this score."""
        return self.select(self.scores >= score_thr)

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """The picture with everything predicted drawn on it, BGR uint8 ``[H, W, 3]``.

        Args:
            image: the picture in BGR uint8; without it the one that was predicted on is taken, from its file
                if it came from one.

        Raises:
            ValueError: no picture is known, or it has another size.
        """
        from visionattn.io.images import read_image

        if image is None:
            image = self.image
        if image is None:
            if self.path is None:
                raise ValueError("this prediction has no picture of its own; give draw() the image")
            image = read_image(self.path, max_pixels=self.image_size[0] * self.image_size[1])
        if image.shape != (*self.image_size, 3):
            raise ValueError(f"image must be of shape {(*self.image_size, 3)}, got {image.shape}")
        return self._overlay(image)

    def _overlay(self, image: np.ndarray) -> np.ndarray:
        from visionattn.inference.draw import draw_prediction

        return draw_prediction(image, self)

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """The boxes as COCO results, ready for JSON and for ``COCO.loadRes``.

        Each has image_id, category_id, bbox (x, y, width, height in pixels), score, and segmentation
        (compressed run lengths) if there are masks.
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
            results.append(result)
        return results

    def to_supervision(self) -> Any:
        """The boxes and masks as ``supervision.Detections``, class names in ``data["class_name"]``.

        Raises:
            MissingDependencyError: the library supervision is not installed.
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
