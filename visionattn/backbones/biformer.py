"""BiFormer: stages of bi-level routing attention with overlapping convolutions between them.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention" (arXiv 2303.08810).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from visionattn.backbones._backbone import StagedBackbone, check_levels, drop_path_rates
from visionattn.backbones._biformer_blocks import (
    BiFormerBlock,
    GlobalAttention,
    PatchConv,
    Stage,
    conv_mixer,
    mlp,
)
from visionattn.backbones._conversion import Conversion
from visionattn.backbones._variants import BIFORMER
from visionattn.backbones._weights import checkpoint_filter_fn
from visionattn.backbones._weights_biformer import accept_nchw, convert_biformer
from visionattn.layers import BiLevelRoutingAttention

__all__ = ["BiFormer"]


class BiFormer(StagedBackbone):
    """Vision transformer with bi-level routing attention, with the state-dict names of the published models.

    Any input size works. What happens where the regions do not divide a map is up to `padding`.

    Args:
        in_chans: channels of the images.
        num_classes: classes; 0 leaves the classifier out.
        global_pool: before the classifier: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""``.
        embed_dim: channels of the first stage, each further one has twice as many; or of every stage.
        depths: blocks per stage.
        topks: attention of each stage. A positive number: routing attention to so many regions. -1: attention
            between all tokens; -2: the same with a convolution at its side; 0: convolutions only.
        num_regions: regions per side of the map, in all stages.
        head_dim: channels per head of the routing attention; the global attention has 8 heads.
        mlp_ratio: hidden width of the MLPs over their channels, one value or one per stage.
        qk_dims: channels of queries and keys of the routing attention, per stage; None: those of the stage.
        qk_scale: factor on the products of queries and keys of the routing attention; None means ``qk_dim ** -0.5``.
        side_dwconv: size of the depthwise convolution of values beside the attention; 0 leaves it out.
        pos_conv: a depthwise 3x3 convolution before the attention of each block.
        mlp_dwconv: a depthwise 3x3 convolution in each MLP.
        layer_scale: initial value of the per-channel factors on the branches; None leaves them out.
        pre_norm: norm before the branches, or after their sum with the input.
        kv_pool: pooling of keys and values inside regions, see `BiLevelRoutingAttention`.
        kv_pool_sizes: its size per stage; None with ``"identity"``.
        soft_routing: see `BiLevelRoutingAttention`.
        padding: ``"masked"``, ``"input"`` or ``"projected"``, see `BiLevelRoutingAttention`. None is ``"masked"``
            until a published checkpoint is loaded with `load_official` or ``pretrained=True``, and then what that was
            trained with.
        global_lepe: what the convolution of code -2 reads, ``"input"`` or ``"value"``. None is ``"input"``, until a
            published checkpoint is loaded that has it otherwise.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        out_norms: stages whose map gets a norm of its own (``norm0``, ``norm1``, ...), as in the published
            detection and segmentation backbones (there ``extra_norms``): in `forward_intermediates` and with
            ``features_only=True``. The classifier does not use them.
        backend: backend of the attention kernels; None picks the best that runs.
        device, dtype: of the parameters.

    Raises:
        ValueError: arguments that contradict each other; the message names them.
    """

    STAGES = "stages"
    MLP_MIDDLE = "identity"
    out_norm_eps = 1e-6  # of dense backbones, read by the adapter for OpenMMLab

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
            raise ValueError(f"global_lepe must be 'input' or 'value', or None, got {global_lepe!r}")
        dd = {"device": device, "dtype": dtype}
        self.chosen = {"padding": padding, "global_lepe": global_lepe}  # by the user; None follows the checkpoint
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
                            f"head_dim={head_dim} must divide the channels of queries, but stage {i} has {qk_dims[i]}"
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
                    raise ValueError(f"topks={tuple(topks)} must hold -2, -1, 0 or numbers of regions")
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
        self.register_load_state_dict_pre_hook(accept_nchw)

    def _make_stem(self, in_chans: int, dim: int, **dd: Any) -> nn.Module:
        """``[B, C, H, W]`` to ``[B, dim, H/4, W/4]`` (rounded up)."""
        return nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd),
            nn.BatchNorm2d(dim // 2, **dd),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd),
            nn.BatchNorm2d(dim, **dd),
        )

    def _make_downsample(self, dim: int, wider: int, **dd: Any) -> nn.Module:
        """``[B, dim, H, W]`` to ``[B, wider, H/2, W/2]`` (rounded up)."""
        return nn.Sequential(nn.Conv2d(dim, wider, 3, stride=2, padding=1, **dd), nn.BatchNorm2d(wider, **dd))

    def _make_stage(self, blocks: list[nn.Module]) -> nn.Module:
        return Stage(blocks)

    def stage_list(self) -> nn.ModuleList:
        return self._modules["stages"]

    def _stem(self, x: Tensor) -> Tensor:
        # Everything after works channels-last: norms and linear layers need that, and convolutions run as fast.
        x = x.contiguous(memory_format=torch.channels_last)
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
                (r"^downsample_layers\.(\d+)", (-1,)),  # before the blocks of its stage
                (r"^stages\.(\d+)\.(?:blocks\.)?(\d+)", None),
                (r"^norm", (99999,)),
            ]
        return {"stem": r"^downsample_layers\.0", "blocks": blocks}

    def convert_official(self, state_dict: dict[str, Any]) -> Conversion:
        """A published state dict of this family under this model's names; see `load_official`."""
        return convert_biformer(state_dict, self)

    @torch.jit.ignore
    def apply_settings(self, settings: dict[str, str]) -> dict[str, str]:
        """Behave as the published model whose weights are loaded, where the user has not chosen otherwise.

        Args:
            settings: the arguments `padding` and `global_lepe` that it was trained with.

        Returns:
            What it is now for each, in words.
        """
        result = {}
        for name, value in settings.items():
            chosen = self.chosen[name]
            result[name] = f"{value!r}, as the published model"
            if chosen is not None:
                result[name] = f"{chosen!r} as chosen, where the published model has {value!r}"
            self._set(name, chosen or value)
        return result

    def _set(self, name: str, value: str) -> None:
        for module in self.modules():
            if name == "padding" and isinstance(module, BiLevelRoutingAttention):
                module.set_padding(value)
            elif name == "padding" and isinstance(module, PatchConv):
                module.pad_partial = value == "masked"
            elif name == "global_lepe" and isinstance(module, GlobalAttention):
                module.lepe_of = value

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to normed features ``[B, H/32, W/32, num_features]`` (rounded up)."""
        x = x.contiguous(memory_format=torch.channels_last)
        for downsample, stage in zip(self.downsample_layers, self.stages):  # noqa: B905 - as TorchScript has it
            x = stage(downsample(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.norm(x).permute(0, 2, 3, 1)


def _layer_norm(dim: int, **dd: Any) -> nn.Module:
    return nn.LayerNorm(dim, eps=1e-6, **dd)


def default_cfg(share: str, **kwargs: Any) -> dict[str, Any]:
    """A pretrained cfg for timm, with the weights at a link that the authors shared."""
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
    }
)


def _create_biformer(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        BiFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**BIFORMER[variant], **kwargs},
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
