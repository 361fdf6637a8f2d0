"""DiNAT_s: the architecture of Swin (patch embedding, patch merging) with neighborhood instead of window attention.

Hassani and Shi, "Dilated Neighborhood Attention Transformer" (arXiv 2209.15001), section 4. Sizes are those of the
released models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models import generate_default_cfgs, register_model, register_model_deprecations
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer
from visionattn.backbones._neighborhood import (
    NeighborhoodBackbone,
    create_hierarchical,
    default_cfg,
    describe_variants,
)
from visionattn.backbones._weights import register_description

__all__ = ["DiNATS"]

_DEPTHS = {"depths": (2, 2, 18, 2), "dilations": "classification"}

VARIANTS: dict[str, dict[str, Any]] = {
    "dinat_s_tiny": {
        "embed_dim": 96,
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 24),
        "drop_path_rate": 0.2,
        "dilations": "classification",
    },
    "dinat_s_small": dict(embed_dim=96, num_heads=(3, 6, 12, 24), drop_path_rate=0.3, **_DEPTHS),
    "dinat_s_base": dict(embed_dim=128, num_heads=(4, 8, 16, 32), drop_path_rate=0.5, **_DEPTHS),
    "dinat_s_large": dict(embed_dim=192, num_heads=(6, 12, 24, 48), drop_path_rate=0.35, **_DEPTHS),
}


class DiNATS(NeighborhoodBackbone):
    """DiNAT_s, with the parameter names of the published models.

    Accepts images of any size. The stem zero-pads to a multiple of `patch_size` and patch merging to an even size, at
    the bottom and right; the attention pads as in `DiNAT`.

    Args:
        in_chans: image channels.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for no pooling.
        patch_size: patch size of the stem.
        embed_dim: channels of the first level; they double with each further level.
        depths: blocks per level.
        num_heads: attention heads per level.
        kernel_size: size of the neighborhood, odd.
        dilations: as in `DiNAT`.
        mlp_ratio: ratio of the MLPs' hidden width to their channels.
        qkv_bias: add a bias to the query, key and value projections.
        qk_scale: scale of the attention logits; None for ``head_dim ** -0.5``.
        patch_norm: add a norm after the stem.
        drop_rate: dropout rate before the classifier.
        proj_drop_rate: dropout rate after the attention projections and in the MLPs.
        attn_drop_rate: must be 0, see `NeighborhoodAttention2d`.
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        norm_layer: norm class or factory, called with the number of channels.
        out_norms: as in `DiNAT`.
        backend: backend of the attention kernels; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range or contradicts another one.
    """

    STAGES = "layers"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        kernel_size: int = 7,
        dilations: str | Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        patch_norm: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        norm_layer: NormLayer = nn.LayerNorm,
        out_norms: Sequence[int] = (),
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.patch_embed = PatchEmbed(
            img_size=None,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            norm_layer=norm_layer if patch_norm else None,
            output_fmt="NHWC",
            strict_img_size=False,
            dynamic_img_pad=True,
            **dd,
        )
        feature_info = self._build_levels(
            embed_dim,
            depths,
            num_heads,
            dilations,
            drop_path_rate,
            downsample=lambda dim: PatchMerging(dim, norm_layer=norm_layer, **dd),
            reduction=patch_size,
            attn_kwargs=dict(
                kernel_size=kernel_size,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                backend=backend,
                **dd,
            ),
            block_kwargs=dict(mlp_ratio=mlp_ratio, proj_drop=proj_drop_rate, norm_layer=norm_layer, **dd),
        )
        self._build_head(in_chans, num_classes, global_pool, drop_rate, norm_layer, feature_info, out_norms, **dd)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normed features ``[B, ceil(H / 32), ceil(W / 32), C]`` of images ``[B, in_chans, H, W]``."""
        x = self.patch_embed(x)
        for level in self.layers:
            x = level.downsample(level(x))
        return self.norm(x)


_AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}
_IN1K = "dinat/checkpoints/imagenet1k"
_STEM = {"first_conv": "patch_embed.proj"}

default_cfgs = generate_default_cfgs(
    {
        "dinat_s_tiny.in1k": default_cfg(f"{_IN1K}/dinat_s_tiny_in1k_224.pth", **_STEM),
        "dinat_s_small.in1k": default_cfg(f"{_IN1K}/dinat_s_small_in1k_224.pth", **_STEM),
        "dinat_s_base.in1k": default_cfg(f"{_IN1K}/dinat_s_base_in1k_224.pth", **_STEM),
        "dinat_s_large.in22k_ft_in1k_224": default_cfg(f"{_IN1K}/dinat_s_large_in1k_224.pth", **_STEM),
        "dinat_s_large.in22k_ft_in1k_384": default_cfg(f"{_IN1K}/dinat_s_large_in1k_384.pth", **_STEM, **_AT_384),
        "dinat_s_large.in22k": default_cfg(
            "dinat/checkpoints/imagenet22k/dinat_s_large_in22k_224.pth", num_classes=21841, **_STEM
        ),
    }
)


@register_description
def describe(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the variant that a checkpoint belongs to, such as ``"dinat_s_tiny"``; None for another family."""
    return describe_variants(tensors, "DiNAT_s", VARIANTS, "layers.0.blocks.0.attn.rpb")


def _create_dinat_s(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return create_hierarchical(DiNATS, variant, VARIANTS[variant], pretrained, **kwargs)


@register_model
def dinat_s_tiny(pretrained: bool = False, **kwargs: Any) -> DiNATS:
    """DiNAT_s-Tiny: 28 M parameters, 4.5 GFLOPs."""
    return _create_dinat_s("dinat_s_tiny", pretrained, **kwargs)


@register_model
def dinat_s_small(pretrained: bool = False, **kwargs: Any) -> DiNATS:
    """DiNAT_s-Small: 50 M parameters, 8.7 GFLOPs."""
    return _create_dinat_s("dinat_s_small", pretrained, **kwargs)


@register_model
def dinat_s_base(pretrained: bool = False, **kwargs: Any) -> DiNATS:
    """DiNAT_s-Base: 88 M parameters, 15.4 GFLOPs."""
    return _create_dinat_s("dinat_s_base", pretrained, **kwargs)


@register_model
def dinat_s_large(pretrained: bool = False, **kwargs: Any) -> DiNATS:
    """DiNAT_s-Large: 197 M parameters, 34.5 GFLOPs; the tag for 384 pixels has other dilations and 101.5 GFLOPs."""
    return _create_dinat_s("dinat_s_large", pretrained, **kwargs)


# Names used by the authors for models that are pretrained tags here.
register_model_deprecations(
    __name__,
    {
        "dinat_s_large_384": "dinat_s_large.in22k_ft_in1k_384",
        "dinat_s_large_21k": "dinat_s_large.in22k",
    },
)
