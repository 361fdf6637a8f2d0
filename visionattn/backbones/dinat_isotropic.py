"""Isotropic NAT and DiNAT, and ViT-rpb: models with one resolution throughout, for comparing attention mechanisms.

Hassani and Shi, "Dilated Neighborhood Attention Transformer" (arXiv 2209.15001), section 4. ViT-rpb is the same
model with global attention and a relative position bias.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed, to_2tuple
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer, drop_path_rates
from visionattn.backbones._download import with_cached_weights
from visionattn.backbones._neighborhood import (
    NeighborhoodBackbone,
    NeighborhoodBlock,
    default_cfg,
    describe_variants,
)
from visionattn.backbones._weights import checkpoint_filter_fn, register_description
from visionattn.layers.global_rpb import GlobalAttentionRpb
from visionattn.layers.neighborhood import NeighborhoodAttention2d

__all__ = ["DiNATIsotropic", "ViTRpb"]

_ISO_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 12, "drop_path_rate": 0.1}
_ISO_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 24, "drop_path_rate": 0.4}

VARIANTS: dict[str, dict[str, Any]] = {
    "nat_isotropic_small": dict(**_ISO_SMALL),
    "nat_isotropic_base": dict(**_ISO_BASE),
    "dinat_isotropic_small": dict(**_ISO_SMALL, dilations="classification"),
    "dinat_isotropic_base": dict(**_ISO_BASE, dilations="classification"),
    "vitrpb_small": dict(**_ISO_SMALL),
    "vitrpb_base": dict(**_ISO_BASE),
}


class _Isotropic(NeighborhoodBackbone):
    """Base class: patch embedding and a flat list of blocks."""

    STAGES = "layers"

    def _build(
        self,
        patch_embed: PatchEmbed,
        attentions: Sequence[nn.Module],
        dim: int,
        mlp_ratio: float,
        proj_drop_rate: float,
        drop_path_rate: float,
        norm_layer: NormLayer,
        dd: dict[str, Any],
        **head: Any,
    ) -> None:
        self.patch_embed = patch_embed
        rates = drop_path_rates(drop_path_rate, len(attentions))
        self.layers = nn.ModuleList(
            NeighborhoodBlock(
                attn, dim, mlp_ratio, proj_drop=proj_drop_rate, drop_path=rate, norm_layer=norm_layer, **dd
            )
            for attn, rate in zip(attentions, rates, strict=True)
        )
        reduction = patch_embed.feat_ratio()
        feature_info = [
            {"num_chs": dim, "reduction": reduction, "module": f"layers.{i}"} for i in range(len(attentions))
        ]
        self._build_head(norm_layer=norm_layer, feature_info=feature_info, **head, **dd)

    def _run_stage(self, stage: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(stage, x) if self.grad_checkpointing else stage(x)

    def _next_resolution(self, index: int, x: Tensor) -> Tensor:
        return x

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^patch_embed", "blocks": [(r"^layers\.(\d+)", None), (r"^norm", (99999,))]}

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normed features ``[B, ceil(H / 16), ceil(W / 16), C]`` of images ``[B, in_chans, H, W]``."""
        x = self.patch_embed(x)
        for block in self.layers:
            x = block(x) if torch.jit.is_scripting() else self._run_stage(block, x)
        return self.norm(x)


