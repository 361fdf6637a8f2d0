"""DiNAT_s: the layout of Swin (patch stem, patch merging) with neighborhood attention in place of windows.

Hassani and Shi, "Dilated Neighborhood Attention Transformer" (arXiv 2209.15001), section 4.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_model_deprecations,
    resolve_pretrained_cfg,
)
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from visionattn.backbones._neighborhood import (
    NeighborhoodBackbone,
    NeighborhoodLevel,
    NormLayer,
    check_levels,
    default_cfg,
    drop_path_rates,
)
from visionattn.backbones._variants import DINAT_S, resolve_dilations
from visionattn.backbones._weights import checkpoint_filter_fn

__all__ = ["DiNATS"]


class DiNATS(NeighborhoodBackbone):
    """DiNAT_s, with the state-dict names of the published models.

    Any input size works: the stem pads to a multiple of `patch_size`, merging to an even size, both at the
    bottom and right and with zeros; the attention pads as in `DiNAT`.

    Args:
        in_chans: channels of the images.
        num_classes: classes; 0 leaves the classifier out.
        global_pool: before the classifier: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""``.
        patch_size: stride of the stem.
        embed_dim: channels of the first level; each further one has twice as many.
        depths: blocks per level.
        num_heads: attention heads per level.
        kernel_size: width of the neighborhood, odd.
        dilations: as in `DiNAT`.
        mlp_ratio: hidden width of the MLPs over their channels.
        qkv_bias: whether the query, key and value projections have a bias.
        qk_scale: factor on the attention logits; None means ``head_dim ** -0.5``.
        patch_norm: norm after the stem.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after the attention projections and in the MLPs.
        attn_drop_rate: must be 0, see `NeighborhoodAttention2d`.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        norm_layer: makes a norm from a number of channels.
        out_norms: as in `DiNAT`.
        backend: backend of the attention kernels; None picks the best that runs.
        device, dtype: of the parameters.

    Raises:
        ValueError: arguments that contradict each other; the message names them.
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
        check_levels(depths=depths, num_heads=num_heads)
        per_block = resolve_dilations(dilations, depths)
        dd = {"device": device, "dtype": dtype}
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.patch_embed = PatchEmbed(
            img_size=None,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            norm_layer=norm_layer if patch_norm else None,
            output_fmt="NHWC",
            dynamic_img_pad=True,
            **dd,
        )
        self.layers = nn.ModuleList()
        feature_info = []
        for level, depth in enumerate(depths):
            dim = embed_dim * 2**level
            last = level == len(depths) - 1
            self.layers.append(
                NeighborhoodLevel(
                    dim,
                    num_heads[level],
                    per_block[level],
                    drop_path=[next(rates) for _ in range(depth)],
                    downsample=nn.Identity() if last else PatchMerging(dim, norm_layer=norm_layer, **dd),
                    attn_kwargs={
                        "kernel_size": kernel_size,
                        "qkv_bias": qkv_bias,
                        "qk_scale": qk_scale,
                        "attn_drop": attn_drop_rate,
                        "proj_drop": proj_drop_rate,
                        "backend": backend,
                        **dd,
                    },
                    block_kwargs={
                        "mlp_ratio": mlp_ratio,
                        "proj_drop": proj_drop_rate,
                        "norm_layer": norm_layer,
                        **dd,
                    },
                )
            )
            reduction = patch_size * 2**level
            feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"layers.{level}"})
        self._build_head(in_chans, num_classes, global_pool, drop_rate, norm_layer, feature_info, out_norms, **dd)

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to normed features ``[B, H/32, W/32, num_features]`` (rounded up)."""
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


def _create_dinat_s(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    architecture = dict(DINAT_S[variant])
    if kwargs.get("dilations") is None:
        kwargs.pop("dilations", None)
        cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
        if (cfg.input_size or (0,))[-1] == 384:
            architecture["dilations"] = "classification_384"
    return build_model_with_cfg(
        DiNATS,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**architecture, **kwargs},
    )


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
    """DiNAT_s-Large: 197 M parameters, 34.5 GFLOPs; the tag for 384 has other dilations and 101.5 GFLOPs."""
    return _create_dinat_s("dinat_s_large", pretrained, **kwargs)


# The authors' names for what is a tag here.
register_model_deprecations(
    __name__,
    {
        "dinat_s_large_384": "dinat_s_large.in22k_ft_in1k_384",
        "dinat_s_large_21k": "dinat_s_large.in22k",
    },
)
