"""Training samples of point cloud datasets, to draw them."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from visionattn.engine.samples import split_dataset

__all__ = ["read_point_samples"]


def read_point_samples(config: Config, split: str = "train", number: int = 8) -> Iterator[dict[str, Any]]:
    """Yield the first frames of a split after the data pipeline, random augmentation included.

    Yields:
        ``name``, ``points`` ``[N, C]``, ``boxes`` ``[M, 7]``, ``labels`` ``[M]`` and ``classes``, as NumPy arrays.

    Raises:
        ConfigError: the config has no such dataset.
    """
    with split_dataset(config, split) as dataset:
        for index in range(min(number, len(dataset))):
            packed = dataset[index]
            truth = packed["data_samples"].gt_instances
            yield {
                "name": str(packed["data_samples"].metainfo.get("frame", index)),
                "points": packed["inputs"]["points"].numpy(),
                "boxes": truth.boxes.numpy(),
                "labels": truth.labels.numpy(),
                "classes": tuple(dataset.metainfo["classes"]),
            }
