"""Data augmentation of point clouds and their boxes.

A transform takes an item of `visionattn.heads.lidar.data.frames.PointCloudSet` (NumPy arrays) and a random generator,
the only source of randomness, and returns a new item. Geometric transforms apply to points, boxes, velocities and the
labeled region.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from visionattn.heads.lidar.data.boxes import points_in_box, wrap_angle
from visionattn.heads.lidar.data.frames import BOX_KEYS

__all__ = [
    "Compose",
    "DropPoints",
    "Item",
    "RandomFlip",
    "RandomRotation",
    "RandomScaling",
    "RandomTranslation",
    "RangeFilter",
    "ShufflePoints",
    "move",
]

Item = dict[str, Any]
Transform = Callable[[Item, np.random.Generator], Item]


def move(item: Item, matrix: np.ndarray) -> Item:
    """Apply a transform to an item; ``bike_racks``, ``to_global`` and ``ego``, which only evaluation uses, are dropped.

    Args:
        item: the item; it is not modified.
        matrix: ``[4, 4]``, composed of a rotation about z, flips, a uniform scale and a translation.
    """
    matrix = np.asarray(matrix, np.float64)
    linear, shift = matrix[:3, :3], matrix[:3, 3]
    scale = abs(np.linalg.det(linear)) ** (1 / 3)
    moved = {key: value for key, value in item.items() if key not in ("bike_racks", "to_global", "ego")}
    moved["points"] = np.array(item["points"])
    moved["points"][:, :3] = item["points"][:, :3] @ linear.T + shift
    for key in ("boxes", "ignore_boxes"):
        old = item[key].astype(np.float64)
        new = old.copy()
        new[:, :3] = old[:, :3] @ linear.T + shift
        new[:, 3:6] = old[:, 3:6] * scale
        ahead = np.stack([np.cos(old[:, 6]), np.sin(old[:, 6])], -1) @ linear[:2, :2].T
        new[:, 6] = wrap_angle(np.arctan2(ahead[:, 1], ahead[:, 0]))
        moved[key] = new.astype(np.float32)
    if "velocity" in item:
        moved["velocity"] = (item["velocity"] @ linear[:2, :2].T).astype(np.float32)
    if item.get("labelled_region") is not None:
        moved["labelled_region"] = item["labelled_region"].moved(matrix)
    return moved


def _scaled(matrix: np.ndarray, size: int = 4) -> np.ndarray:
    full = np.eye(size)
    full[: len(matrix), : len(matrix)] = matrix
    return full


class Compose:
    """Apply several transforms in sequence."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        for transform in self.transforms:
            item = transform(item, rng)
        return item


class RandomFlip:
    """Randomly mirror the scene.

    Args:
        left_right: probability of negating y.
        front_back: probability of negating x.
    """

    def __init__(self, left_right: float = 0.5, front_back: float = 0.5) -> None:
        for name, value in (("left_right", left_right), ("front_back", front_back)):
            if not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be in [0, 1], got {value}")
        self.left_right, self.front_back = left_right, front_back

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        left_right, front_back = rng.random(2) < (self.left_right, self.front_back)
        if not (left_right or front_back):
            return item
        return move(item, np.diag([-1.0 if front_back else 1.0, -1.0 if left_right else 1.0, 1.0, 1.0]))


class RandomRotation:
    """Randomly rotate the scene about the z axis of the sensor.

    Args:
        angle: range (minimum, maximum) in radians; a single number a means (-a, a).
    """

    def __init__(self, angle: float | tuple[float, float] = np.pi / 4) -> None:
        self.angle = _pair("angle", angle)

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        angle = rng.uniform(*self.angle)
        c, s = np.cos(angle), np.sin(angle)
        return move(item, _scaled(np.array([[c, -s], [s, c]])))


class RandomScaling:
    """Randomly scale the scene, including its objects.

    Args:
        scale: range (minimum, maximum) of the factor, above 0.
    """

    def __init__(self, scale: tuple[float, float] = (0.95, 1.05)) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"`scale` must be two ascending numbers above 0, got {scale}")
        self.scale = scale

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        return move(item, _scaled(np.eye(3) * rng.uniform(*self.scale)))


class RandomTranslation:
    """Randomly translate the scene by normally distributed offsets.

    Args:
        deviation: standard deviation along x, y and z, in meters.
    """

    def __init__(self, deviation: float | tuple[float, float, float] = 0.5) -> None:
        self.deviation = np.broadcast_to(np.asarray(deviation, np.float64), 3)
        if not (self.deviation >= 0).all():
            raise ValueError(f"`deviation` must be at least 0, got {deviation}")

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        matrix = np.eye(4)
        matrix[:3, 3] = rng.normal(0, 1, 3) * self.deviation
        return move(item, matrix)


class RangeFilter:
    """Drop points outside a range, and boxes whose center is outside it.

    Args:
        point_cloud_range: minimum x, y, z and maximum x, y, z, in meters.
        least_points: boxes with fewer remaining points are moved to the ignored boxes.
    """

    def __init__(self, point_cloud_range: Sequence[float], least_points: int = 0) -> None:
        self.range = np.asarray(point_cloud_range, np.float64)
        if self.range.shape != (6,) or not (self.range[:3] < self.range[3:]).all():
            raise ValueError(
                f"`point_cloud_range` must be minimum x, y, z and larger maximum x, y, z, got {list(point_cloud_range)}"
            )
        self.least_points = least_points

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        changed = dict(item)
        changed["points"] = item["points"][self._inside(item["points"])]
        inside = self._inside(item["boxes"])
        if self.least_points > 0:
            full = [len(points_in_box(changed["points"], box)) >= self.least_points for box in item["boxes"]]
            poor = inside & ~np.array(full, bool)
            inside &= ~poor
        else:
            poor = np.zeros(len(inside), bool)
        for key in BOX_KEYS:
            if key in item:
                changed[key] = item[key][inside]
        ignored = self._inside(item["ignore_boxes"])
        changed["ignore_boxes"] = np.concatenate([item["ignore_boxes"][ignored], item["boxes"][poor]])
        changed["ignore_labels"] = np.concatenate([item["ignore_labels"][ignored], item["labels"][poor]])
        return changed

    def _inside(self, rows: np.ndarray) -> np.ndarray:
        return ((rows[:, :3] >= self.range[:3]) & (rows[:, :3] < self.range[3:])).all(1)


class ShufflePoints:
    """Randomly permute the points."""

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        return {**item, "points": item["points"][rng.permutation(len(item["points"]))]}


class DropPoints:
    """Drop each point with a probability drawn once per scan.

    Args:
        share: range (minimum, maximum) of the probability, in [0, 1].
    """

    def __init__(self, share: tuple[float, float] = (0.0, 0.2)) -> None:
        if not 0 <= share[0] <= share[1] <= 1:
            raise ValueError(f"`share` must be two ascending numbers in [0, 1], got {share}")
        self.share = share

    def __call__(self, item: Item, rng: np.random.Generator) -> Item:
        kept = rng.random(len(item["points"])) >= rng.uniform(*self.share)
        return {**item, "points": item["points"][kept]}


def _pair(name: str, value: float | tuple[float, float]) -> tuple[float, float]:
    low, high = (-abs(value), abs(value)) if isinstance(value, (int, float)) else value
    if not low <= high:
        raise ValueError(f"`{name}` must be a number or two ascending numbers, got {value}")
    return float(low), float(high)
