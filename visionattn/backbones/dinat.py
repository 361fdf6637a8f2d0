"""NAT and DiNAT: levels of neighborhood attention with overlapping convolutions between them.

Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143); Hassani and Shi, "Dilated
Neighborhood Attention Transformer" (arXiv 2209.15001). NAT is DiNAT with every dilation 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_model_deprecations,
    resolve_pretrained_cfg,
)
from torch import Tensor, nn

from visionattn.backbones._neighborhood import (
    NeighborhoodBackbone,
    NeighborhoodLevel,
    NormLayer,
    check_levels,
    default_cfg,
    drop_path_rates,
)
from visionattn.backbones._variants import DINAT, resolve_dilations
from visionattn.backbones._weights import checkpoint_filter_fn

__all__ = ["DiNAT"]


class ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2, a norm: ``[B, C, H, W]`` to ``[B, H/4, W/4, dim]`` (rounded up)."""

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
    """A 3x3 convolution of stride 2 and a norm: ``[B, H, W, C]`` to ``[B, H/2, W/2, 2C]`` (rounded up)."""

    def __init__(self, dim: int, norm_layer: NormLayer, **dd: Any) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False, **dd)
        self.norm = norm_layer(2 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class DiNAT(NeighborhoodBackbone):
    """(Dilated) Neighborhood Attention Transformer, with the state-dict names of the published models.

    Any input size works. Where a map is smaller than ``kernel_size * dilation``, the attention pads it at the
    bottom and right, as the published models do.

    Args:
        in_chans: channels of the images.
        num_classes: classes; 0 leaves the classifier out.
        global_pool: before the classifier: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""``.
        embed_dim: channels of the first level; each further one has twice as many.
        depths: blocks per level.
        num_heads: attention heads per level.
        kernel_size: width of the neighborhood, odd.
        dilations: per block; None is 1 everywhere. A schedule by name, ``"auto"``, or one list per level: see
            `visionattn.backbones.resolve_dilations`. For a registered model, None is its published schedule.
        mlp_ratio: hidden width of the MLPs over their channels.
        qkv_bias: whether the query, key and value projections have a bias.
        qk_scale: factor on the attention logits; None means ``head_dim ** -0.5``.
        layer_scale: initial value of the per-channel factors on the branches; None leaves them out.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after the attention projections and in the MLPs.
        attn_drop_rate: must be 0, see `NeighborhoodAttention2d`.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        norm_layer: makes a norm from a number of channels.
        out_norms: levels whose map gets a norm of its own (``norm0``, ``norm1``, ...), as in the published
            detection and segmentation backbones: in `forward_intermediates` and with ``features_only=True``.
            The classifier does not use them.
        backend: backend of the attention kernels; None picks the best that runs.
        device, dtype: of the parameters.

    Raises:
        ValueError: arguments that contradict each other; the message names them.
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
        check_levels(depths=depths, num_heads=num_heads)
        per_block = resolve_dilations(dilations, depths)
        dd = {"device": device, "dtype": dtype}
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.patch_embed = ConvStem(in_chans, embed_dim, norm_layer, **dd)
        self.levels = nn.ModuleList()
        feature_info = []
        for level, depth in enumerate(depths):
            dim = embed_dim * 2**level
            self.levels.append(
                NeighborhoodLevel(
                    dim,
                    num_heads[level],
                    per_block[level],
                    drop_path=[next(rates) for _ in range(depth)],
                    downsample=ConvDownsample(dim, norm_layer, **dd) if level < len(depths) - 1 else nn.Identity(),
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
            )
            feature_info.append({"num_chs": dim, "reduction": 4 * 2**level, "module": f"levels.{level}"})
        self._build_head(in_chans, num_classes, global_pool, drop_rate, norm_layer, feature_info, out_norms, **dd)

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to normed features ``[B, H/32, W/32, num_features]`` (rounded up)."""
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
        # Trained at 224 with kernel 7; only its position biases are interpolated, for fine-tuning at 384.
        "dinat_large_11x11.in22k": default_cfg(
            f"{_IN22K}/dinat_large_in22k_224_11x11interp.pth", num_classes=21841, **_AT_384
        ),
    }
)


def _create_dinat(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    architecture = dict(DINAT[variant])
    if kwargs.get("dilations") is None:
        kwargs.pop("dilations", None)
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        # Kernel 11 needs no schedule of its own: at 384 the one of kernel 7 at 224 fills the maps.
        if "dilations" in architecture and (cfg.input_size or (0,))[-1] == 384 and "kernel_size" not in architecture:
            architecture["dilations"] = "classification_384"
    return build_model_with_cfg(
        DiNAT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**architecture, **kwargs},
    )


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
    """DiNAT-Pico, ours and not published: under 3 M parameters, for small data sets and CPUs."""
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
    """DiNAT-Large: 201 M parameters, 30.6 GFLOPs; the tag for 384 has other dilations and 89.7 GFLOPs."""
    return _create_dinat("dinat_large", pretrained, **kwargs)


@register_model
def dinat_large_11x11(pretrained: bool = False, **kwargs: Any) -> DiNAT:
    """DiNAT-Large with kernel 11, made for 384 x 384: 201 M parameters, 92.4 GFLOPs."""
    return _create_dinat("dinat_large_11x11", pretrained, **kwargs)


# The authors' names for what is a tag here.
register_model_deprecations(
    __name__,
    {
        "dinat_large_384": "dinat_large.in22k_ft_in1k_384",
        "dinat_large_384_11x11": "dinat_large_11x11.in22k_ft_in1k_384",
        "dinat_large_21k": "dinat_large.in22k",
        "dinat_large_21k_11x11": "dinat_large_11x11.in22k",
    },
)
