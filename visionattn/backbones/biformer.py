"""BiFormer and BiFormer-STL: hierarchical backbones with bi-level routing attention.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention" (arXiv 2303.08810); section 5.4 for
BiFormer-STL, which has the architecture of Swin-Tiny. Parameter names are those of the published channels-last models.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from visionattn.backbones._backbone import StagedBackbone, check_levels, drop_path_rates
from visionattn.backbones._biformer_blocks import (
    BiFormerBlock,
    BlockStage,
    GlobalAttention,
    PatchConv,
    Stage,
    conv_mixer,
    mlp,
)
from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors
from visionattn.backbones._download import with_cached_weights
from visionattn.backbones._weights import checkpoint_filter_fn, register_description
from visionattn.layers.routing import BiLevelRoutingAttention

__all__ = ["BiFormer", "BiFormerSTL"]

VARIANTS: dict[str, dict[str, Any]] = {
    "biformer_tiny": {"embed_dim": 64, "depths": (2, 2, 8, 2), "mlp_ratio": 3.0},
    "biformer_small": {"embed_dim": 64, "depths": (4, 4, 18, 4), "mlp_ratio": 3.0},
    "biformer_base": {"embed_dim": 96, "depths": (4, 4, 18, 4), "mlp_ratio": 3.0},
    "biformer_stl": {"embed_dim": 96, "depths": (2, 2, 6, 2), "mlp_ratio": 4.0, "pos_conv": False},
}


class BiFormer(StagedBackbone):
    """BiFormer, with the parameter names of the published channels-last models.

    Accepts images of any size; `padding` defines the result where the regions do not divide a feature map.

    Args:
        in_chans: image channels.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for no pooling.
        embed_dim: channels of the first stage, doubling with each further one; or the channels of every stage.
        depths: number of blocks of each stage.
        topks: attention of each stage. A positive number: routing attention to this many regions; -1: global
            attention; -2: global attention with a depthwise convolution; 0: convolutions instead of attention.
        num_regions: regions per axis, in all stages.
        head_dim: channels per head of the routing attention. Global attention has 8 heads.
        mlp_ratio: ratio of the MLPs' hidden width to their channels, one value or one per stage.
        qk_dims: query and key channels of the routing attention of each stage; None for those of the stage.
        qk_scale: scale of the routing attention's logits; None for ``qk_dim ** -0.5``.
        side_dwconv: kernel size of the depthwise convolution of the values, added to the attention; 0 for none.
        pos_conv: add a depthwise 3x3 convolution before the attention of each block.
        mlp_dwconv: add a depthwise 3x3 convolution to each MLP.
        layer_scale: initial value of layer scale; None for no layer scale.
        pre_norm: pre-norm instead of post-norm.
        kv_pool: pooling of keys and values inside regions, see `BiLevelRoutingAttention`.
        kv_pool_sizes: pooling size of each stage; None with ``"identity"``.
        soft_routing: see `BiLevelRoutingAttention`.
        padding: ``"masked"``, ``"input"`` or ``"projected"``, see `BiLevelRoutingAttention`. None selects ``"masked"``,
            and the padding used in training when a published checkpoint is loaded with `load_official` or
            ``pretrained=True``.
        global_lepe: input of the convolution of code -2, ``"input"`` or ``"value"``. None selects ``"input"``, and the
            published model's when a published checkpoint is loaded.
        drop_rate: dropout rate before the classifier.
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        out_norms: levels with an output norm (``norm0``, ``norm1``, ...), as in the published detection and
            segmentation backbones. The norms are applied in `forward_intermediates` and with ``features_only=True``;
            the classifier does not use them.
        backend: backend of the attention kernels; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range or contradicts another one.
    """

    STAGES = "stages"
    MLP_MIDDLE = "identity"
    out_norm_eps = 1e-6  # epsilon of output norms, read by `visionattn.Backbone`

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int | Sequence[int] = 64,
        depths: Sequence[int] = (2, 2, 8, 2),
        topks: Sequence[int] = (1, 4, 16, -2),
        num_regions: int = 7,
        head_dim: int = 32,
        mlp_ratio: float | Sequence[float] = 3.0,
        qk_dims: Sequence[int] | None = None,
        qk_scale: float | None = None,
        side_dwconv: int = 5,
        pos_conv: bool = True,
        mlp_dwconv: bool = False,
        layer_scale: float | None = None,
        pre_norm: bool = True,
        kv_pool: str = "identity",
        kv_pool_sizes: Sequence[int] | None = None,
        soft_routing: bool = False,
        padding: str | None = None,
        global_lepe: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: Sequence[int] = (),
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dims = [embed_dim * 2**i for i in range(len(depths))] if isinstance(embed_dim, int) else list(embed_dim)
        ratios = [mlp_ratio] * len(depths) if isinstance(mlp_ratio, (int, float)) else list(mlp_ratio)
        qk_dims = dims if qk_dims is None else list(qk_dims)
        pool_sizes = [None] * len(depths) if kv_pool_sizes is None else list(kv_pool_sizes)
        check_levels(
            depths=depths, topks=topks, embed_dim=dims, mlp_ratio=ratios, qk_dims=qk_dims, kv_pool_sizes=pool_sizes
        )
        if global_lepe not in (None, "input", "value"):
            raise ValueError(f"`global_lepe` must be 'input', 'value' or None, got {global_lepe!r}")
        dd = {"device": device, "dtype": dtype}
        self.chosen = {"padding": padding, "global_lepe": global_lepe}  # None: use that of a loaded checkpoint
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.downsample_layers = nn.ModuleList([self._make_stem(in_chans, dims[0], **dd)])
        self.downsample_layers.extend(
            self._make_downsample(dim, wider, **dd) for dim, wider in itertools.pairwise(dims)
        )
        middle = "dwconv" if mlp_dwconv else self.MLP_MIDDLE
        stages = []
        for i, depth in enumerate(depths):
            blocks = []
            for _ in range(depth):
                if topks[i] > 0:
                    if qk_dims[i] % head_dim:
                        raise ValueError(
                            f"`head_dim`={head_dim} must divide the query channels of each stage, "
                            f"got {qk_dims[i]} in stage {i}"
                        )
                    attn: nn.Module = BiLevelRoutingAttention(
                        dims[i],
                        qk_dims[i] // head_dim,
                        num_regions,
                        topks[i],
                        qk_dim=qk_dims[i],
                        qk_scale=qk_scale,
                        side_dwconv=side_dwconv,
                        kv_pool=kv_pool,
                        kv_pool_size=pool_sizes[i],
                        soft_routing=soft_routing,
                        backend=backend,
                        **dd,
                    )
                elif topks[i] in (-1, -2):
                    side = side_dwconv if topks[i] == -2 else 0
                    attn = GlobalAttention(dims[i], 8, side, **dd)
                elif topks[i] == 0:
                    attn = conv_mixer(dims[i], **dd)
                else:
                    raise ValueError(f"`topks` must be -2, -1, 0 or a positive number of regions, got {tuple(topks)}")
                blocks.append(
                    BiFormerBlock(
                        attn,
                        mlp(dims[i], ratios[i], middle, **dd),
                        dims[i],
                        pos_conv=pos_conv,
                        layer_scale=layer_scale,
                        pre_norm=pre_norm,
                        drop_path=next(rates),
                        **dd,
                    )
                )
            stages.append(self._make_stage(blocks))
        self.stages = nn.ModuleList(stages)
        feature_info = [{"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)]
        self._build_head(
            in_chans, num_classes, global_pool, drop_rate, _layer_norm, feature_info, out_norms,
            final_norm=nn.BatchNorm2d, **dd,
        )  # fmt: skip
        self._set("padding", padding or "masked")
        self._set("global_lepe", global_lepe or "input")
        self.register_load_state_dict_pre_hook(_accept_nchw)

    def _make_stem(self, in_chans: int, dim: int, **dd: Any) -> nn.Module:
        """Return the stem, ``[B, C, H, W]`` to ``[B, dim, ceil(H / 4), ceil(W / 4)]``."""
        return nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd),
            nn.BatchNorm2d(dim // 2, **dd),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd),
            nn.BatchNorm2d(dim, **dd),
        )

    def _make_downsample(self, dim: int, wider: int, **dd: Any) -> nn.Module:
        """Return a downsampling module, ``[B, dim, H, W]`` to ``[B, wider, ceil(H / 2), ceil(W / 2)]``."""
        return nn.Sequential(nn.Conv2d(dim, wider, 3, stride=2, padding=1, **dd), nn.BatchNorm2d(wider, **dd))

    def _make_stage(self, blocks: list[nn.Module]) -> nn.Module:
        return Stage(blocks)

    def stage_list(self) -> nn.ModuleList:
        return self._modules["stages"]

    def _stem(self, x: Tensor) -> Tensor:
        # Norms and linear layers need channels last; convolutions run as fast in it.
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last, also with vmap
        return self.downsample_layers[0](x).permute(0, 2, 3, 1)

    def _next_resolution(self, index: int, x: Tensor) -> Tensor:
        return self.downsample_layers[index + 1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _final_norm(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _drop_stages_after(self, index: int) -> None:
        self.stages = self.stages[: index + 1]
        self.downsample_layers = self.downsample_layers[: index + 1]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        if coarse:
            blocks = [(r"^(?:stages|downsample_layers)\.(\d+)", None), (r"^norm", (99999,))]
        else:
            blocks = [
                (r"^downsample_layers\.(\d+)", (-1,)),  # before the blocks of the same stage
                (r"^stages\.(\d+)\.(?:blocks\.)?(\d+)", None),
                (r"^norm", (99999,)),
            ]
        return {"stem": r"^downsample_layers\.0", "blocks": blocks}

    def convert_official(self, state_dict: Mapping[str, Any]) -> Conversion:
        """Convert a published checkpoint: prefixes, the NCHW layout, per-output norms; see `load_official`."""
        own = self.state_dict()
        conversion = backbone_tensors(state_dict)
        conversion.settings = dict(_NCHW if _is_nchw(conversion.state_dict) else _CHANNELS_LAST)
        last = max((int(m[1]) for n in own if (m := re.match(r"downsample_layers\.(\d+)\.", n))), default=-1)
        for name in list(conversion.state_dict):
            target = _own_name(name)
            step = re.match(r"downsample_layers\.(\d+)\.", name)
            if OUT_NORM.fullmatch(target) and target not in own:
                conversion.drop(name, "a per-output norm, which the model does not have")
            elif step and last + 1 < len(self.feature_info) and int(step[1]) > last:
                conversion.drop(name, "after the last stage of the model")
            else:
                conversion.rename(name, target)
                conversion.state_dict[target] = _own_value(target, conversion.state_dict[target])
        return conversion

    @torch.jit.ignore
    def apply_settings(self, settings: dict[str, str]) -> dict[str, str]:
        """Adopt the settings of a published model whose weights are loaded, unless they were set explicitly.

        Args:
            settings: values of `padding` and `global_lepe` that the checkpoint was trained with.

        Returns:
            For each setting, a description of its value.
        """
        result = {}
        for name, value in settings.items():
            chosen = self.chosen[name]
            result[name] = f"{value!r}, as the published model"
            if chosen is not None:
                result[name] = f"{chosen!r} as set by the user; the published model has {value!r}"
            self._set(name, chosen or value)
        return result

    def _set(self, name: str, value: str) -> None:
        self._model_args = {**getattr(self, "_model_args", {}), name: value}  # timm saves these with the model
        for module in self.modules():
            if name == "padding" and isinstance(module, BiLevelRoutingAttention):
                module.set_padding(value)
            elif name == "padding" and isinstance(module, PatchConv):
                module.pad_partial = value == "masked"
            elif name == "global_lepe" and isinstance(module, GlobalAttention):
                module.lepe_of = value

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normed features ``[B, ceil(H / 32), ceil(W / 32), C]`` of images ``[B, in_chans, H, W]``."""
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last, also with vmap
        for downsample, stage in zip(self.downsample_layers, self.stages):  # noqa: B905 - as TorchScript has it
            x = stage(downsample(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x).permute(0, 2, 3, 1)


def _layer_norm(dim: int, **dd: Any) -> nn.Module:
    return nn.LayerNorm(dim, eps=1e-6, **dd)


class BiFormerSTL(BiFormer):
    """`BiFormer` with patch embedding and patch merging; same arguments.

    If 32 does not divide the image size, ``padding="masked"`` zero-pads the map (sizes are rounded up). The paddings of
    the published models ignore the remainder (sizes are rounded down).
    """

    MLP_MIDDLE = "none"

    def _make_stem(self, in_chans: int, dim: int, **dd: Any) -> nn.Module:
        return nn.Sequential(PatchConv(in_chans, dim, 4, **dd), nn.BatchNorm2d(dim, **dd))

    def _make_downsample(self, dim: int, wider: int, **dd: Any) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(dim, **dd), PatchConv(dim, wider, 2, **dd))

    def _make_stage(self, blocks: list[nn.Module]) -> nn.Module:
        return BlockStage(blocks)


