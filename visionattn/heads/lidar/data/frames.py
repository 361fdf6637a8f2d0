"""Frames of LiDAR data with their boxes: what all readers give, and the dataset that loads them.

`PointCloudFrame` is what is known of a frame without reading its points; `PointCloudSet` reads points, gives classes
their numbers and applies transforms (`visionattn.heads.lidar.data.augment`).
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

__all__ = ["PointCloudFrame", "PointCloudSet", "turn_boxes", "turn_points"]


_TO_FORWARD = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float64)


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 7), np.float32)


@dataclass
class PointCloudFrame:
    """One scan and its labels.

    Attributes:
        name: of the frame.
        path: of its points.
        boxes: float32 ``[M, 7]``: x, y, z of the centre, length, width, height, heading counter-clockwise from +x.
        classes: name of each box's class.
        difficulty: int64 ``[M]``, 0 easy, 1 moderate, 2 hard; -1 for what is harder than hard, which counts neither
            way in a measure.
        ignore_boxes: float32 ``[I, 7]``, boxes that count neither way.
        ignore_classes: for each, the class of detections that it excuses; ``""`` for all.
        velocity: float32 ``[M, 2]`` in metres per second, NaN where unknown; None if the set has none.
        labelled_region: where labels are complete; None for everywhere.
        columns: of the file, see `visionattn.heads.lidar.data.files.read_points`.
        intensity_scale: value of the file's intensity that becomes 1.
        x_right: whether the file's axes are x right, y forward.
        read: reads the points in another way, such as several sweeps as one.
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


class PointCloudSet(Dataset):
    """Frames as items for training and for measures.

    An item is a dict: ``points`` float32 ``[N, C]`` (x, y, z, intensity in 0..1, then what the set has), ``boxes``
    float32 ``[M, 7]``, ``labels`` int64 ``[M]``, ``difficulty`` int64 ``[M]``, ``ignore_boxes`` float32 ``[I, 7]``,
    ``ignore_labels`` int64 ``[I]`` (-1: of all classes), ``velocity`` float32 ``[M, 2]`` where there is one,
    ``labelled_region`` (None, or a `CameraView`), ``frame``, ``path`` and ``dropped`` (points that were not finite).

    Transforms draw from a generator that NumPy's global one seeds, so that an item is the same whenever that one is
    in the same state.

    Args:
        frames: from one of the readers.
        classes: names of the classes, in the order of their labels. Boxes of other classes are left out.
        columns: how many columns of the points to keep, at least 3.
        transform: called with an item, in NumPy arrays, and a ``numpy.random.Generator``; gives an item.
        crop_to_view: leave out points and boxes outside of the labelled region, as training on them would teach that
            nothing is there.
        x_forward: turn frames whose axes are x right, y forward (nuScenes) to x forward, y left, as KITTI's are.

    Raises:
        ValueError: a class is named twice.
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
            raise ValueError(f"classes={list(classes)} must be one or more different names")
        if columns < 3:
            raise ValueError(f"columns={columns} must be at least 3: x, y, z")
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
        """An item in NumPy arrays, without transforms."""
        frame = self.frames[index]
        item = self.labels(index)
        cloud = frame.read() if frame.read is not None else read_points(frame.path, frame.columns)
        points = cloud.points
        if points.shape[1] < self.columns:
            raise DataError(f"{frame.path}: has {points.shape[1]} columns, and columns={self.columns} are asked for")
        points = np.array(points[:, : self.columns])
        if self.columns > 3 and frame.intensity_scale != 1:
            points[:, 3] /= frame.intensity_scale
        if self.x_forward and frame.x_right:
            points = turn_points(points)
        region = item["labelled_region"]
        if self.crop_to_view and region is not None:
            points = points[region.sees(points)]
            inside = region.sees(item["boxes"])
            for key in ("boxes", "labels", "difficulty", "velocity"):
                if key in item:
                    item[key] = item[key][inside]
        return {"points": points, **item, "dropped": cloud.dropped}

    def labels(self, index: int) -> dict[str, Any]:
        """An item without its points, which are not read."""
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
        if self.x_forward and frame.x_right:
            item["boxes"], item["ignore_boxes"] = turn_boxes(item["boxes"]), turn_boxes(item["ignore_boxes"])
            if "velocity" in item:
                item["velocity"] = turn_points(item["velocity"])
        region = frame.labelled_region
        if self.x_forward and frame.x_right and region is not None:
            region = region.moved(_TO_FORWARD)
        return {**item, "labelled_region": region, "frame": frame.name, "path": str(frame.path)}


def turn_points(points: np.ndarray) -> np.ndarray:
    """From x right, y forward to x forward, y left; ``[N, C]``, x and y first."""
    turned = np.array(points)
    turned[:, 0], turned[:, 1] = points[:, 1], -points[:, 0]
    return turned


def turn_boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``[M, 7]`` turned as `turn_points` turns points."""
    turned = turn_points(boxes)
    turned[:, 6] = wrap_angle(boxes[:, 6] - np.pi / 2)
    return turned
