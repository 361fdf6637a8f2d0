"""Aggregation of LiDAR sweeps into one point cloud in the frame of the key sweep, with the age of each point."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.heads.lidar.data.files import PointCloud, read_points

__all__ = ["Sweep", "SweepReader", "rotation_matrix", "transform"]


@dataclass(frozen=True)
class Sweep:
    """One earlier sweep.

    Attributes:
        path: file of the points.
        to_key: float64 ``[4, 4]``, transform to the frame of the key sweep.
        age: time before the key sweep, in seconds.
    """

    path: Path
    to_key: np.ndarray
    age: float


@dataclass(frozen=True)
class SweepReader:
    """Read several sweeps as one point cloud with the columns x, y, z, intensity and age in seconds.

    Attributes:
        path: file of the key sweep, the latest one.
        sweeps: the earlier sweeps.
        columns: number of columns of the files.
        nearest: points of earlier sweeps within this distance in both x and y are dropped, in meters, because they
            lie on the ego vehicle.
    """

    path: Path
    sweeps: Sequence[Sweep] = ()
    columns: int = 5
    nearest: float = 1.0

    def __call__(self) -> PointCloud:
        """Load all points, those of the key sweep first."""
        first = read_points(self.path, self.columns)
        parts, dropped = [_with_age(first.points, 0.0)], first.dropped
        for sweep in self.sweeps:
            cloud = read_points(sweep.path, self.columns)
            dropped += cloud.dropped
            points = _with_age(cloud.points, sweep.age)
            points = points[(np.abs(points[:, :2]) >= self.nearest).any(1)]
            points[:, :3] = points[:, :3] @ sweep.to_key[:3, :3].T + sweep.to_key[:3, 3]
            parts.append(points)
        return PointCloud(np.concatenate(parts), dropped)


def _with_age(points: np.ndarray, age: float) -> np.ndarray:
    return np.concatenate([points[:, :4], np.full((len(points), 1), age, np.float32)], axis=1)


def rotation_matrix(quaternion: Sequence[float]) -> np.ndarray:
    """Rotation matrix ``[3, 3]`` of a quaternion (w, x, y, z), which is normalized first.

    Raises:
        ValueError: if the quaternion is not 4 numbers, or is zero.
    """
    q = np.asarray(quaternion, np.float64)
    if q.shape != (4,) or not np.linalg.norm(q) > 0:
        raise ValueError(f"`quaternion` must be 4 numbers (w, x, y, z), not all 0, got {quaternion}")
    w, x, y, z = q / np.linalg.norm(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def transform(rotation: Sequence[float], translation: Sequence[float]) -> np.ndarray:
    """Homogeneous transform ``[4, 4]`` of a quaternion (w, x, y, z) and a translation."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_matrix(rotation), translation
    return matrix
