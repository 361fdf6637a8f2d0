"""Choose the module for the final outputs of a detector of mmdet.

This module imports mmdet, so import it only after a model has been built.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mmdet.models.dense_heads import RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import DINO, Mask2Former, MaskFormer
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import nn

from visionattn.errors import ConfigError
from visionattn.heads.detection.export import DenseOutputs
from visionattn.heads.detection.export_queries import DINOOutputs, MaskQueryOutputs
from visionattn.heads.detection.export_two_stage import TwoStageOutputs
from visionattn.inference.export import FinalOutputs
from visionattn.inference.export.deformable import replace_deformable
from visionattn.inference.options import ExportOptions

__all__ = ["final_outputs"]


def final_outputs(model: nn.Module, options: ExportOptions) -> FinalOutputs:
    """Return the module that computes the final outputs of a detector.

    Raises:
        ConfigError: a part of the model has test code that this package does not export.
    """
    if isinstance(model, (DINO, MaskFormer)):
        model = deepcopy(model)  # its modules are replaced
        return _with_queries(model, options)
    if hasattr(model, "roi_head"):
        _check_two_stage(model)
        return TwoStageOutputs(model, model.roi_head.test_cfg, options.max_detections, options.pasted)
    head = getattr(model, "bbox_head", None)
    if not isinstance(head, BaseDenseHead):
        raise ConfigError(_refusal(model, f"its head {type(head).__name__} is not a dense head"))
    for name in ("predict_by_feat", "_predict_by_feat_single", "_bbox_post_process"):
        if getattr(type(head), name) is not getattr(BaseDenseHead, name):
            raise ConfigError(_refusal(model, f"{type(head).__name__} has test code of its own, `{name}`"))
    _check_nms(model, head.test_cfg)
    return DenseOutputs(model, head.test_cfg, options.max_detections)


def _with_queries(model: nn.Module, options: ExportOptions) -> FinalOutputs:
    if isinstance(model, MaskFormer):
        if not isinstance(model, Mask2Former):
            raise ConfigError(_refusal(model, "of the models with masks of queries, only Mask2Former is supported"))
        replace_deformable(model)
        return MaskQueryOutputs(model, options.max_detections, options.pasted or options.resize)
    if getattr(model.data_preprocessor, "pad_size_divisor", 1) != 1:
        raise ConfigError(_refusal(model, "its `pad_size_divisor` must be 1, as padding is masked in its attention"))
    if type(model) is not DINO or not model.bbox_head.loss_cls.use_sigmoid:
        raise ConfigError(_refusal(model, "of the DETR family, only DINO with a sigmoid classifier is supported"))
    replace_deformable(model)
    return DINOOutputs(model, options.max_detections)


def _refusal(model: nn.Module, reason: str) -> str:
    return f"{type(model).__name__} cannot be exported: {reason}"


def _check_nms(model: nn.Module, test_cfg: Mapping[str, Any]) -> None:
    kind = (test_cfg.get("nms") or {}).get("type")
    if kind != "nms":
        raise ConfigError(_refusal(model, f"`test_cfg.nms` must be of type 'nms', got {kind!r}"))
    if test_cfg.get("nms_pre", 1) <= 0 or test_cfg.get("max_per_img", 1) <= 0:
        raise ConfigError(_refusal(model, "`test_cfg.nms_pre` and `test_cfg.max_per_img` must be positive"))


def _check_two_stage(model: nn.Module) -> None:
    roi_head, rpn = model.roi_head, getattr(model, "rpn_head", None)
    if type(rpn) is not RPNHead:
        raise ConfigError(_refusal(model, f"its proposals must be those of RPNHead, got {type(rpn).__name__}"))
    if type(roi_head) not in (StandardRoIHead, CascadeRoIHead):
        raise ConfigError(_refusal(model, f"{type(roi_head).__name__} is neither StandardRoIHead nor CascadeRoIHead"))
    if roi_head.with_shared_head:
        raise ConfigError(_refusal(model, "its regions have a shared head"))
    _check_nms(model, rpn.test_cfg)
    _check_nms(model, roi_head.test_cfg)
    for part in _parts(roi_head.bbox_head):
        if type(part).predict_by_feat is not BBoxHead.predict_by_feat or part.custom_activation:
            raise ConfigError(_refusal(model, f"{type(part).__name__} has test code of its own"))
    extractors = list(_parts(roi_head.bbox_roi_extractor))
    if roi_head.with_mask:
        extractors += _parts(roi_head.mask_roi_extractor)
        for part in _parts(roi_head.mask_head):
            if type(part).predict_by_feat is not FCNMaskHead.predict_by_feat:
                raise ConfigError(_refusal(model, f"{type(part).__name__} has test code of its own"))
    for part in extractors:
        layer = part.roi_layers[0]
        if type(part) is not SingleRoIExtractor or type(layer).__name__ != "RoIAlign":
            raise ConfigError(_refusal(model, f"{type(part).__name__} with {type(layer).__name__} is not supported"))
        if getattr(layer, "pool_mode", "avg") != "avg":
            raise ConfigError(_refusal(model, f"RoIAlign must average, got {layer.pool_mode!r}"))


def _parts(module: nn.Module) -> list[nn.Module]:
    return list(module) if isinstance(module, nn.ModuleList) else [module]
