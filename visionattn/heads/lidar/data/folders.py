"""Folders of point clouds, each with its boxes in a JSON file of the same name.

::

    NAME.bin      or .pcd, .npy, .npz
    NAME.json     {"boxes": [{"class": "car", "box": [x, y, z, length, width, height, heading]}, ...]}

Optional keys of a box: ``difficulty`` (0, 1, 2), ``ignore`` (true: excluded from evaluation) or ``valid`` (false: the
same), ``velocity_xy``. Optional keys of the file: ``columns`` (list of column names), ``intensity_max`` (the value
scaled to 1) or ``intensity_unit`` (text that ends in, for example, ``0..255``), ``frame_axes``
(``"x right, y forward"``, as in nuScenes), ``calib`` (KITTI's P2, R0_rect and Tr_velo_to_cam; labels are then complete
only in the camera's view), ``image_size`` (width and height) and ``dontcare_2d``.
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

__all__ = ["KITTI_IMAGE_SIZE", "list_clouds", "read_point_file", "read_point_folder"]

KITTI_IMAGE_SIZE = (1242, 375)
"""Width and height of most KITTI images."""


def list_clouds(folder: str | Path) -> list[Path]:
    """List the point clouds of a folder, sorted by name.

    Raises:
        DataError: if the folder does not exist, or two files differ only in their suffix.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                raise DataError(f"{folder}: {found[path.stem].name} and {path.name} have the same name {path.stem!r}")
            found[path.stem] = path
    return list(found.values())


def read_point_folder(folder: str | Path, need_boxes: bool = True) -> list[PointCloudFrame]:
    """Read all frames of a folder.

    Args:
        folder: a folder as described in the module docstring.
        need_boxes: whether a point cloud without a JSON file is an error; otherwise it has no boxes.

    Raises:
        DataError: if the folder or a JSON file is missing or malformed; the message names the file and the box.
    """
    paths = list_clouds(folder)
    if not paths:
        raise DataError(f"{folder}: contains no point cloud ({', '.join(SUFFIXES)})")
    return [read_point_file(path, need_boxes) for path in paths]


def read_point_file(path: str | Path, need_boxes: bool = False) -> PointCloudFrame:
    """Read one frame, with the boxes of the JSON file next to it if there is one; see `read_point_folder`."""
    path = Path(path)
    label = path.with_suffix(".json")
    if label.is_file():
        return _frame(path, label)
    if need_boxes:
        raise DataError(f"{label}: file not found; it must contain the boxes of {path.name}")
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
        raise DataError(f'{where}: must be an object with a string "class" and a list "box"')
    box = entry.get("box")
    try:
        values = np.array(box, np.float64)
    except (TypeError, ValueError, OverflowError):
        values = np.zeros(0)
    if values.shape != (7,) or not np.isfinite(values).all() or not (values[3:6] > 0).all():
        raise DataError(f"{where}: box must be 7 numbers (x, y, z, three sizes above 0, heading), got {box!r:.80}")
    return values.tolist(), entry["class"]


def _intensity_scale(content: dict[str, Any], label: Path) -> float:
    scale = content.get("intensity_max")
    if scale is None:
        found = re.search(r"0\.\.(\d+(?:\.\d+)?)\s*$", str(content.get("intensity_unit", "")))
        scale = float(found[1]) if found else 1.0
    if not isinstance(scale, (int, float)) or not scale > 0:
        raise DataError(f"{label}: intensity_max must be a number above 0, got {scale!r}")
    return float(scale)


def _view(content: dict[str, Any], label: Path) -> CameraView | None:
    calib = content.get("calib")
    if not isinstance(calib, dict) or "P2" not in calib:
        return None
    try:
        width, height = content.get("image_size", KITTI_IMAGE_SIZE)
        regions = np.array(content.get("dontcare_2d", []), np.float64).reshape(-1, 4)
        return CameraView.from_matrices(
            calib["P2"], calib["R0_rect"], calib["Tr_velo_to_cam"], (int(width), int(height)), regions
        )
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{label}: calib is malformed ({error})") from error
