"""Read the raw outputs of mmdet and mmseg models."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from visionattn.errors import CheckpointError, ConfigError
from visionattn.inference.results import InstanceMasks

__all__ = ["category_ids", "decode_instances", "look_up", "pixel_logits", "to_array"]


def to_array(value: Any, dtype: Any) -> np.ndarray:
    """Convert a tensor, or a box type of mmdet, to an array."""
    value = getattr(value, "tensor", value)
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value).astype(dtype, copy=False)


def decode_instances(
    output: Any, size: tuple[int, int], classes: tuple[str, ...], score_thr: float | np.ndarray
) -> dict[str, Any]:
    """Return the fields ``boxes``, ``scores``, ``labels`` and ``masks`` of a `Prediction` from ``pred_instances``.

    Boxes with a score below `score_thr` are discarded, the rest sorted by score and clipped to the image.

    Args:
        output: a data sample of mmdet.
        size: (height, width) of the image in pixels.
        classes: class names by label.
        score_thr: score threshold, or one for each class, ``[classes]``.

    Raises:
        CheckpointError: a box or a score is not finite.
        ConfigError: a label has no class name.
    """
    found = output.pred_instances
    boxes = to_array(found.bboxes, np.float32).reshape(-1, 4)
    scores = to_array(found.scores, np.float32)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise CheckpointError("the model returned NaN or infinity; its checkpoint is from a diverged training run")
    labels = to_array(found.labels, np.int64)
    keep = np.flatnonzero(scores >= np.take(np.broadcast_to(score_thr, max(1, len(classes))), labels, mode="clip"))
    keep = keep[np.argsort(-scores[keep], kind="stable")]
    boxes = boxes[keep]
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, size[1])
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, size[0])
    labels = labels[keep]
    if len(labels) and labels.max() >= len(classes):
        raise ConfigError(
            f"the model predicts label {labels.max()}, but only {len(classes)} classes have names; set "
            "metainfo.classes of the test dataset in the config"
        )
    masks = None
    if "masks" in found:
        masks = InstanceMasks.from_dense(to_array(found.masks, bool).reshape(-1, *size), keep=keep)
    return {"boxes": boxes, "scores": scores[keep], "labels": labels, "masks": masks}


def pixel_logits(output: Any, threshold: float = 0.5) -> np.ndarray:
    """Return the logits of a segmentor, float32 ``[C, H, W]``.

    mmseg returns the sigmoid of a single channel and compares it with a threshold; here this becomes two channels,
    whose argmax is the same decision.

    Raises:
        ConfigError: the model returns no logits.
    """
    if "seg_logits" not in output:
        raise ConfigError("this model returns no logits per pixel, so its tiles and views cannot be merged")
    values = output.seg_logits.data.float()
    if values.shape[0] == 1:
        values = torch.logit(values, eps=1e-6)
        values = torch.cat([torch.full_like(values, float(torch.logit(torch.tensor(threshold)))), values])
    return to_array(values, np.float32)


def look_up(node: Any, *keys: str) -> Any:
    """Return the value at a path of keys in a config, or None if a part of the path is missing."""
    for key in keys:
        node = node.get(key) if hasattr(node, "get") else None
    return node


def category_ids(cfg: Mapping[str, Any], classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return ``test_dataloader.dataset.metainfo.category_ids`` of a config, or None if it is not set.

    Raises:
        ConfigError: the number of ids is not the number of classes.
    """
    given = look_up(cfg, "test_dataloader", "dataset", "metainfo", "category_ids")
    if given is None:
        return None
    ids = tuple(int(value) for value in given)
    if len(ids) != len(classes):
        raise ConfigError(f"metainfo.category_ids has {len(ids)} ids for {len(classes)} classes")
    return ids
