"""A folder of point clouds, each with its boxes in a JSON file of the same name.

::

    NAME.bin      or .pcd, .npy, .npz
    NAME.json     {"boxes": [{"class": "car", "box": [x, y, z, length, width, height, heading]}, ...]}

Of a box may also be known: ``difficulty`` (0, 1, 2), ``ignore`` (true: counts neither way) or ``valid`` (false: the
same), ``velocity_xy``. Of the frame: ``columns`` (their names), ``intensity_max`` (what becomes 1) or
``intensity_unit`` (text that ends in ``0..255``), ``frame_axes`` (``"x right, y forward"``, as nuScenes has it),
``calib`` (KITTI's P2, R0_rect, Tr_velo_to_cam; then only what the camera sees is labelled), ``image_size`` (width and
height), ``dontcare_2d``, and ``classes``.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.data.camera_view import CameraView
from visionattn.heads.lidar.data.files import SUFFIXES
from visionattn.heads.lidar.data.frames import PointCloudFrame
from visionattn.io.json import read_json

__all__ = ["KITTI_PICTURE", "list_clouds", "read_point_file", "read_point_folder"]

KITTI_PICTURE = (1242, 375)
"""Width and height of most of KITTI's pictures."""


def list_clouds(folder: str | Path) -> list[Path]:
    """The point clouds of a folder, by name.

    Raises:
        DataError: there is no such folder, or two of its files have one name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise DataError(f"{folder}: {found[path.stem].name} and {path.name} are both {path.stem!r}")
            found[path.stem] = path
    return list(found.values())


def read_point_folder(folder: str | Path, need_boxes: bool = True) -> list[PointCloudFrame]:
    """All frames of a folder.

    Args:
        folder: see the module's description.
        need_boxes: whether a point cloud without a JSON file is an error; else it has no boxes.

    Raises:
        DataError: the folder or a JSON file is missing or malformed; names the file and the box.
    """
    paths = list_clouds(folder)
    if not paths:
        raise DataError(f"{folder}: holds no point cloud ({', '.join(SUFFIXES)})")
    return [read_point_file(path, need_boxes) for path in paths]


def read_point_file(path: str | Path, need_boxes: bool = False) -> PointCloudFrame:
    """The frame of one point cloud, with its boxes where a JSON file is beside it; see `read_point_folder`."""
    path = Path(path)
    label = path.with_suffix(".json")
    if label.is_file():
        return _frame(path, label)
    if need_boxes:
        raise DataError(f"{label}: there is no such file, which has the boxes of {path.name}")
    return PointCloudFrame(path.stem, path)


def _frame(path: Path, label: Path) -> PointCloudFrame:
    try:
        content = read_json(label)
    except (OSError, ValueError) as error:
        raise DataError(f"{label}: cannot be read as JSON ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not isinstance(content.get("boxes"), list):
        raise DataError(f'{label}: must be an object with a list "boxes"')
    try:
        return _parse(path, label, content)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"{label}: is malformed ({' '.join(str(error).split())[:120]})") from error


def _parse(path: Path, label: Path, content: dict[str, Any]) -> PointCloudFrame:
    boxes, classes, difficulty, ignored, excused, velocity = [], [], [], [], [], []
    for number, entry in enumerate(content["boxes"]):
        box, name = _box(entry, f"{label}: boxes.{number}")
        if entry.get("ignore", False) or not entry.get("valid", True):
            ignored.append(box)
            excused.append(name)
        else:
            boxes.append(box)
            classes.append(name)
            difficulty.append(int(entry.get("difficulty", 0)))
            velocity.append(entry.get("velocity_xy") or (np.nan, np.nan))
    known = any(entry.get("velocity_xy") for entry in content["boxes"])
    columns = content.get("columns")
    return PointCloudFrame(
        path.stem,
        path,
        np.array(boxes, np.float32).reshape(-1, 7),
        tuple(classes),
        np.array(difficulty, np.int64),
        np.array(ignored, np.float32).reshape(-1, 7),
        tuple(excused),
        np.array(velocity, np.float32).reshape(-1, 2) if known else None,
        _view(content, label),
        len(columns) if isinstance(columns, list) else None,
        _intensity_scale(content, label),
        str(content.get("frame_axes", "")).startswith("x right"),
    )


def _box(entry: Any, where: str) -> tuple[list[float], str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("class"), str):
        raise DataError(f'{where}: must be an object with "class" and "box"')
    box = entry.get("box")
    try:
        values = np.array(box, np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    if values.shape != (7,) or not np.isfinite(values).all() or not (values[3:6] > 0).all():
        raise DataError(f"{where}: box {box!r:.80} must be 7 numbers (x, y, z, three sizes above 0, heading)")
    return values.tolist(), entry["class"]


def _intensity_scale(content: dict[str, Any], label: Path) -> float:
    scale = content.get("intensity_max")
    if scale is None:
        found = re.search(r"0\.\.(\d+(?:\.\d+)?)\s*$", str(content.get("intensity_unit", "")))
        scale = float(found[1]) if found else 1.0
    if not isinstance(scale, (int, float)) or not scale > 0:
        raise DataError(f"{label}: intensity_max {scale!r} must be a number above 0")
    return float(scale)


def _view(content: dict[str, Any], label: Path) -> CameraView | None:
    calib = content.get("calib")
    if not isinstance(calib, dict) or "P2" not in calib:
        return None
    try:
        width, height = content.get("image_size", KITTI_PICTURE)
        regions = np.array(content.get("dontcare_2d", []), np.float64).reshape(-1, 4)
        return CameraView.from_matrices(
            calib["P2"], calib["R0_rect"], calib["Tr_velo_to_cam"], (int(width), int(height)), regions
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{label}: calib is malformed ({error})") from error
