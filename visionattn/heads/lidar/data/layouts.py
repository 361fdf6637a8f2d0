"""Reading of LiDAR datasets by layout name, for commands and configs, and building of object databases."""

from collections.abc import Sequence
from pathlib import Path

from visionattn.errors import DataError
from visionattn.heads.lidar.data import kitti, nuscenes
from visionattn.heads.lidar.data.folders import read_point_folder
from visionattn.heads.lidar.data.frames import PointCloudFrame, PointCloudSet
from visionattn.heads.lidar.data.infos import read_mmdet3d_infos
from visionattn.heads.lidar.data.object_database import ObjectDatabase, cut_objects
from visionattn.io.json import read_json

__all__ = ["LAYOUTS", "build_object_database", "known_classes", "read_frames"]

LAYOUTS = ("folder", "kitti", "nuscenes", "infos")


def read_frames(
    layout: str, source: str | Path, split: str | None = None, *, sweeps: int = 10, version: str | None = None
) -> list[PointCloudFrame]:
    """Read the frames of a dataset.

    Args:
        layout: ``"folder"`` (see `visionattn.heads.lidar.data.folders`), ``"kitti"``, ``"nuscenes"``, or ``"infos"``,
            an info file of mmdetection3d.
        source: root folder of the dataset; for ``"infos"``, the info file.
        split: for ``"kitti"``, a list of frames; for ``"nuscenes"``, a file of scene names; for ``"folder"``, a
            subfolder.
        sweeps: number of sweeps per frame, for ``"nuscenes"`` and ``"infos"``.
        version: nuScenes version, see `visionattn.heads.lidar.data.nuscenes.read_nuscenes`.

    Raises:
        DataError: if the layout is unknown or the files do not match it.
    """
    if layout == "folder":
        return read_point_folder(Path(source) / split if split else source)
    if layout == "kitti":
        return kitti.read_kitti(source, split)
    if layout == "nuscenes":
        return nuscenes.read_nuscenes(source, version, split, sweeps)
    if layout != "infos":
        raise DataError(f"`layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if split:
        raise DataError(f"`split` does not apply to layout 'infos', whose file holds one split, got {split!r}")
    return read_mmdet3d_infos(source, sweeps=sweeps)


def known_classes(layout: str, source: str | Path) -> tuple[str, ...] | None:
    """Class names of a dataset: those of the layout, or from ``manifest.json`` in the folder or its parent, or None."""
    if layout != "folder":
        return {"kitti": kitti.CLASSES, "nuscenes": nuscenes.CLASSES, "infos": nuscenes.CLASSES}.get(layout)
    for folder in (Path(source), Path(source).parent):
        try:
            return tuple(str(name) for name in read_json(folder / "manifest.json")["classes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def build_object_database(
    out: str | Path,
    layout: str,
    source: str | Path,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    *,
    least_points: int = 5,
    version: str | None = None,
) -> ObjectDatabase:
    """Extract the objects of a training set for `visionattn.heads.lidar.data.object_database.ObjectPaste`.

    nuScenes is read with ten sweeps and their age column, and rotated to x forward, as for training.

    Args:
        out: output file, ``.npz``.
        layout, source, split, version: see `read_frames`.
        classes: class names in the order of the training labels. Defaults to `known_classes`.
        least_points: minimum number of points of an object.

    Returns:
        The database.

    Raises:
        DataError: if the classes are unknown, no object is found, or a file cannot be read or written.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise DataError(f"{out}: the file name must end in .npz")
    names = classes or known_classes(layout, source)
    if not names:
        raise DataError(f"{source}: the classes are unknown; set `classes`")
    frames = read_frames(layout, source, split, version=version)
    columns = 5 if layout in ("nuscenes", "infos") else 4
    database = cut_objects(PointCloudSet(frames, names, columns, x_forward=True), least_points)
    if not len(database):
        raise DataError(f"{source}: has no object of {', '.join(names)} with {least_points} or more points")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        database.save(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}") from error
    return database
