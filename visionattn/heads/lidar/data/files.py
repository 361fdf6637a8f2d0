"""Reading and writing of point cloud files: ``.bin`` of KITTI and nuScenes, PCD and NumPy arrays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, FormatError
from visionattn.heads.lidar.data.pcd import read_pcd
from visionattn.io.npz import read_arrays

__all__ = ["SUFFIXES", "PointCloud", "read_points", "write_points"]

SUFFIXES = (".bin", ".pcd", ".npy", ".npz")
"""File name suffixes that `read_points` supports."""

_INTENSITY = ("intensity", "i", "reflectance", "reflectivity")


@dataclass(frozen=True)
class PointCloud:
    """Content of a point cloud file.

    Attributes:
        points: float32 ``[N, C]``: x, y, z and the further columns of the file.
        dropped: number of rows dropped because a value was not finite.
    """

    points: np.ndarray
    dropped: int


def read_points(path: str | Path, columns: int | None = None) -> PointCloud:
    """Read a point cloud.

    - ``.bin``: rows of little-endian float32 values, 4 columns in KITTI and 5 in nuScenes (the last is the ring).
      Without ``columns``, ``.pcd.bin`` files have 5; for others, the number is inferred from the file size and values.
    - ``.pcd``: x, y, z, intensity (zeros if the file has none), then the other fields in file order.
    - ``.npy``: a numeric array ``[N, C]``. ``.npz``: its array ``points``, or its only array. Objects are not loaded.

    Args:
        path: the file.
        columns: for ``.bin``, the number of columns in the file; for other formats, the number to keep.

    Raises:
        ValueError: if ``columns`` is less than 3.
        DataError: if the file is missing, truncated, or inconsistent with its header.
        FormatError: if the suffix is none of `SUFFIXES`.
    """
    path = Path(path)
    if columns is not None and columns < 3:
        raise ValueError(f"`columns` must be at least 3 (x, y, z), got {columns}")
    if path.suffix.lower() not in SUFFIXES:
        raise FormatError(f"{path}: unknown point cloud format; supported are {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise DataError(f"{path}: file not found")
    readers = {".bin": _read_bin, ".pcd": _read_pcd, ".npy": _read_npy, ".npz": _read_npz}
    points = readers[path.suffix.lower()](path, columns)
    if columns is not None and points.shape[1] < columns:
        raise DataError(f"{path}: has {points.shape[1]} columns, but `columns` is {columns}")
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite and are dropped
        points = points[:, :columns].astype(np.float32)
    finite = np.isfinite(points).all(1)
    dropped = int(len(points) - finite.sum())
    return PointCloud(points[finite] if dropped else points, dropped)


def write_points(path: str | Path, points: np.ndarray) -> None:
    """Write points ``[N, C]`` as a ``.bin`` file of little-endian float32."""
    np.ascontiguousarray(points, "<f4").tofile(path)


def _read_bin(path: Path, columns: int | None) -> np.ndarray:
    size = path.stat().st_size
    if columns is None and path.name.endswith(".pcd.bin"):
        columns = 5
    possible = [c for c in ((4, 5) if columns is None else (columns,)) if size % (4 * c) == 0]
    if not possible:
        what = "4 or 5" if columns is None else str(columns)
        raise DataError(
            f"{path}: {size} bytes are not a whole number of rows of {what} float32 columns; "
            "the file is truncated or has another number of columns"
        )
    values = np.fromfile(path, "<f4")
    if len(possible) > 1 and size:
        possible = [c for c in possible if _sensible(values.reshape(-1, c))]
        if len(possible) != 1:
            raise DataError(f"{path}: could have 4 or 5 columns; set `columns`")
    return values.reshape(-1, possible[0])


def _sensible(points: np.ndarray) -> bool:
    """Return True if the columns after z (intensity, ring, time) have no negative values but the coordinates do."""
    with np.errstate(invalid="ignore"):
        return not (points[:, 3:] < 0).any() and bool((points[:, :3] < 0).any())


def _read_pcd(path: Path, columns: int | None) -> np.ndarray:
    fields = read_pcd(path)
    missing = [axis for axis in "xyz" if axis not in fields]
    if missing:
        raise DataError(f"{path}: has no field {missing[0]!r}; its fields are {', '.join(fields) or 'none'}")
    intensity = next((name for name in _INTENSITY if name in fields), None)
    first = [fields[axis] for axis in "xyz"]
    first.append(np.zeros(len(fields["x"]), np.float32) if intensity is None else fields[intensity])
    others = [values for name, values in fields.items() if name not in ("x", "y", "z", intensity)]
    with np.errstate(invalid="ignore"):  # signalling NaN
        return np.stack([column.astype(np.float64) for column in (first + others)[:columns]], axis=1)


def _read_npy(path: Path, columns: int | None) -> np.ndarray:
    try:  # memory mapping compares the header with the file size
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, so a damaged header can raise any error
        raise DataError(f"{path}: is not a readable array or is truncated ({' '.join(str(error).split())})") from error
    return _checked(array, path)


def _read_npz(path: Path, columns: int | None) -> np.ndarray:
    def pick(names: list[str]) -> list[str]:
        return names if len(names) == 1 else ["points"]

    return _checked(read_arrays(path, pick)[0], path)


def _checked(array: np.ndarray, path: Path) -> np.ndarray:
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise DataError(f"{path}: must be a numeric array [N, C] with C >= 3, got {array.dtype} {array.shape}")
    return array
