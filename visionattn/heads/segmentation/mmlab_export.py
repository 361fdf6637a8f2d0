"""Choose the module for the final outputs of a segmentor of mmseg or mmdet.

This module imports mmseg and mmdet, so import it only after a model has been built.
"""

from copy import deepcopy

import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.errors import ConfigError
from visionattn.heads.segmentation.export import MapOutputs, PanopticOutputs, QueryMapOutputs
from visionattn.inference.export import FinalOutputs
from visionattn.inference.export.deformable import replace_deformable
from visionattn.inference.export.pooling import replace_pooling
from visionattn.inference.options import ExportOptions

__all__ = ["final_outputs"]


def final_outputs(model: nn.Module, options: ExportOptions) -> FinalOutputs:
    """Return the module that computes the final outputs of a segmentor.

    Raises:
        ConfigError: a part of the model has test code that this package does not export.
    """
    from mmdet.models.detectors import Mask2Former
    from mmseg.models.decode_heads import Mask2FormerHead
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder

    if type(model) is EncoderDecoder:
        head = model.decode_head
        if isinstance(head, BaseDecodeHead) and type(head).predict is BaseDecodeHead.predict:
            model = deepcopy(model)
            _replace_upsampling(model)
            replace_pooling(model)
            return MapOutputs(model)
        if type(head) is Mask2FormerHead:
            model = deepcopy(model)  # its modules are replaced
            replace_deformable(model)
            return QueryMapOutputs(model)
        raise ConfigError(f"EncoderDecoder cannot be exported: {type(head).__name__} has test code of its own")
    if type(model) is Mask2Former:
        model = deepcopy(model)
        replace_deformable(model)
        return PanopticOutputs(model, queries=not options.resize)
    raise ConfigError(f"{type(model).__name__} cannot be exported: its test code is not known")


def _replace_upsampling(model: nn.Module) -> None:
    """Replace mmseg's ``Upsample``, which converts the size to a constant while it is traced."""
    from mmseg.models.utils import Upsample

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is Upsample and child.scale_factor and float(child.scale_factor).is_integer():
                setattr(module, name, _Upsample(int(child.scale_factor), child.mode, child.align_corners))


class _Upsample(nn.Module):
    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        size = [side * self.factor for side in x.shape[2:]]
        return F.interpolate(x, size=size, mode=self.mode, align_corners=self.align_corners)
