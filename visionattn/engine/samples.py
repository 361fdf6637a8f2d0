"""The output of the data pipeline of a config as NumPy arrays."""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from visionattn.engine.compat import install
from visionattn.engine.config.build import building, quiet
from visionattn.engine.config.custom_data import SPLITS
from visionattn.errors import ConfigError

__all__ = ["TrainSample", "read_samples", "split_dataset"]


@dataclass(frozen=True)
class TrainSample:
    """One sample after the data pipeline.

    Attributes:
        name: name of the image file.
        image: uint8 ``[H, W, 3]`` in BGR order.
        classes: class names by label.
        boxes: float32 ``[N, 4]``, x0 y0 x1 y1 in pixels of `image`; empty if there are none.
        labels: int64 ``[N]``.
        masks: bool ``[N, H, W]`` or None.
        semantic: label map, integer ``[H, W]``, or None.
        colors: RGB colors by label if the dataset has one for each class, or None.
    """

    name: str
    image: np.ndarray
    classes: tuple[str, ...]
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    semantic: np.ndarray | None
    colors: tuple[tuple[int, int, int], ...] | None = None


@contextlib.contextmanager
def split_dataset(config: Config, split: str) -> Iterator[Any]:
    """Build the dataset of a split, for use in the block; build errors name the config.

    Args:
        config: the config.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        ConfigError: the config has no such split.
    """
    install()
    loader = config.get(SPLITS[split])
    if not loader:
        raise ConfigError(f"{config.filename or 'the config'}: has no `{SPLITS[split]}`")
    scope = config.get("default_scope", "mmengine")
    with quiet(), building(str(config.filename)), DefaultScope.overwrite_default_scope(scope):
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints progress
            dataset = DATASETS.build(loader["dataset"])
        yield dataset


def read_samples(config: Config, split: str = "train", number: int = 8) -> Iterator[TrainSample]:
    """Yield the first samples of a split after the whole data pipeline, including random augmentations.

    Args:
        config: the config.
        split: ``"train"``, ``"val"`` or ``"test"``.
        number: maximum number of samples.

    Raises:
        ConfigError: the config has no such split.
    """
    with split_dataset(config, split) as dataset:
        classes = tuple(str(c) for c in dataset.metainfo.get("classes", ()))
        palette = tuple(tuple(int(v) for v in color) for color in dataset.metainfo.get("palette") or ())
        colors = palette if len(palette) == len(classes) else None
        for index in range(min(number, len(dataset))):
            yield replace(_plain(dataset[index], classes), colors=colors)


def _plain(packed: dict, classes: tuple[str, ...]) -> TrainSample:
    sample = packed["data_samples"]
    values = packed["inputs"].permute(1, 2, 0).numpy()
    image = np.ascontiguousarray(values.clip(0, 255).astype(np.uint8))  # color augmentations may exceed [0, 255]
    boxes, labels, masks = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), None
    if "gt_instances" in sample and "bboxes" in sample.gt_instances:
        found = sample.gt_instances
        boxes = getattr(found.bboxes, "tensor", found.bboxes).numpy().astype(np.float32).reshape(-1, 4)
        labels = found.labels.numpy().astype(np.int64)
        if "masks" in found:
            masks = found.masks.to_ndarray().astype(bool).reshape(-1, *image.shape[:2])
    semantic = None
    if "gt_sem_seg" in sample:
        data = sample.gt_sem_seg
        semantic = np.asarray(data.data if "data" in data else data.sem_seg)[0].astype(np.int64)
        if semantic.shape != image.shape[:2]:  # mmseg loads the label map of a test image after resizing
            rows, columns = (
                (np.arange(size) + 0.5) * full / size for size, full in zip(image.shape, semantic.shape, strict=False)
            )
            semantic = semantic[rows.astype(int)[:, None], columns.astype(int)]
    name = Path(str(sample.metainfo.get("img_path", "image"))).name
    return TrainSample(name, image, classes, boxes, labels, masks, semantic)
