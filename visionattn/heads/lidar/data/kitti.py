"""The KITTI 3D object detection dataset (Geiger, Lenz, Urtasun, CVPR 2012) in its original layout.

::

    ROOT/training/velodyne/000000.bin   or velodyne_reduced/
    ROOT/training/calib/000000.txt
    ROOT/training/label_2/000000.txt
    ROOT/training/image_2/000000.png    optional, for the image size
    ROOT/ImageSets/train.txt            optional, the frame numbers of a split

Labels refer to the left color camera and are complete only in its view; boxes are returned in the LiDAR frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.data.camera_view import CameraView, velo_to_rect
from visionattn.heads.lidar.data.folders import KITTI_IMAGE_SIZE
from visionattn.heads.lidar.data.frames import PointCloudFrame
from visionattn.io.names import place

__all__ = ["CLASSES", "KittiObject", "camera_to_lidar", "kitti_difficulty", "read_calib", "read_kitti", "read_label"]

CLASSES = ("Car", "Pedestrian", "Cyclist")
"""The classes that KITTI evaluates."""

_NEIGHBORS = {"Van": "Car", "Person_sitting": "Pedestrian"}  # ignored when evaluating the other class
_LEVELS = ((40.0, 0, 0.15), (25.0, 1, 0.3), (25.0, 2, 0.5))  # min height in pixels, max occlusion, max truncation


@dataclass(frozen=True)
class KittiObject:
    """One line of a label file.

    Attributes:
        name: class name.
        truncated: fraction outside the image, in [0, 1]; -1 if unknown.
        occluded: 0 fully visible, 1 partly occluded, 2 largely occluded, 3 unknown; -1 for DontCare.
        rectangle: left, top, right, bottom in the image, in pixels.
        size: height, width, length, in meters.
        location: x, y, z of the center of the bottom face in the rectified camera frame, in meters.
        rotation_y: rotation about the camera's y axis, in radians.
        score: detection score; None for ground truth.
    """

    name: str
    truncated: float
    occluded: int
    rectangle: tuple[float, float, float, float]
    size: tuple[float, float, float]
    location: tuple[float, float, float]
    rotation_y: float
    score: float | None = None


def read_kitti(
    root: str | Path,
    split: str | Sequence[str] | None = None,
    part: str = "training",
    points: str = "velodyne",
) -> list[PointCloudFrame]:
    """Read the frames of KITTI.

    Following KITTI's evaluation, vans become ignored boxes of the class Car, and sitting persons of Pedestrian.

    Args:
        root: root folder of the dataset.
        split: name of a list in ``ImageSets``, path of a list, or frame numbers; None for all frames with points.
        part: ``"training"`` or ``"testing"``, which has no labels.
        points: name of the folder with the point clouds.

    Raises:
        DataError: if a file is missing or malformed; the message names the file and line.
    """
    base = Path(root) / part
    if not (base / points).is_dir():
        raise DataError(f"{base / points}: folder not found; `root` must contain {part}/{points}/*.bin")
    names = _names(Path(root), base / points, split)
    for name in names:
        place(name, base, f"{root}: split {split!r:.80}")
    return [_frame(base, points, name, part == "training") for name in names]


def kitti_difficulty(entry: KittiObject) -> int:
    """Difficulty by 2D box height, occlusion and truncation: 0 easy, 1 moderate, 2 hard, -1 harder than hard."""
    height = entry.rectangle[3] - entry.rectangle[1]
    for level, (least, occlusion, truncation) in enumerate(_LEVELS):
        if height > least and entry.occluded <= occlusion and entry.truncated <= truncation:
            return level
    return -1


def read_calib(path: str | Path) -> dict[str, np.ndarray]:
    """Read ``P2`` ``[3, 4]``, ``R0_rect`` ``[3, 3]`` and ``Tr_velo_to_cam`` ``[3, 4]``, float64, from a file.

    Raises:
        DataError: if the file is missing, lacks a matrix, or the LiDAR-to-camera transform is singular.
    """
    shapes = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
    found: dict[str, np.ndarray] = {}
    for line in _lines(Path(path)):
        key, _, values = line.partition(":")
        if key.strip() in shapes:
            try:
                found[key.strip()] = np.array(values.split(), np.float64).reshape(shapes[key.strip()])
            except ValueError as error:
                raise DataError(f"{path}: {key.strip()} must be {shapes[key.strip()]} numbers") from error
            if not np.isfinite(found[key.strip()]).all():
                raise DataError(f"{path}: {key.strip()} is not finite")
    missing = [key for key in shapes if key not in found]
    if missing:
        raise DataError(f"{path}: has no {missing[0]}")
    with np.errstate(all="ignore"):
        singular = not np.isfinite(np.linalg.cond(velo_to_rect(found["R0_rect"], found["Tr_velo_to_cam"])))
    if singular:
        raise DataError(f"{path}: R0_rect and Tr_velo_to_cam must be rigid transforms, got a singular matrix")
    return found


def read_label(path: str | Path) -> list[KittiObject]:
    """Read the objects of a label file, including DontCare regions.

    Raises:
        DataError: if the file is missing, or a line does not have 15 fields (16 for detections).
    """
    entries = []
    for number, line in enumerate(_lines(Path(path)), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            values = [float(field) for field in fields[1:]]
            if len(values) not in (14, 15) or not np.isfinite(values).all():
                raise ValueError
        except ValueError:
            raise DataError(
                f"{path}:{number}: must be a class and 14 or 15 numbers, got {line.strip()!r:.80}"
            ) from None
        entries.append(
            KittiObject(
                fields[0], values[0], int(values[1]), (values[3], values[4], values[5], values[6]),
                (values[7], values[8], values[9]), (values[10], values[11], values[12]), values[13],
                values[14] if len(values) == 15 else None,
            )
        )  # fmt: skip
    return entries


def camera_to_lidar(entries: Sequence[KittiObject], calib: dict[str, np.ndarray]) -> np.ndarray:
    """Convert objects to boxes in the LiDAR frame, float64 ``[M, 7]``.

    Center and heading are transformed by the inverse of R0_rect x Tr_velo_to_cam. The two frames are not exactly
    aligned: the common approximation -rotation_y - pi/2 of the heading is off by some thousandths of a radian.
    """
    boxes = np.zeros((len(entries), 7))
    back = np.linalg.inv(velo_to_rect(calib["R0_rect"], calib["Tr_velo_to_cam"]))
    for row, entry in zip(boxes, entries, strict=True):
        height, width, length = entry.size
        x, y, z = entry.location
        row[:3] = (back @ [x, y - height / 2, z, 1])[:3]  # y points down, and the location is on the bottom face
        row[3:6] = length, width, height
        ahead = back[:3, :3] @ [np.cos(entry.rotation_y), 0, -np.sin(entry.rotation_y)]
        row[6] = np.arctan2(ahead[1], ahead[0])
    return boxes


def _frame(base: Path, points: str, name: str, labelled: bool) -> PointCloudFrame:
    path = base / points / f"{name}.bin"
    if not path.is_file():
        raise DataError(f"{path}: file not found")
    calib = read_calib(base / "calib" / f"{name}.txt")
    entries = read_label(base / "label_2" / f"{name}.txt") if labelled else []
    regions = np.array([e.rectangle for e in entries if e.name == "DontCare"], np.float64).reshape(-1, 4)
    view = CameraView.from_matrices(
        calib["P2"], calib["R0_rect"], calib["Tr_velo_to_cam"], _image_size(base / "image_2" / f"{name}.png"), regions
    )
    objects = [e for e in entries if e.name != "DontCare" and e.name not in _NEIGHBORS]
    alike = [e for e in entries if e.name in _NEIGHBORS]
    return PointCloudFrame(
        name,
        path,
        camera_to_lidar(objects, calib).astype(np.float32),
        tuple(e.name for e in objects),
        np.array([kitti_difficulty(e) for e in objects], np.int64),
        camera_to_lidar(alike, calib).astype(np.float32),
        tuple(_NEIGHBORS[e.name] for e in alike),
        labelled_region=view,
        columns=4,
    )


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height from a PNG header; the default size if the file is missing."""
    try:
        with path.open("rb") as stream:
            head = stream.read(24)
    except OSError:
        return KITTI_IMAGE_SIZE
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 24:
        return KITTI_IMAGE_SIZE
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _names(root: Path, folder: Path, split: str | Sequence[str] | None) -> list[str]:
    if split is None:
        names = sorted(path.stem for path in folder.glob("*.bin"))
        if not names:
            raise DataError(f"{folder}: holds no .bin")
        return names
    if not isinstance(split, str):
        return list(split)
    named = root / "ImageSets" / f"{split}.txt"
    path = named if named.is_file() else Path(split)
    if not path.is_file():
        raise DataError(f"`split` must be a file or a list in ImageSets, got {split!r}; {named} was not found")
    return [line.strip() for line in _lines(path) if line.strip()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
