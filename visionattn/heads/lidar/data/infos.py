"""Lists of frames as mmdetection3d (1.1 and later) writes them, ``nuscenes_infos_train.pkl`` and the like.

They are read without unpickling any object, see `visionattn.io.pickles`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.lidar.data.frames import PointCloudFrame
from visionattn.heads.lidar.data.sweeps import Sweep, SweepReader
from visionattn.io.names import leads_out
from visionattn.io.pickles import read_plain_pickle

__all__ = ["read_mmdet3d_infos"]

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)  # of content of other forms


def read_mmdet3d_infos(
    path: str | Path,
    root: str | Path | None = None,
    sweeps: int = 10,
    points: str = "samples/LIDAR_TOP",
    earlier: str = "sweeps/LIDAR_TOP",
) -> list[PointCloudFrame]:
    """The frames of a list whose boxes are in the LiDAR's frame, as those of nuScenes are.

    Args:
        path: of the list.
        root: what its paths start from; its folder when None.
        sweeps: turns that make a frame, the annotated one included.
        points: folder of the annotated turns below ``root``.
        earlier: likewise of those between.

    Raises:
        ValueError: ``sweeps`` is less than 1.
        DataError: the file is malformed, holds objects, or is of another version or set.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps={sweeps} must be at least 1")
    path = Path(path)
    content = read_plain_pickle(path)
    if isinstance(content, dict) and "infos" in content:
        raise DataError(f"{path}: is of mmdetection3d before 1.1; convert it with its tools/dataset_converters")
    if not isinstance(content, dict) or not isinstance(content.get("data_list"), list):
        raise DataError(f"{path}: must be a dict with a list data_list, as mmdetection3d writes it")
    meta = content.get("metainfo") or {}
    try:
        kind = str(meta.get("dataset", "nuscenes")).lower()
        names = {int(number): str(name) for name, number in (meta.get("categories") or {}).items()}
    except _MALFORMED as error:
        raise DataError(f"{path}: its metainfo is malformed ({type(error).__name__}: {error})") from error
    if "kitti" in kind or "waymo" in kind:
        raise DataError(f"{path}: is of {kind}, whose boxes are in a camera's frame; for KITTI use read_kitti")
    base = path.parent if root is None else Path(root)
    frames = []
    for number, info in enumerate(content["data_list"]):
        try:
            frames.append(_frame(info, names, base, sweeps, (points, earlier), "nuscenes" in kind))
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
            continue  # of no class of the set
        box = np.array(instance["bbox_3d"], np.float32).reshape(-1)[:7]
        boxes.append(box)
        classes.append(names.get(label, str(label)))
        velocity.append(np.array(instance.get("velocity", (np.nan, np.nan)), np.float32)[:2])
        valid.append(bool(instance.get("bbox_3d_isvalid", True)))
    kept = np.array(valid, bool)
    stacked = np.array(boxes, np.float32).reshape(-1, 7)
    return PointCloudFrame(
        str(info.get("token", info.get("sample_idx", path.name))),
        path,
        stacked[kept],
        tuple(n for n, keep in zip(classes, kept, strict=True) if keep),
        ignore_boxes=stacked[~kept],
        ignore_classes=tuple(n for n, keep in zip(classes, kept, strict=True) if not keep),
        velocity=np.array(velocity, np.float32).reshape(-1, 2)[kept],
        columns=columns,
        intensity_scale=255.0 if x_right else 1.0,
        x_right=x_right,
        read=SweepReader(path, tuple(before), columns) if x_right else None,
    )


def _place(root: Path, folders: tuple[str, str], name: str, annotated: bool) -> Path:
    """Where points are: lists have bare names, or paths of the machine that wrote them, whose last part counts."""
    path = Path(name)
    if not leads_out(name) and path.parent != Path() and (root / path).is_file():
        return root / path
    folder = folders[0] if annotated or folders[0].split("/")[0] in path.parts else folders[1]
    return root / folder / path.name
