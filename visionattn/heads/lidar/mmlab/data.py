"""Point clouds with boxes for mmengine's data loaders: frames of `visionattn.data`, and their pipeline steps."""

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
from visionattn.heads.lidar.data.frames import PointCloudFrame, PointCloudSet
from visionattn.heads.lidar.data.layouts import LAYOUTS, known_classes, read_frames
from visionattn.heads.lidar.data.object_database import ObjectDatabase, ObjectPaste

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
    """Frames of LiDAR data, as the readers of `visionattn.data` find them.

    Args:
        layout: ``"folder"`` (point clouds, each with a JSON file of its boxes), ``"kitti"``, ``"nuscenes"``, or
            ``"infos"``, a list that mmdetection3d made of nuScenes.
        data_root: of the set.
        ann_file: of KITTI, a list of frames such as ``"ImageSets/train.txt"``; of nuScenes, a list of scenes; of
            infos, the ``.pkl``.
        data_prefix: ``pts``, the folder below ``data_root`` with the point clouds of ``"folder"``.
        metainfo: ``classes``, in the order of the labels; KITTI's and nuScenes' are known.
        columns: of the points to keep: x, y, z, intensity, then what the set has.
        version: of nuScenes, its folder of tables; found unless given.
        sweeps: of nuScenes, how many turns of the sensor make a frame.
        crop_to_view: leave out what a camera does not see, where only that is labelled.
        x_forward: turn frames whose axes are x right, y forward, so that all models see x forward.
        every, offset: take each ``every``-th frame from the ``offset``-th on.
        **arguments: of mmengine's ``BaseDataset``, such as ``pipeline``.

    Raises:
        ConfigError: an unknown layout, or no classes.
        DataError: the files are not as the layout says, or no frame has a box of any class.
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
        data_prefix: dict | None = None,
        metainfo: Mapping[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if layout not in LAYOUTS:
            raise ConfigError(f"PointCloudDataset layout={layout!r} must be one of {LAYOUTS}")
        if every < 1 or not 0 <= offset < every:
            raise ConfigError(f"PointCloudDataset every={every} must be at least 1, and offset={offset} below it")
        metainfo = dict(metainfo or {})
        if not metainfo.setdefault("classes", None if layout == "folder" else known_classes(layout, data_root)):
            raise ConfigError(f"PointCloudDataset layout={layout!r} needs metainfo=dict(classes=(...))")
        self.layout, self.version, self.sweeps = layout, version, sweeps
        self.every, self.offset = every, offset
        self.set_options = dict(columns=columns, crop_to_view=crop_to_view, x_forward=x_forward)
        super().__init__(data_root=data_root, data_prefix=data_prefix or {"pts": ""}, metainfo=metainfo, **arguments)

    def read_frames(self) -> list[PointCloudFrame]:
        """All frames of the set."""
        source, split = self.data_root, self.ann_file or None
        if self.layout == "folder":
            source, split = self.data_prefix["pts"] or self.data_root, None
        elif self.layout == "infos":
            source, split = self.ann_file, None
        return read_frames(self.layout, source, split, sweeps=self.sweeps, version=self.version)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One record for each frame; its points are read when it is asked for."""
        frames = self.read_frames()[self.offset :: self.every]
        if not frames:
            raise DataError(f"{self.data_root or self.ann_file}: holds no frames")
        classes = self.metainfo["classes"]
        there = {name for frame in frames for name in frame.classes}
        if there and not there & set(classes):
            raise DataError(f"{frames[0].path}: no box is of {list(classes)}; the set's are {sorted(there)[:12]}")
        self.frames = PointCloudSet(frames, classes, **self.set_options)
        return [{"img_path": str(frame.path), "number": number} for number, frame in enumerate(frames)]

    def prepare_data(self, idx: int) -> Any:
        """Read a frame and send it through the pipeline."""
        info = self.get_data_info(idx)
        return self.pipeline({**self.frames.load(info["number"]), "sample_idx": info["sample_idx"]})


class _Seeded:
    """A transform of items and a generator, as a step of a pipeline; NumPy's own is seeded for each sample."""

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
    """`visionattn.heads.lidar.data.object_database.ObjectPaste`, with the database in a file.

    Args:
        database: what ``visionattn data objects`` wrote.
        up_to: for each class, the number of objects to fill a scan up to.
        turn, to_ground, probability: of `ObjectPaste`.
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
    """Makes the points a tensor and the rest a data sample.

    The sample has ``gt_instances`` (``boxes`` ``[M, 7]``, ``labels``, ``difficulty`` and, where it is known,
    ``velocity``) and, as meta information, what describes the frame and what is not to be counted in it.
    """

    META: Sequence[str] = ("frame", "path", "sample_idx", "ignore_boxes", "ignore_labels", "labelled_region")

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack an item of `visionattn.heads.lidar.data.frames.PointCloudSet`."""
        points = torch.from_numpy(np.ascontiguousarray(results["points"], np.float32))
        meta = {key: results[key] for key in self.META if key in results}
        sample = BaseDataElement(metainfo=meta | {"img_path": str(Path(results.get("path", "points")))})
        if "boxes" in results:
            names = ("boxes", "labels", "difficulty", "velocity")
            values = {name: torch.from_numpy(np.asarray(results[name])) for name in names if name in results}
            sample.set_field(InstanceData(**values), "gt_instances")
        return {"inputs": {"points": points}, "data_samples": sample}
