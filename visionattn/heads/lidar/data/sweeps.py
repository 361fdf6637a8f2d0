"""Several turns of a LiDAR as one point cloud, in the frame of the last, with the age of each point."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.heads.lidar.data.files import PointCloud, read_points

__all__ = ["Sweep", "SweepReader", "rotation_matrix", "transform"]


@dataclass(frozen=True)
class Sweep:
    """One turn.

    Attributes:
        path: of its points.
        to_key: float64 ``[4, 4]``, from its frame to that of the last turn.
        age: seconds before the last turn.
    """

    path: Path
    to_key: np.ndarray
    age: float


@dataclass(frozen=True)
class SweepReader:
    """Reads turns as one: x, y, z, intensity, age in seconds.

    Attributes:
        path: of the last turn.
        sweeps: those before it.
        columns: of the files.
        nearest: metres in x and y within which points of earlier turns are left out: the vehicle itself.
    """

    path: Path
    sweeps: Sequence[Sweep] = ()
    columns: int = 5
    nearest: float = 1.0

    def __call__(self) -> PointCloud:
        """All points, the last turn's first."""
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
    """``[3, 3]`` of a quaternion w, x, y, z, which need not have length 1.

    Raises:
        ValueError: it is no 4 numbers, or 0.
    """
    q = np.asarray(quaternion, np.float64)
    if q.shape != (4,) or not np.linalg.norm(q) > 0:
        raise ValueError(f"rotation {quaternion} must be 4 numbers (w, x, y, z), not all 0")
    w, x, y, z = q / np.linalg.norm(q)
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def transform(rotation: Sequence[float], translation: Sequence[float]) -> np.ndarray:
    """``[4, 4]`` of a quaternion w, x, y, z and a shift."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation_matrix(rotation), translation
    return matrix
