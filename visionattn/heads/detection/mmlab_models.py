"""Detect model classes of mmdet that are detectors.

This module imports mmdet, so import it only after a model has been built.
"""

from collections.abc import Mapping
from typing import Any

from mmdet.models.detectors import BaseDetector, MaskFormer, TwoStagePanopticSegmentor
from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor

__all__ = ["is_detector", "predicts_masks"]


def is_detector(model: type, config: Mapping[str, Any]) -> bool:
    """Return True for detectors and instance segmentors of mmdet.

    Args:
        model: class of the model.
        config: the model config.
    """
    if not issubclass(model, BaseDetector) or issubclass(model, TwoStagePanopticSegmentor):
        return False
    options = config.get("test_cfg") or {}
    return not issubclass(model, MaskFormer) or (
        bool(options.get("instance_on", True)) and not options.get("panoptic_on")
    )


def predicts_masks(model: type, config: Mapping[str, Any]) -> bool:
    """Return True if a detector predicts instance masks.

    Args:
        model: class of the model.
        config: the model config.
    """
    if issubclass(model, (SingleStageInstanceSegmentor, MaskFormer)):
        return True
    parts = [config, config.get("roi_head") or {}]
    single_stage = config.get("bbox_head") or {}
    return any(part.get("mask_head") for part in parts) or (
        isinstance(single_stage, Mapping) and single_stage.get("loss_mask") is not None
    )
