"""BiFormer-STL: bi-level routing attention in the layout of Swin-Tiny.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention" (arXiv 2303.08810), section 5.4.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from visionattn.backbones._biformer_blocks import BlockStage, PatchConv
from visionattn.backbones._variants import BIFORMER
from visionattn.backbones._weights import checkpoint_filter_fn
from visionattn.backbones.biformer import BiFormer, default_cfg

__all__ = ["BiFormerSTL"]


class BiFormerSTL(BiFormer):
    """`BiFormer` with a patch stem and patch merging; same arguments.

    Where 32 does not divide the image, ``padding="masked"`` pads it for these (maps are rounded up); with the paddings
    of the published models, they leave the rest out, as those do (rounded down).
    """

    MLP_MIDDLE = "none"

    def _make_stem(self, in_chans: int, dim: int, **dd: Any) -> nn.Module:
        return nn.Sequential(PatchConv(in_chans, dim, 4, **dd), nn.BatchNorm2d(dim, **dd))

    def _make_downsample(self, dim: int, wider: int, **dd: Any) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(dim, **dd), PatchConv(dim, wider, 2, **dd))

    def _make_stage(self, blocks: list[nn.Module]) -> nn.Module:
        return BlockStage(blocks)


default_cfgs = generate_default_cfgs(
    {
        "biformer_stl.in1k": default_cfg("s!AkBbczdRlZvChSf-m7ujkvx9lIQ1"),
        # Trained by the authors' later code: the padding and the convolution beside the global attention differ.
        "biformer_stl.nchw_in1k": default_cfg("s!AkBbczdRlZvChWYrKbWbMgqd2Ai0"),
    }
)


@register_model
def biformer_stl(pretrained: bool = False, **kwargs: Any) -> BiFormerSTL:
    """BiFormer-STL: 28 M parameters, 4.6 GFLOPs; checkpoints of both published layouts load."""
    return build_model_with_cfg(
        BiFormerSTL,
        "biformer_stl",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**BIFORMER["biformer_stl"], **kwargs},
    )
