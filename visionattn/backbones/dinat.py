"""NAT and DiNAT: hierarchical backbones with (dilated) neighborhood attention.

Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143); Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (arXiv 2209.15001). NAT is DiNAT with all dilations equal to 1. Sizes are those of
the released models.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model, register_model_deprecations
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer
from visionattn.backbones._neighborhood import (
    NeighborhoodBackbone,
    create_hierarchical,
    default_cfg,
    describe_variants,
)
from visionattn.backbones._weights import register_description

__all__ = ["DiNAT"]

_LARGE = {"embed_dim": 192, "depths": (3, 4, 18, 5), "num_heads": (6, 12, 24, 48), "mlp_ratio": 2.0}
_BASE = {"embed_dim": 128, "depths": (3, 4, 18, 5), "num_heads": (4, 8, 16, 32), "mlp_ratio": 2.0}
_SMALL = {"embed_dim": 96, "depths": (3, 4, 18, 5), "num_heads": (3, 6, 12, 24), "mlp_ratio": 2.0}
_TINY = {"embed_dim": 64, "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0}
_MINI = {"embed_dim": 64, "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16), "mlp_ratio": 3.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "nat_mini": dict(**_MINI, drop_path_rate=0.2),
    "nat_tiny": dict(**_TINY, drop_path_rate=0.2),
    "nat_small": dict(**_SMALL, drop_path_rate=0.3, layer_scale=1e-5),
    "nat_base": dict(**_BASE, drop_path_rate=0.5, layer_scale=1e-5),
    # Not published: at most 3 M parameters, for small datasets and CPUs.
    "dinat_pico": {
        "embed_dim": 32,
        "depths": (2, 2, 6, 2),
        "num_heads": (1, 2, 4, 8),
        "mlp_ratio": 2.5,
        "drop_path_rate": 0.0,
        "dilations": "classification",
    },
    "dinat_mini": dict(**_MINI, drop_path_rate=0.2, dilations="classification"),
    "dinat_tiny": dict(**_TINY, drop_path_rate=0.2, dilations="classification"),
    # The released small and large models have no layer scale, unlike nat_small and dinat_base.
    "dinat_small": dict(**_SMALL, drop_path_rate=0.3, dilations="classification"),
    "dinat_base": dict(**_BASE, drop_path_rate=0.5, layer_scale=1e-5, dilations="classification"),
    "dinat_large": dict(**_LARGE, drop_path_rate=0.35, dilations="classification"),
    "dinat_large_11x11": dict(**_LARGE, kernel_size=11, drop_path_rate=0.35, dilations="classification"),
}


class ConvStem(nn.Module):
    """Two 3x3 convolutions with stride 2 and a norm: ``[B, C, H, W]`` to ``[B, ceil(H / 4), ceil(W / 4), dim]``."""

    def __init__(self, in_chans: int, dim: int, norm_layer: NormLayer, **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd),
        )
        self.norm = norm_layer(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ConvDownsample(nn.Module):
    """A 3x3 convolution with stride 2 and a norm: ``[B, H, W, C]`` to ``[B, ceil(H / 2), ceil(W / 2), 2C]``."""

    def __init__(self, dim: int, norm_layer: NormLayer, **dd: Any) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False, **dd)
        self.norm = norm_layer(2 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class DiNAT(NeighborhoodBackbone):
    """(Dilated) Neighborhood Attention Transformer, with the parameter names of the published models.

    Accepts images of any size. Feature maps smaller than ``kernel_size * dilation`` are zero-padded at the bottom and
    right inside the attention, as in the published models.

    Args:
        in_chans: image channels.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for no pooling.
        embed_dim: channels of the first level; they double with each further level.
        depths: blocks per level.
        num_heads: attention heads per level.
        kernel_size: size of the neighborhood, odd.
        dilations: dilation of each block: None for 1 everywhere, a schedule name, ``"auto"``, or one list per level;
            see `visionattn.backbones.resolve_dilations`. For registered models, None is the published schedule.
        mlp_ratio: ratio of the MLPs' hidden width to their channels.
        qkv_bias: add a bias to the query, key and value projections.
        qk_scale: scale of the attention logits; None for ``head_dim ** -0.5``.
        layer_scale: initial value of layer scale; None for no layer scale.
        drop_rate: dropout rate before the classifier.
        proj_drop_rate: dropout rate after the attention projections and in the MLPs.
        attn_drop_rate: must be 0, see `NeighborhoodAttention2d`.
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        norm_layer: norm class or factory, called with the number of channels.
        out_norms: levels with an output norm (``norm0``, ``norm1``, ...), as in the published detection and
            segmentation backbones. The norms are applied in `forward_intermediates` and with ``features_only=True``;
            the classifier does not use them.
        backend: backend of the attention kernels; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range or contradicts another one.
    """

    STAGES = "levels"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: int = 7,
        dilations: str | Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        layer_scale: float | None = None,
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
        self.patch_embed = ConvStem(in_chans, embed_dim, norm_layer, **dd)
        feature_info = self._build_levels(
            embed_dim,
            depths,
            num_heads,
            dilations,
            drop_path_rate,
            downsample=lambda dim: ConvDownsample(dim, norm_layer, **dd),
            reduction=4,
            attn_kwargs=dict(
                kernel_size=kernel_size,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                backend=backend,
                **dd,
            ),
            block_kwargs=dict(
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                proj_drop=proj_drop_rate,
                norm_layer=norm_layer,
                **dd,
            ),
        )
        self._build_head(in_chans, num_classes, global_pool, drop_rate, norm_layer, feature_info, out_norms, **dd)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normed features ``[B, ceil(H / 32), ceil(W / 32), C]`` of images ``[B, in_chans, H, W]``."""
        x = self.patch_embed(x)
        for level in self.levels:
            x = level.downsample(level(x))
        return self.norm(x)


