"""Trained detectors of point clouds outside of a runner."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS

from visionattn.engine.config.build import building, quiet
from visionattn.engine.config.custom_data import SPLITS
from visionattn.engine.model import LoadedModel
from visionattn.errors import ConfigError

__all__ = ["is_point_config", "model_range", "predict_points", "read_point_samples"]


def is_point_config(config: Config) -> bool:
    """Whether the model of a config takes point clouds."""
    return str((config.get("model") or {}).get("type", "")).rsplit(".", 1)[-1] == "BEVDetector"


def model_range(config: Config) -> tuple[float, ...]:
    """Least x, y, z, then most, in metres, of the points that the model sees."""
    return tuple(float(value) for value in config.model.point_cloud_range)


@torch.inference_mode()
def predict_points(loaded: LoadedModel, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run the config's test pipeline and the model on frames, in one batch.

    Args:
        loaded: of `visionattn.engine.model.load_model`.
        items: of `visionattn.heads.lidar.data.frames.PointCloudSet.load`.

    Returns:
        One dict for each: ``boxes`` ``[N, 7]`` float32, ``scores`` ``[N]``, ``labels`` ``[N]`` int64, ``velocity``
        ``[N, 2]`` or None, and ``seconds``, for this frame.
    """
    if not items:
        return []
    start = time.perf_counter()
    pipeline = loaded._pipeline(1.0)
    outputs = loaded.model.test_step(pseudo_collate([pipeline(dict(item)) for item in items]))
    results = []
    for output in outputs:
        found = output.pred_instances
        result = {name: found[name].float().cpu().numpy() for name in ("boxes", "scores")}
        result["labels"] = found.labels.cpu().numpy().astype(np.int64)
        result["velocity"] = found.velocity.float().cpu().numpy() if "velocity" in found else None
        results.append(result)
    seconds = (time.perf_counter() - start) / len(items)
    return [{**result, "seconds": seconds} for result in results]


def read_point_samples(config: Config, split: str = "train", number: int = 8) -> Iterator[dict[str, Any]]:
    """The first frames of a split, each through the whole pipeline with its random changes.

    Yields:
        ``name``, ``points`` ``[N, C]``, ``boxes`` ``[M, 7]``, ``labels`` ``[M]`` and ``classes``, in NumPy arrays.

    Raises:
        ConfigError: the config has no such dataset.
    """
    loader = config.get(SPLITS[split])
    if not loader:
        raise ConfigError(f"the config has no `{SPLITS[split]}`")
    with quiet(), building(str(config.filename)):
        dataset = DATASETS.build(loader["dataset"])
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
