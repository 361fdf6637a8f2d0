"""Frames by the name of their layout, for commands and configs; and object databases from them."""

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
    """The frames of a set.

    Args:
        layout: ``"folder"`` (see `visionattn.heads.lidar.data.folders`), ``"kitti"``, ``"nuscenes"``, or ``"infos"``,
            an info file of mmdetection3d.
        source: folder of the set; of infos, the list.
        split: of KITTI, a list of frames; of nuScenes, a file of scenes; of a folder, one below it.
        sweeps: of nuScenes and infos, how many turns make a frame.
        version: of nuScenes, see `visionattn.heads.lidar.data.nuscenes.read_nuscenes`.

    Raises:
        DataError: an unknown layout, or the files are not as it says.
    """
    if layout == "folder":
        return read_point_folder(Path(source) / split if split else source)
    if layout == "kitti":
        return kitti.read_kitti(source, split)
    if layout == "nuscenes":
        return nuscenes.read_nuscenes(source, version, split, sweeps)
    if layout != "infos":
        raise DataError(f"layout {layout!r} must be one of {LAYOUTS}")
    if split:
        raise DataError(f"split {split!r} does not apply to infos, which are of one split; leave it out")
    return read_mmdet3d_infos(source, sweeps=sweeps)


def known_classes(layout: str, source: str | Path) -> tuple[str, ...] | None:
    """The classes of a layout, or of the ``manifest.json`` of a folder or the one above; None where nothing tells."""
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
    """Write the objects of a training set for `visionattn.heads.lidar.data.object_database.ObjectPaste`.

    nuScenes gets ten sweeps and the column of their age, and is turned to x forward, as its training data is here.

    Args:
        out: file to write, ``.npz``.
        layout, source, split, version: of `read_frames`.
        classes: names, in the order of the labels of the training set; None for those that are known.
        least_points: of an object.

    Raises:
        DataError: the classes are unknown, no object was found, or a file cannot be read or written.
    """
    out = Path(out)
    if out.suffix != ".npz":
        raise DataError(f"{out}: must end in .npz")
    names = classes or known_classes(layout, source)
    if not names:
        raise DataError(f"{source}: nothing there tells the classes; name them")
    frames = read_frames(layout, source, split, version=version)
    columns = 5 if layout in ("nuscenes", "infos") else 4
    database = cut_objects(PointCloudSet(frames, names, columns, x_forward=True), least_points)
    if not len(database):
        raise DataError(f"{source}: has no object of {', '.join(names)} with {least_points} points")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        database.save(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}") from error
    return database
