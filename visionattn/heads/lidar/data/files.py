"""Point clouds from files: KITTI's and nuScenes' ``.bin``, PCD, and NumPy's arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.data.pcd import read_pcd
from visionattn.io.npz import read_arrays

__all__ = ["SUFFIXES", "PointCloud", "read_points", "write_points"]

SUFFIXES = (".bin", ".pcd", ".npy", ".npz")
"""Of the files that `read_points` takes."""

_INTENSITY = ("intensity", "i", "reflectance", "reflectivity")


@dataclass(frozen=True)
class PointCloud:
    """What a file holds.

    Attributes:
        points: float32 ``[N, C]``: x, y, z and what else the file has.
        dropped: rows left out because a value of theirs was not finite.
    """

    points: np.ndarray
    dropped: int


def read_points(path: str | Path, columns: int | None = None) -> PointCloud:
    """Read a point cloud.

    - ``.bin`` is float32, little-endian, row after row: KITTI's have 4 columns, nuScenes' 5 (the last is the ring).
      Without ``columns``, a file called ``.pcd.bin`` has 5; of others the size decides, or else the values do.
    - ``.pcd``: x, y, z, intensity (zeros where the file has none), then its other fields in their order.
    - ``.npy``: a numeric array ``[N, C]``; ``.npz``: its array ``points``, or the only one. Objects are refused.

    Args:
        path: the file.
        columns: of a ``.bin``, how many there are; of others, how many to keep.

    Raises:
        DataError: the file is missing, cut short, of another format, or its header claims more than it holds.
    """
    path = Path(path)
    if columns is not None and columns < 3:
        raise ValueError(f"columns={columns} must be at least 3: x, y, z")
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{path}: no known kind of point cloud; there are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    readers = {".bin": _read_bin, ".pcd": _read_pcd, ".npy": _read_npy, ".npz": _read_npz}
    points = readers[path.suffix.lower()](path, columns)
    if columns is not None and points.shape[1] < columns:
        raise DataError(f"{path}: has {points.shape[1]} columns, and columns={columns} are asked for")
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite, and is dropped
        points = points[:, :columns].astype(np.float32)
    finite = np.isfinite(points).all(1)
    dropped = int(len(points) - finite.sum())
    return PointCloud(points[finite] if dropped else points, dropped)


def write_points(path: str | Path, points: np.ndarray) -> None:
    """Write ``[N, C]`` as a ``.bin``."""
    np.ascontiguousarray(points, "<f4").tofile(path)


def _read_bin(path: Path, columns: int | None) -> np.ndarray:
    size = path.stat().st_size
    if columns is None and path.name.endswith(".pcd.bin"):
        columns = 5
    possible = [c for c in ((4, 5) if columns is None else (columns,)) if size % (4 * c) == 0]
    if not possible:
        what = "4 or 5" if columns is None else str(columns)
        raise DataError(
            f"{path}: its {size} bytes are no rows of {what} float32 columns; it is cut short, or of others"
        )
    values = np.fromfile(path, "<f4")
    if len(possible) > 1 and size:
        possible = [c for c in possible if _sensible(values.reshape(-1, c))]
        if len(possible) != 1:
            raise DataError(f"{path}: could have 4 or 5 columns; give the number")
    return values.reshape(-1, possible[0])


def _sensible(points: np.ndarray) -> bool:
    """Whether all beyond x, y, z (intensity, ring or time) is at least 0, as no coordinates in its place would be."""
    with np.errstate(invalid="ignore"):
        return not (points[:, 3:] < 0).any() and bool((points[:, :3] < 0).any())


def _read_pcd(path: Path, columns: int | None) -> np.ndarray:
    fields = read_pcd(path)
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise DataError(f"{path}: has no field {missing[0]!r}; it has {', '.join(fields) or 'none'}")
    intensity = next((name for name in _INTENSITY if name in fields), None)
    first = [fields[axis] for axis in "xyz"]
    first.append(np.zeros(len(fields["x"]), np.float32) if intensity is None else fields[intensity])
    others = [values for name, values in fields.items() if name not in ("x", "y", "z", intensity)]
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.stack([column.astype(np.float64) for column in (first + others)[:columns]], axis=1)


def _read_npy(path: Path, columns: int | None) -> np.ndarray:
    try:  # mapping compares the header with the size of the file
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, and damage there shows as any error
        raise DataError(f"{path}: is no readable array, or is cut short ({' '.join(str(error).split())})") from error
    return _checked(array, path)


def _read_npz(path: Path, columns: int | None) -> np.ndarray:
    def pick(names: list[str]) -> list[str]:
        return names if len(names) == 1 else ["points"]

    return _checked(read_arrays(path, pick)[0], path)


def _checked(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise DataError(f"{path}: must hold numbers [N, C] with C at least 3, got {array.dtype} {array.shape}")
    return array