# The channels-last and NCHW models also differ in the handling of padding and in the global attention's LePE.
_CHANNELS_LAST = {"padding": "input", "global_lepe": "input"}
_NCHW = {"padding": "projected", "global_lepe": "value"}


def _own_name(name: str) -> str:
    name = name.replace(".attn.qkv_linear.", ".attn.qkv.qkv.").replace(".attn.output_linear.", ".attn.wo.")
    return re.sub(r"^extra_norms\.(\d+)\.", r"norm\1.", name)


def _own_value(name: str, tensor: Tensor) -> Tensor:
    """Return weights of pointwise convolutions of the NCHW model as those of linear layers."""
    linear = re.search(r"\.(attn\.qkv\.qkv|attn\.wo|attn\.qkv|attn\.proj|mlp\.[02])\.weight$", name)
    return tensor.flatten(1) if linear and tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _is_nchw(names: Any) -> bool:
    return any(".attn.qkv_linear." in name for name in names)


def _accept_nchw(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *messages: list[str]
) -> None:
    """Convert state dicts of the NCHW model in `load_state_dict` and adopt its settings.

    Channels-last checkpoints use this model's parameter names, so they cannot be told apart from a model trained here.
    """
    names = [name for name in state_dict if name.startswith(prefix)]
    if not _is_nchw(names):
        return
    for name in names:
        target = _own_name(name)
        state_dict[target] = _own_value(target, state_dict.pop(name))
    model.apply_settings(_NCHW)