class DiNATIsotropic(_Isotropic):
    """Isotropic (Di)NAT, with the parameter names of the published models.

    Accepts images of any size. The stem zero-pads to a multiple of `patch_size` at the bottom and right; the attention
    pads as in `DiNAT`.

    Args:
        in_chans: image channels.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for no pooling.
        patch_size: patch size of the stem.
        embed_dim: channels.
        depth: number of blocks.
        num_heads: attention heads.
        kernel_size: size of the neighborhood, odd.
        dilations: dilation of each block: None for 1 everywhere, ``"classification"`` for alternating 1 and 2 (as
            published), ``"auto"`` for alternating 1 and the largest that fits the feature map, or one integer per
            block.
        mlp_ratio: ratio of the MLPs' hidden width to `embed_dim`.
        qkv_bias: add a bias to the query, key and value projections.
        qk_scale: scale of the attention logits; None for ``head_dim ** -0.5``.
        drop_rate: dropout rate before the classifier.
        proj_drop_rate: dropout rate after the attention projections and in the MLPs.
        attn_drop_rate: must be 0, see `NeighborhoodAttention2d`.
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        norm_layer: norm class or factory, called with the number of channels.
        backend: backend of the attention kernels; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range or contradicts another one.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        kernel_size: int = 7,
        dilations: str | Sequence[int] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: NormLayer = nn.LayerNorm,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        patch_embed = PatchEmbed(
            img_size=None,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            norm_layer=norm_layer,
            output_fmt="NHWC",
            strict_img_size=False,
            dynamic_img_pad=True,
            **dd,
        )
        attentions = [
            NeighborhoodAttention2d(
                embed_dim,
                num_heads,
                kernel_size,
                dilation,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                backend=backend,
                **dd,
            )
            for dilation in _flat_dilations(dilations, depth)
        ]
        self._build(
            patch_embed,
            attentions,
            embed_dim,
            mlp_ratio,
            proj_drop_rate,
            drop_path_rate,
            norm_layer,
            dd,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


class ViTRpb(_Isotropic):
    """ViT with relative position bias and without class token, the isotropic baseline of the DiNAT paper.

    The input size is fixed by the size of the bias tables.

    Args:
        img_size: height and width of the images, multiples of `patch_size`; one value is used for both.
        in_chans, num_classes, global_pool, patch_size, embed_dim, depth, num_heads, mlp_ratio, qkv_bias,
            qk_scale, drop_rate, proj_drop_rate, drop_path_rate, norm_layer, device, dtype: as in
            `DiNATIsotropic`.
        attn_drop_rate: dropout rate of the attention probabilities.

    Raises:
        ValueError: if an argument is out of range or contradicts another one.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        patch_size: int = 16,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_layer: NormLayer = nn.LayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        if any(side % patch_size for side in to_2tuple(img_size)):
            raise ValueError(f"`img_size` must be a multiple of `patch_size`={patch_size}, got {img_size}")
        patch_embed = PatchEmbed(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            norm_layer=norm_layer,
            output_fmt="NHWC",
            **dd,
        )
        attentions = [
            GlobalAttentionRpb(
                embed_dim,
                num_heads,
                patch_embed.grid_size,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
                **dd,
            )
            for _ in range(depth)
        ]
        self._build(
            patch_embed,
            attentions,
            embed_dim,
            mlp_ratio,
            proj_drop_rate,
            drop_path_rate,
            norm_layer,
            dd,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


def _flat_dilations(dilations: str | Sequence[int] | None, depth: int) -> list[Any]:
    """Return the dilation of each of `depth` blocks; see `DiNATIsotropic`."""
    if dilations is None:
        return [1] * depth
    if dilations in ("classification", "auto"):
        dilated = 2 if dilations == "classification" else "auto"
        return [dilated if block % 2 else 1 for block in range(depth)]
    if isinstance(dilations, str):
        raise ValueError(f"`dilations` must be 'classification', 'auto' or a sequence of integers, got {dilations!r}")
    if isinstance(dilations, int) or len(dilations) != depth:
        raise ValueError(f"`dilations` must have {depth} values, one per block, got {dilations!r}")
    if not all(isinstance(d, int) and d >= 1 for d in dilations):
        raise ValueError(f"`dilations` must be integers >= 1, got {dilations!r}")
    return list(dilations)


def _cfg(name: str, **kwargs: Any) -> dict[str, Any]:
    path = f"dinat/checkpoints/isotropic/{name}_in1k_224.pth"
    return default_cfg(path, pool_size=(14, 14), first_conv="patch_embed.proj", **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "nat_isotropic_small.in1k": _cfg("nat_isotropic_small"),
        "nat_isotropic_base.in1k": _cfg("nat_isotropic_base"),
        "dinat_isotropic_small.in1k": _cfg("dinat_isotropic_small"),
        "dinat_isotropic_base.in1k": _cfg("dinat_isotropic_base"),
        "vitrpb_small.in1k": _cfg("vitrpb_small", fixed_input_size=True),
        "vitrpb_base.in1k": _cfg("vitrpb_base", fixed_input_size=True),
    }
)


@register_description
def describe(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the variant that a checkpoint belongs to, such as ``"nat_isotropic_small"``; None for another family."""
    return describe_variants(tensors, "isotropic NAT, DiNAT or ViT-rpb", VARIANTS, "layers.0.attn.rpb")


def _create_isotropic(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    if kwargs.get("dilations", ...) is None:
        del kwargs["dilations"]
    return build_model_with_cfg(
        ViTRpb if variant.startswith("vitrpb") else DiNATIsotropic,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (2, 5, 8, 11), "feature_cls": "getter"},
        **{**VARIANTS[variant], **with_cached_weights(variant, pretrained, kwargs)},
    )


@register_model
def nat_isotropic_small(pretrained: bool = False, **kwargs: Any) -> DiNATIsotropic:
    """Isotropic NAT-Small: 22 M parameters, 4.3 GFLOPs."""
    return _create_isotropic("nat_isotropic_small", pretrained, **kwargs)


@register_model
def nat_isotropic_base(pretrained: bool = False, **kwargs: Any) -> DiNATIsotropic:
    """Isotropic NAT-Base: 86 M parameters, 16.9 GFLOPs."""
    return _create_isotropic("nat_isotropic_base", pretrained, **kwargs)


@register_model
def dinat_isotropic_small(pretrained: bool = False, **kwargs: Any) -> DiNATIsotropic:
    """Isotropic DiNAT-Small: 22 M parameters, 4.3 GFLOPs."""
    return _create_isotropic("dinat_isotropic_small", pretrained, **kwargs)


@register_model
def dinat_isotropic_base(pretrained: bool = False, **kwargs: Any) -> DiNATIsotropic:
    """Isotropic DiNAT-Base: 86 M parameters, 16.9 GFLOPs."""
    return _create_isotropic("dinat_isotropic_base", pretrained, **kwargs)


@register_model
def vitrpb_small(pretrained: bool = False, **kwargs: Any) -> ViTRpb:
    """ViT-rpb-Small: 22 M parameters, 4.6 GFLOPs."""
    return _create_isotropic("vitrpb_small", pretrained, **kwargs)


@register_model
def vitrpb_base(pretrained: bool = False, **kwargs: Any) -> ViTRpb:
    """ViT-rpb-Base: 87 M parameters, 17.5 GFLOPs."""
    return _create_isotropic("vitrpb_base", pretrained, **kwargs)