_AT_384 = {"input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}
_IN1K = "dinat/checkpoints/imagenet1k"
_IN22K = "dinat/checkpoints/imagenet22k"

default_cfgs = generate_default_cfgs(
    {
        "nat_mini.in1k": default_cfg("nat/checkpoints/CLS/nat_mini.pth"),
        "nat_tiny.in1k": default_cfg("nat/checkpoints/CLS/nat_tiny.pth"),
        "nat_small.in1k": default_cfg("nat/checkpoints/CLS/nat_small.pth"),
        "nat_base.in1k": default_cfg("nat/checkpoints/CLS/nat_base.pth"),
        "dinat_pico": default_cfg(),
        "dinat_mini.in1k": default_cfg(f"{_IN1K}/dinat_mini_in1k_224.pth"),
        "dinat_tiny.in1k": default_cfg(f"{_IN1K}/dinat_tiny_in1k_224.pth"),
        "dinat_small.in1k": default_cfg(f"{_IN1K}/dinat_small_in1k_224.pth"),
        "dinat_base.in1k": default_cfg(f"{_IN1K}/dinat_base_in1k_224.pth"),
        "dinat_large.in22k_ft_in1k_224": default_cfg(f"{_IN1K}/dinat_large_in22k_in1k_224.pth"),
        "dinat_large.in22k_ft_in1k_384": default_cfg(f"{_IN1K}/dinat_large_in22k_in1k_384.pth", **_AT_384),
        "dinat_large.in22k": default_cfg(f"{_IN22K}/dinat_large_in22k_224.pth", num_classes=21841),
        "dinat_large_11x11.in22k_ft_in1k_384": default_cfg(f"{_IN1K}/dinat_large_in22k_in1k_384_11x11.pth", **_AT_384),
        # Trained at 224 pixels with kernel 7, then its position biases were interpolated for fine-tuning at 384.
        "dinat_large_11x11.in22k": default_cfg(
            f"{_IN22K}/dinat_large_in22k_224_11x11interp.pth", num_classes=21841, **_AT_384
        ),
    }
)


@register_description
def describe(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the variant that a checkpoint belongs to, such as ``"dinat_mini"``; None for another family."""
    return describe_variants(tensors, "NAT or DiNAT", VARIANTS, "levels.0.blocks.0.attn.rpb")


def _create_dinat(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return create_hierarchical(DiNAT, variant, VARIANTS[variant], pretrained, **kwargs)


@register_model
def nat_mini(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """NAT-Mini: 20 M parameters, 2.7 GFLOPs."""
    return _create_dinat("nat_mini", pretrained, **kwargs)


@register_model
def nat_tiny(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """NAT-Tiny: 28 M parameters, 4.3 GFLOPs."""
    return _create_dinat("nat_tiny", pretrained, **kwargs)


@register_model
def nat_small(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """NAT-Small: 51 M parameters, 7.8 GFLOPs."""
    return _create_dinat("nat_small", pretrained, **kwargs)


@register_model
def nat_base(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """NAT-Base: 90 M parameters, 13.7 GFLOPs."""
    return _create_dinat("nat_base", pretrained, **kwargs)


@register_model
def dinat_pico(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """DiNAT-Pico, not a published size: under 3 M parameters, for small datasets and CPUs."""
    return _create_dinat("dinat_pico", pretrained, **kwargs)


@register_model
def dinat_mini(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """DiNAT-Mini: 20 M parameters, 2.7 GFLOPs."""
    return _create_dinat("dinat_mini", pretrained, **kwargs)


@register_model
def dinat_tiny(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """DiNAT-Tiny: 28 M parameters, 4.3 GFLOPs."""
    return _create_dinat("dinat_tiny", pretrained, **kwargs)


@register_model
def dinat_small(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """DiNAT-Small: 51 M parameters, 7.8 GFLOPs."""
    return _create_dinat("dinat_small", pretrained, **kwargs)


@register_model
def dinat_base(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """DiNAT-Base: 90 M parameters, 13.7 GFLOPs."""
    return _create_dinat("dinat_base", pretrained, **kwargs)


@register_model
def dinat_large(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """DiNAT-Large: 201 M parameters, 30.6 GFLOPs; the tag for 384 pixels has other dilations and 89.7 GFLOPs."""
    return _create_dinat("dinat_large", pretrained, **kwargs)


@register_model
def dinat_large_11x11(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """DiNAT-Large with kernel 11 for 384 x 384 pixels: 201 M parameters, 92.4 GFLOPs."""
    return _create_dinat("dinat_large_11x11", pretrained, **kwargs)


# Names used by the authors for models that are pretrained tags here.
register_model_deprecations(
    __name__,
    {
        "dinat_large_384": "dinat_large.in22k_ft_in1k_384",
        "dinat_large_384_11x11": "dinat_large_11x11.in22k_ft_in1k_384",
        "dinat_large_21k": "dinat_large.in22k",
        "dinat_large_21k_11x11": "dinat_large_11x11.in22k",
    },
)
