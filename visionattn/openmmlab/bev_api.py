"""Trained detectors of point clouds outside of a runner."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from visionattn.openmmlab.api import LoadedModel

__all__ = ["is_point_config", "model_range", "predict_points"]


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
        loaded: of `visionattn.openmmlab.api.load_model`.
        items: of `visionattn.data.point_sets.PointCloudSet.load`.

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
