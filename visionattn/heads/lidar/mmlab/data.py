"""LiDAR datasets and pipeline transforms for mmengine."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement, InstanceData

from visionattn.engine.registry import DATASETS, TRANSFORMS
from visionattn.errors import ConfigError, DataError
from visionattn.heads.lidar.data import augment as point_augment
from visionattn.heads.lidar.data.files import read_points
from visionattn.heads.lidar.data.frames import BOX_KEYS, PointCloudFrame, PointCloudSet, balanced_frames
from visionattn.heads.lidar.data.layouts import LAYOUTS, known_classes, read_frames
from visionattn.heads.lidar.data.object_database import ObjectDatabase, ObjectPaste
from visionattn.io.console import count_of, examples

__all__ = [
    "PackPoints",
    "PasteObjects",
    "PointCloudDataset",
    "PointDrop",
    "PointFlip",
    "PointRangeFilter",
    "PointRotation",
    "PointScaling",
    "PointShuffle",
    "PointTranslation",
]


@DATASETS.register_module()
class PointCloudDataset(BaseDataset):
    """LiDAR dataset in one of the layouts of `visionattn.heads.lidar.data.layouts`.

    Args:
        layout: ``"folder"`` (point clouds with one JSON file each), ``"kitti"``, ``"nuscenes"``, or ``"infos"``, an
            info file of mmdetection3d for nuScenes.
        data_root: root folder of the dataset.
        ann_file: for ``"kitti"``, a list of frames such as ``"ImageSets/train.txt"``; for ``"nuscenes"``, a list of
            scenes; for ``"infos"``, the ``.pkl`` file.
        data_prefix: ``pts``, the folder of the point clouds below ``data_root``, for ``"folder"``.
        metainfo: ``classes``, in the order of the labels. Defaults to those of the layout.
        columns: number of point columns to keep: x, y, z, intensity, then further columns.
        version: nuScenes version, the folder of the tables. Defaults to the only one present.
        sweeps: number of sweeps per frame, for nuScenes.
        crop_to_view: drop points and boxes outside the camera's view where only that is labeled.
        x_forward: rotate frames with axes x right, y forward to x forward, y left.
        every, offset: use every ``every``-th frame, starting at index ``offset``.
        balanced: resample the frames so that each class occurs in about equally many, see
            `visionattn.heads.lidar.data.frames.balanced_frames`.
        **arguments: passed to mmengine's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ConfigError: if the layout is unknown, the classes are unknown, or ``every`` or ``offset`` is out of range.
        DataError: if the files do not match the layout, or no box is of any of the classes.
    """

    METAINFO: ClassVar[dict] = {}

    def __init__(
        self,
        layout: str = "folder",
        data_root: str = "",
        columns: int = 4,
        version: str | None = None,
        sweeps: int = 10,
        crop_to_view: bool = False,
        x_forward: bool = True,
        every: int = 1,
        offset: int = 0,
        balanced: bool = False,
        data_prefix: dict | None = None,
        metainfo: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if layout not in LAYOUTS:
            raise ConfigError(f"PointCloudDataset: `layout` must be one of {', '.join(LAYOUTS)}, got {layout!r}")
        if every < 1 or not 0 <= offset < every:
            raise ConfigError(
                f"PointCloudDataset: `every` must be at least 1 and `offset` in [0, every), got {every} and {offset}"
            )
        metainfo = dict(metainfo or {})
        if not metainfo.setdefault("classes", None if layout == "folder" else known_classes(layout, data_root)):
            raise ConfigError(
                f"PointCloudDataset: `metainfo` must have `classes` with layout {layout!r}, got {metainfo}"
            )
        self.layout, self.version, self.sweeps = layout, version, sweeps
        self.every, self.offset, self.balanced = every, offset, balanced
        self.set_options = dict(columns=columns, crop_to_view=crop_to_view, x_forward=x_forward)
        super().__init__(data_root=data_root, data_prefix=data_prefix or {"pts": ""}, metainfo=metainfo, **arguments)

    @staticmethod
    def labels_by_name(config: Mapping[str, Any]) -> bool:
        """Return True: labels follow the order of the names in ``metainfo``."""
        return True

    def read_frames(self) -> list[PointCloudFrame]:
        """Read all frames of the dataset."""
        source, split = self.data_root, self.ann_file or None
        if self.layout == "folder":
            source, split = self.data_prefix["pts"] or self.data_root, None
        elif self.layout == "infos":
            source, split = self.ann_file, None
        return read_frames(self.layout, source, split, sweeps=self.sweeps, version=self.version)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Create one record per frame; points are loaded on access."""
        frames = self.read_frames()[self.offset :: self.every]
        if not frames:
            raise DataError(f"{self.data_root or self.ann_file}: contains no frames")
        classes = self.metainfo["classes"]
        there = {name for frame in frames for name in frame.classes}
        if there and not there & set(classes):
            raise DataError(
                f"{frames[0].path}: no box of the dataset has a class of {list(classes)}; "
                f"its classes are {sorted(there)[:12]}"
            )
        if self.balanced and not (frames := balanced_frames(frames, classes)):
            raise DataError(
                f"{self.data_root or self.ann_file}: `balanced` requires labeled frames, but none is labeled"
            )
        self.frames = PointCloudSet(frames, classes, **self.set_options)
        return [{"img_path": str(frame.path), "number": number} for number, frame in enumerate(frames)]

    def check(self, steps: Sequence[Mapping[str, Any]] = ()) -> str:
        """Look for all point clouds, read at most 100 of them, and return the number of frames and of used boxes.

        Raises:
            DataError: a point cloud is missing, empty or damaged, or no box is of any of the classes.
        """
        frames = self.frames.frames
        lacking = [f.path for f in frames if not Path(f.path).is_file() or not Path(f.path).stat().st_size]
        if lacking:
            raise DataError(f"{lacking[0]}: is missing or empty, as {len(lacking)} of {len(frames)} point clouds")
        for frame in frames[:: -(-len(frames) // 100)]:
            if not len(read_points(frame.path, frame.columns).points):
                raise DataError(f"{frame.path}: has no point with finite coordinates")
        classes = list(self.metainfo["classes"])
        found = Counter(name for frame in frames for name in frame.classes)
        if not found:
            raise DataError(f"{self.data_root or self.ann_file}: none of the {len(frames)} frames has labeled boxes")
        line = f"{count_of(len(frames), 'frame')}, {sum(found[name] for name in classes)} boxes"
        if unused := sum(found.values()) - sum(found[name] for name in classes):
            names = sorted(set(found) - set(classes))
            line += f"; {unused} of {examples(names)} not used"
        if empty := sum(not frame.classes for frame in frames):
            line += f"; {count_of(empty, 'frame')} without boxes"
        absent = [name for name in classes if not found[name]]
        return f"{line}; none of {', '.join(absent)}" if absent else line

    def prepare_data(self, idx: int) -> Any:
        """Load a frame and apply the pipeline."""
        info = self.get_data_info(idx)
        item = self.frames.load(info["number"])
        return self.pipeline({**item, "sample_idx": info["sample_idx"], "classes": self.frames.classes})


class _Seeded:
    """Adapts a transform with a generator argument to a pipeline step; the generator is seeded from NumPy's state."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return super().__call__(item, np.random.default_rng(np.random.randint(2**31, size=4)))  # type: ignore[misc]


@TRANSFORMS.register_module()
class PointFlip(_Seeded, point_augment.RandomFlip):
    """`visionattn.heads.lidar.data.augment.RandomFlip`."""


@TRANSFORMS.register_module()
class PointRotation(_Seeded, point_augment.RandomRotation):
    """`visionattn.heads.lidar.data.augment.RandomRotation`."""


@TRANSFORMS.register_module()
class PointScaling(_Seeded, point_augment.RandomScaling):
    """`visionattn.heads.lidar.data.augment.RandomScaling`."""


@TRANSFORMS.register_module()
class PointTranslation(_Seeded, point_augment.RandomTranslation):
    """`visionattn.heads.lidar.data.augment.RandomTranslation`."""


@TRANSFORMS.register_module()
class PointRangeFilter(_Seeded, point_augment.RangeFilter):
    """`visionattn.heads.lidar.data.augment.RangeFilter`."""


@TRANSFORMS.register_module()
class PointShuffle(_Seeded, point_augment.ShufflePoints):
    """`visionattn.heads.lidar.data.augment.ShufflePoints`."""


@TRANSFORMS.register_module()
class PointDrop(_Seeded, point_augment.DropPoints):
    """`visionattn.heads.lidar.data.augment.DropPoints`."""


@TRANSFORMS.register_module()
class PasteObjects(_Seeded, ObjectPaste):
    """`visionattn.heads.lidar.data.object_database.ObjectPaste` with a database file.

    Args:
        database: path of a database, such as one written by ``visionattn data objects``.
        up_to, turn, to_ground, probability: see `ObjectPaste`.
    """

    def __init__(
        self,
        database: str,
        up_to: Mapping[str, int],
        turn: bool = False,
        to_ground: bool = True,
        probability: float = 1.0,
    ) -> None:
        super().__init__(ObjectDatabase.load(database), up_to, turn, to_ground, probability)


@TRANSFORMS.register_module()
class PackPoints(BaseTransform):
    """Pack the points as a tensor and the labels as a data sample.

    The sample has ``gt_instances`` (``boxes`` ``[M, 7]``, ``labels``, ``difficulty`` and, if available,
    ``velocity`` and ``attributes``); its meta information describes the frame, the ignored boxes, the labeled region
    and the pose.
    """

    META: Sequence[str] = (
        "frame", "path", "sample_idx", "ignore_boxes", "ignore_labels", "labelled_region", "bike_racks", "to_global",
        "ego",
    )  # fmt: skip

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack an item of `visionattn.heads.lidar.data.frames.PointCloudSet`."""
        points = torch.from_numpy(np.ascontiguousarray(results["points"], np.float32))
        meta = {key: results[key] for key in self.META if key in results}
        sample = BaseDataElement(metainfo=meta | {"img_path": str(Path(results.get("path", "points")))})
        if "boxes" in results:
            values = {name: torch.from_numpy(np.asarray(results[name])) for name in BOX_KEYS if name in results}
            sample.set_field(InstanceData(**values), "gt_instances")
        return {"inputs": {"points": points}, "data_samples": sample}