@register_description
def describe(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the variant that a checkpoint belongs to, such as ``"biformer_tiny"``; None for another family."""
    stem = tensors.get("downsample_layers.0.0.weight")
    routed = [n for n in tensors if re.fullmatch(r"stages\..*\.attn\.(qkv\.qkv|qkv_linear|lepe)\.weight", n)]
    if stem is None or not routed:
        return None
    found = [re.match(r"stages\.(\d+)\.(?:blocks\.)?(\d+)\.norm1\.", name) for name in tensors]
    blocks = {(int(m[1]), int(m[2])) for m in found if m}
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in sorted({stage for stage, _ in blocks}))
    patches = stem.shape[-1] == 4
    dim = stem.shape[0] * (1 if patches else 2)
    for name, variant in VARIANTS.items():
        if (variant["embed_dim"], variant["depths"]) == (dim, depths) and patches == (name == "biformer_stl"):
            return f"{name} (NCHW layout)" if _is_nchw(tensors) else name
    return f"BiFormer of unpublished size (embed_dim={dim}, depths={depths})"


def default_cfg(share: str, **kwargs: Any) -> dict[str, Any]:
    """Return a pretrained cfg of timm; `share` is the ID of the authors' shared link to the weights."""
    return {
        "url": f"https://api.onedrive.com/v1.0/shares/{share}/root/content",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "downsample_layers.0.0",
        "classifier": "head",
        "origin_url": "https://github.com/rayleizhu/BiFormer",
        "paper_ids": "arXiv:2303.08810",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "biformer_tiny.in1k": default_cfg("s!AkBbczdRlZvChHEOoGkgwgQzEDlM"),
        "biformer_small.in1k": default_cfg("s!AkBbczdRlZvChHDyM-x9KWRBZ832"),
        "biformer_base.in1k": default_cfg("s!AkBbczdRlZvChHI_XPhoadjaNxtO"),
        "biformer_stl.in1k": default_cfg("s!AkBbczdRlZvChSf-m7ujkvx9lIQ1"),
        # Trained with the authors' later NCHW code.
        "biformer_stl.nchw_in1k": default_cfg("s!AkBbczdRlZvChWYrKbWbMgqd2Ai0"),
    }
)


def _create_biformer(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        BiFormerSTL if variant == "biformer_stl" else BiFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**VARIANTS[variant], **with_cached_weights(variant, pretrained, kwargs)},
    )


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-Tiny: 13 M parameters, 2.2 GFLOPs."""
    return _create_biformer("biformer_tiny", pretrained, **kwargs)


@register_model
def biformer_small(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-Small: 26 M parameters, 4.5 GFLOPs."""
    return _create_biformer("biformer_small", pretrained, **kwargs)


@register_model
def biformer_base(pretrained: bool = False, **kwargs: Any) -> BiFormer:
    """BiFormer-Base: 57 M parameters, 9.8 GFLOPs."""
    return _create_biformer("biformer_base", pretrained, **kwargs)


@register_model
def biformer_stl(pretrained: bool = False, **kwargs: Any) -> BiFormerSTL:
    """BiFormer-STL: 28 M parameters, 4.6 GFLOPs. Checkpoints in both published layouts can be loaded."""
    return _create_biformer("biformer_stl", pretrained, **kwargs)
