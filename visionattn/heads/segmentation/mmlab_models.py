"""Detect model classes of mmseg and mmdet that segment whole images.

This module imports mmseg and mmdet, so import it only after a model has been built.
"""

import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["segments"]


def segments(model: type, config: Mapping[str, Any]) -> str | None:
    """Return "semantic" or "panoptic" for models that segment whole images, and None for others.

    Args:
        model: class of the model.
        config: the model config.
    """
    if "mmseg" in sys.modules:
        from mmseg.models.segmentors import BaseSegmentor

        if issubclass(model, BaseSegmentor):
            return "semantic"
    if "mmdet" in sys.modules:
        from mmdet.models.detectors import MaskFormer, TwoStagePanopticSegmentor

        options = config.get("test_cfg") or {}
        if issubclass(model, TwoStagePanopticSegmentor):
            return "panoptic"
        if issubclass(model, MaskFormer):
            if options.get("panoptic_on"):
                return "panoptic"
            return None if options.get("instance_on", True) else "semantic"
    return None
