"""Info files of mmdetection3d 1.1 and later, such as ``nuscenes_infos_train.pkl``.

They are read without unpickling objects, see `visionattn.io.pickles`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.data.frames import PointCloudFrame
from visionattn.heads.lidar.data.sweeps import Sweep, SweepReader
from visionattn.io.names import escapes_folder
from visionattn.io.pickles import read_plain_pickle

__all__ = ["read_mmdet3d_infos"]

# raised by malformed content
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, np.linalg.LinAlgError)


def read_mmdet3d_infos(
    path: str | Path,
    root: str | Path | None = None,
    sweeps: int = 10,
    points: str = "samples/LIDAR_TOP",
    earlier: str = "sweeps/LIDAR_TOP",
) -> list[PointCloudFrame]:
    """Read the frames of an info file whose boxes are in the LiDAR frame, such as that of nuScenes.

    Args:
        path: the info file.
        root: root folder of the paths in the file. Defaults to the folder of the file.
        sweeps: number of sweeps per frame, including the annotated one.
        points: folder of the annotated sweeps below ``root``.
        earlier: folder of the intermediate sweeps below ``root``.

    Raises:
        ValueError: if ``sweeps`` is less than 1.
        DataError: if the file is malformed, contains objects, or is of another version or dataset.
    """
    if sweeps < 1:
        raise ValueError(f"`sweeps` must be at least 1, got {sweeps}")
    path = Path(path)
    content = read_plain_pickle(path)
    if isinstance(content, dict) and "infos" in content:
        raise DataError(f"{path}: is in the format of mmdetection3d before 1.1; convert it with its dataset_converters")
    if not isinstance(content, dict) or not isinstance(content.get("data_list"), list):
        raise DataError(f"{path}: must be an info file of mmdetection3d, a dict with a list data_list")
    meta = content.get("metainfo") or {}
    try:
        dataset = str(meta.get("dataset", "nuscenes")).lower()
        names = {int(number): str(name) for name, number in (meta.get("categories") or {}).items()}
    except _MALFORMED as error:
        raise DataError(f"{path}: its metainfo is malformed ({type(error).__name__}: {error})") from error
    if "kitti" in dataset or "waymo" in dataset:
        raise DataError(
            f"{path}: must have boxes in the LiDAR frame, got an info file of {dataset}; read KITTI with layout 'kitti'"
        )
    base = path.parent if root is None else Path(root)
    frames = []
    for number, info in enumerate(content["data_list"]):
        try:
            frames.append(_frame(info, names, base, sweeps, (points, earlier), "nuscenes" in dataset))
        except _MALFORMED as error:
            raise DataError(f"{path}: data_list.{number} is malformed ({type(error).__name__}: {error})") from error
    return frames


def _frame(
    info: dict[str, Any], names: dict[int, str], root: Path, sweeps: int, folders: tuple[str, str], x_right: bool
) -> PointCloudFrame:
    lidar = info["lidar_points"]
    columns = int(lidar.get("num_pts_feats", 5))
    path = _place(root, folders, lidar["lidar_path"], True)
    before = []
    for sweep in (info.get("lidar_sweeps") or [])[: sweeps - 1]:
        source = sweep["lidar_points"]
        matrix = np.array(source["lidar2sensor"], np.float64).reshape(4, 4)
        age = float(info["timestamp"]) - float(sweep["timestamp"])
        before.append(Sweep(_place(root, folders, source["lidar_path"], False), np.linalg.inv(matrix), age))
    boxes, classes, velocity, valid = [], [], [], []
    for instance in info.get("instances") or []:
        label = int(instance["bbox_label_3d"])
        if label < 0:
            continue  # not one of the dataset's classes
        box = np.array(instance["bbox_3d"], np.float32).reshape(-1)[:7]
        boxes.append(box)
        classes.append(names.get(label, str(label)))
        velocity.append(np.array(instance.get("velocity", (np.nan, np.nan)), np.float32)[:2])
        valid.append(bool(instance.get("bbox_3d_isvalid", True)))
    kept = np.array(valid, bool)
    to_ego = _matrix(lidar, "lidar2ego")
    to_map = _matrix(info, "ego2global")
    stacked = np.array(boxes, np.float32).reshape(-1, 7)
    return PointCloudFrame(
        str(info.get("token", info.get("sample_idx", path.name))),
        path,
        stacked[kept],
        tuple(n for n, keep in zip(classes, kept, strict=True) if keep),
        ignore_boxes=stacked[~kept],
        ignore_classes=tuple(n for n, keep in zip(classes, kept, strict=True) if not keep),
        velocity=np.array(velocity, np.float32).reshape(-1, 2)[kept],
        to_global=None if to_ego is None or to_map is None else to_map @ to_ego,
        ego=None if to_ego is None else np.linalg.inv(to_ego)[:3, 3],
        columns=columns,
        intensity_scale=255.0 if x_right else 1.0,
        x_right=x_right,
        read=SweepReader(path, tuple(before), columns) if x_right else None,
    )


def _matrix(entry: dict[str, Any], name: str) -> np.ndarray | None:
    """A transform ``[4, 4]``, or None if the entry does not have it."""
    return np.array(entry[name], np.float64).reshape(4, 4) if entry.get(name) is not None else None


def _place(root: Path, folders: tuple[str, str], name: str, annotated: bool) -> Path:
    """Locate a point cloud file: entries are bare names or foreign paths, of which the last component is used."""
    path = Path(name)
    if not escapes_folder(name) and path.parent != Path() and (root / path).is_file():
        return root / path
    folder = folders[0] if annotated or folders[0].split("/")[0] in path.parts else folders[1]
    return root / folder / path.name
