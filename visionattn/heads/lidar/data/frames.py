"""LiDAR frames with boxes, the common output of all readers, and the dataset that loads them.

`PointCloudFrame` describes a frame without loading its points; `PointCloudSet` loads points, maps class names to
labels and applies transforms (`visionattn.heads.lidar.data.augment`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from visionattn.errors import DataError
from visionattn.heads.lidar.data.boxes import wrap_angle
from visionattn.heads.lidar.data.camera_view import CameraView
from visionattn.heads.lidar.data.files import PointCloud, read_points

__all__ = ["BOX_KEYS", "PointCloudFrame", "PointCloudSet", "balanced_frames", "turn_boxes", "turn_points"]


_TO_FORWARD = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)

BOX_KEYS = ("boxes", "labels", "difficulty", "velocity", "attributes")
"""Entries of an item that have one row for each box."""


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 7), np.float32)


@dataclass
class PointCloudFrame:
    """One scan and its labels.

    Attributes:
        name: name of the frame.
        path: file of the points.
        boxes: float32 ``[M, 7]``: x, y, z of the center, length, width, height in meters, heading counter-clockwise
            from +x in radians.
        classes: class name of each box.
        difficulty: int64 ``[M]``: 0 easy, 1 moderate, 2 hard, -1 harder than hard (excluded from evaluation).
        ignore_boxes: float32 ``[I, 7]``, boxes excluded from evaluation.
        ignore_classes: for each ignored box, the class whose detections it may match; ``""`` for all classes.
        velocity: float32 ``[M, 2]`` in meters per second, NaN where unknown; None if the dataset has no velocities.
        labelled_region: region in which labels are complete; None for everywhere.
        columns: number of columns of the file, see `visionattn.heads.lidar.data.files.read_points`.
        intensity_scale: intensity in the file that is scaled to 1.
        x_right: whether the axes of the file are x right, y forward.
        read: custom function that loads the points, such as several sweeps; None reads ``path``.
        attributes: int64 ``[M]``, indices into `visionattn.heads.lidar.data.nuscenes_results.ATTRIBUTES`, -1 for none;
            None if the dataset has no attributes.
        bike_racks: float32 ``[R, 7]``, bicycle racks of nuScenes, in which bicycles and motorcycles are not evaluated.
        to_global: float64 ``[4, 4]``, transform from the frame of the file to the global frame; None if unknown.
        ego: float64 ``[3]``, origin of the vehicle in the frame of the file; None for that of the sensor.
    """

    name: str
    path: Path
    boxes: np.ndarray = field(default_factory=_no_boxes)
    classes: tuple[str, ...] = ()
    difficulty: np.ndarray | None = None
    ignore_boxes: np.ndarray = field(default_factory=_no_boxes)
    ignore_classes: tuple[str, ...] = ()
    velocity: np.ndarray | None = None
    labelled_region: CameraView | None = None
    columns: int | None = None
    intensity_scale: float = 1.0
    x_right: bool = False
    read: Callable[[], PointCloud] | None = None
    attributes: np.ndarray | None = None
    bike_racks: np.ndarray = field(default_factory=_no_boxes)
    to_global: np.ndarray | None = None
    ego: np.ndarray | None = None


class PointCloudSet(Dataset):
    """Dataset of LiDAR frames for training and evaluation.

    An item is a dict: ``points`` float32 ``[N, C]`` (x, y, z, intensity in [0, 1], then further columns), ``boxes``
    float32 ``[M, 7]``, ``labels`` int64 ``[M]``, ``difficulty`` int64 ``[M]``, ``ignore_boxes`` float32 ``[I, 7]``,
    ``ignore_labels`` int64 ``[I]`` (-1 for all classes), ``velocity`` float32 ``[M, 2]`` and ``attributes`` int64
    ``[M]`` if available, ``bike_racks`` float32 ``[R, 7]``, ``to_global`` and ``ego`` (float64 or None),
    ``labelled_region`` (a `CameraView` or None), ``frame``, ``path`` and ``dropped`` (number of non-finite points).

    Transforms get a generator seeded from NumPy's global random state, so an item is determined by that state.

    Args:
        frames: frames from one of the readers.
        classes: class names, in the order of the labels. Boxes of other classes are dropped.
        columns: number of point columns to keep, at least 3.
        transform: called with an item (NumPy arrays) and a ``numpy.random.Generator``; returns an item.
        crop_to_view: drop points and boxes outside the labeled region, where unlabeled objects would count as
            background in training.
        x_forward: rotate frames with axes x right, y forward (nuScenes) to x forward, y left, as in KITTI.

    Raises:
        ValueError: if ``classes`` has duplicates or is empty, or ``columns`` is less than 3.
    """

    def __init__(
        self,
        frames: Sequence[PointCloudFrame],
        classes: Sequence[str],
        columns: int = 4,
        transform: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]] | None = None,
        crop_to_view: bool = False,
        x_forward: bool = False,
    ) -> None:
        if len(set(classes)) != len(classes) or not classes:
            raise ValueError(f"`classes` must be one or more distinct names, got {list(classes)}")
        if columns < 3:
            raise ValueError(f"`columns` must be at least 3 (x, y, z), got {columns}")
        self.frames, self.classes, self.columns = list(frames), tuple(classes), columns
        self.transform, self.crop_to_view, self.x_forward = transform, crop_to_view, x_forward

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.load(index)
        if self.transform is not None:
            rng = np.random.default_rng(np.random.randint(2**31, size=4))
            item = self.transform(item, rng)
        return {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in item.items()}

    def load(self, index: int) -> dict[str, Any]:
        """Load an item as NumPy arrays, without transforms."""
        frame = self.frames[index]
        item = self.labels(index)
        cloud = frame.read() if frame.read is not None else read_points(frame.path, frame.columns)
        points = cloud.points
        if points.shape[1] < self.columns:
            raise DataError(f"{frame.path}: has {points.shape[1]} columns, but `columns` is {self.columns}")
        points = np.array(points[:, : self.columns])
        if self.columns > 3 and frame.intensity_scale != 1:
            points[:, 3] /= frame.intensity_scale
        if self.x_forward and frame.x_right:
            points = turn_points(points)
        region = item["labelled_region"]
        if self.crop_to_view and region is not None:
            points = points[region.sees(points)]
            inside = region.sees(item["boxes"])
            for key in BOX_KEYS:
                if key in item:
                    item[key] = item[key][inside]
        return {"points": points, **item, "dropped": cloud.dropped}

    def labels(self, index: int) -> dict[str, Any]:
        """Load an item without its points."""
        frame = self.frames[index]
        numbers = {name: number for number, name in enumerate(self.classes)}
        known = np.array([name in numbers for name in frame.classes], bool)
        difficulty = np.zeros(len(known), np.int64) if frame.difficulty is None else frame.difficulty
        ignored = np.array([name == "" or name in numbers for name in frame.ignore_classes], bool)
        item: dict[str, Any] = {
            "boxes": frame.boxes[known].astype(np.float32),
            "labels": np.array([numbers[n] for n in frame.classes if n in numbers], np.int64),
            "difficulty": difficulty[known],
            "ignore_boxes": frame.ignore_boxes[ignored].astype(np.float32),
            "ignore_labels": np.array(
                [numbers.get(n, -1) for n, take in zip(frame.ignore_classes, ignored, strict=True) if take], np.int64
            ),
        }
        if frame.velocity is not None:
            item["velocity"] = frame.velocity[known].astype(np.float32)
        if frame.attributes is not None:
            item["attributes"] = frame.attributes[known]
        item |= {"bike_racks": frame.bike_racks, "to_global": frame.to_global, "ego": frame.ego}
        item["labelled_region"] = frame.labelled_region
        if self.x_forward and frame.x_right:
            _turn_forward(item)
        return {**item, "frame": frame.name, "path": str(frame.path)}


def balanced_frames(frames: Sequence[PointCloudFrame], classes: Sequence[str], seed: int = 0) -> list[PointCloudFrame]:
    """Resample frames so that rare classes occur as often as others (class-balanced sampling, CBGS, arXiv 1908.09492).

    From the frames with each class, the same number is drawn with replacement: the mean over the classes of the number
    of frames with the class, at least 1. nuScenes then has about 4.4 times as many frames. Classes without frames are
    skipped, and frames without any class are dropped.

    Args:
        frames: frames from one of the readers.
        classes: class names.
        seed: random seed.
    """
    pools = [np.flatnonzero([name in frame.classes for frame in frames]) for name in classes]
    count = max(sum(map(len, pools)) // len(classes), 1)
    rng = np.random.default_rng(seed)
    return [frames[index] for pool in pools if len(pool) for index in rng.choice(pool, count)]


def _turn_forward(item: dict[str, Any]) -> None:
    """Rotate the labels of an item from x right, y forward to x forward, y left."""
    for key in ("boxes", "ignore_boxes", "bike_racks"):
        item[key] = turn_boxes(item[key])
    if "velocity" in item:
        item["velocity"] = turn_points(item["velocity"])
    if item["to_global"] is not None:
        item["to_global"] = item["to_global"] @ _TO_FORWARD.T
    if item["ego"] is not None:
        item["ego"] = _TO_FORWARD[:3, :3] @ item["ego"]
    if item["labelled_region"] is not None:
        item["labelled_region"] = item["labelled_region"].moved(_TO_FORWARD)


def turn_points(points: np.ndarray) -> np.ndarray:
    """Rotate points ``[N, C]`` (x and y first) from x right, y forward to x forward, y left."""
    turned = np.array(points)
    turned[:, 0], turned[:, 1] = points[:, 1], -points[:, 0]
    return turned


def turn_boxes(boxes: np.ndarray) -> np.ndarray:
    """Rotate boxes ``[M, 7]`` from x right, y forward to x forward, y left."""
    turned = turn_points(boxes)
    turned[:, 6] = wrap_angle(boxes[:, 6] - np.pi / 2)
    return turned
