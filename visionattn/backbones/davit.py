"""DaViT: extensions of timm's implementation for dense prediction and official checkpoints.

Ding et al., "DaViT: Dual Attention Vision Transformers" (arXiv 2204.03645). The ``davit_*`` models are those of timm;
`visionattn.backbones.load_official` loads the authors' checkpoints (https://github.com/dingmyu/davit) into them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerNorm2d
from timm.models import build_model_with_cfg, davit, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from visionattn.backbones._backbone import drop_path_rates
from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors
from visionattn.backbones._weights import ForeignModel, checkpoint_filter_fn, register_description, register_foreign

__all__ = ["DaViT", "convert_davit", "describe", "is_davit", "restore_drop_path"]

# timm's own conversion replaces parts of names anywhere, which fails on detectors. These patterns match whole names.
_NAMES = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"patch_embeds\.0\.proj\.", "stem.conv."),
        (r"patch_embeds\.0\.norm\.", "stem.norm."),
        (r"patch_embeds\.(\d+)\.proj\.", r"stages.\1.downsample.conv."),
        (r"patch_embeds\.(\d+)\.norm\.", r"stages.\1.downsample.norm."),
        (r"main_blocks\.(\d+)\.(\d+)\.(\d+)\.cpe\.0\.", r"stages.\1.blocks.\2.\3.cpe1."),
        (r"main_blocks\.(\d+)\.(\d+)\.(\d+)\.cpe\.1\.", r"stages.\1.blocks.\2.\3.cpe2."),
        (r"main_blocks\.(\d+)\.", r"stages.\1.blocks."),
        (r"norms\.", "head.norm."),
        (r"head\.(weight|bias)$", r"head.fc.\1"),
        (r"stages_(\d+)\.", r"stages.\1."),  # timm's feature wrapper
    )
)
_FLORENCE = "vision_tower.convs.0.proj.weight"

# Channels of the first stage and pairs of blocks per stage. The weights do not depend on the window size.
_VARIANTS = {
    "davit_tiny": (96, (1, 1, 3, 1)),
    "davit_small": (96, (1, 1, 9, 1)),
    "davit_base": (128, (1, 1, 9, 1)),
    "davit_large or davit_large_window12_384": (192, (1, 1, 9, 1)),
    "davit_huge": (256, (1, 1, 9, 1)),
    "davit_giant": (384, (1, 1, 12, 3)),
}


class DaViT(davit.DaVit):
    """timm's `DaVit` with output norms, overlapped downsampling, the authors' stochastic depth, and blocks without MLP.

    Accepts images of any size. The stem zero-pads to a multiple of 4, each downsampling to an even size, and each
    window attention to a multiple of the window, at the bottom and right. As in the published model, padding takes
    part in the attention.

    Args:
        out_norms: levels with an output norm (``norm0``, ``norm1``, ...), as in the published detection and
            segmentation backbones. The norms are applied in `forward_intermediates` and with ``features_only=True``;
            the classifier does not use them.
        overlapped_patch: downsample between stages with a 3x3 instead of a 2x2 convolution, with stride 2.
        drop_path_schedule: ``"block"``: the rate increases from block to block, as in the authors' code; ``"pair"``:
            one rate for a spatial block and the channel block after it, as in timm.
        attn_types: the blocks of a pair, in order: ``"spatial"``, ``"channel"``.
        ffn: use MLPs. timm 1.0.31 cannot run models without them.
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        **kwargs: arguments of timm's `DaVit`: ``depths``, ``embed_dims``, ``num_heads``, ``window_size``, ...

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        *,
        out_norms: Sequence[int] = (),
        overlapped_patch: bool = False,
        drop_path_schedule: Literal["block", "pair"] = "block",
        attn_types: Sequence[str] = ("spatial", "channel"),
        ffn: bool = True,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if drop_path_schedule not in ("block", "pair"):
            raise ValueError(f"`drop_path_schedule` must be 'block' or 'pair', got {drop_path_schedule!r}")
        if not attn_types or not set(attn_types) <= {"spatial", "channel"}:  # timm ignores unknown types
            raise ValueError(f"`attn_types` must be a sequence of 'spatial' and 'channel', got {attn_types!r}")
        if overlapped_patch:
            if kwargs.get("down_kernel_size", 3) != 3:
                raise ValueError(
                    f"`down_kernel_size` must be 3 with `overlapped_patch`, got {kwargs['down_kernel_size']}"
                )
            kwargs["down_kernel_size"] = 3
        super().__init__(attn_types=tuple(attn_types), ffn=ffn, drop_path_rate=drop_path_rate, **kwargs)
        if not ffn:
            restore_drop_path(self)
        if drop_path_schedule == "block":
            blocks = [block for stage in self.stages for pair in stage.blocks for block in pair]
            for block, rate in zip(blocks, drop_path_rates(drop_path_rate, len(blocks)), strict=True):
                block.drop_path1 = DropPath(rate) if rate > 0 else nn.Identity()
                if ffn:
                    block.drop_path2 = DropPath(rate) if rate > 0 else nn.Identity()
        for level in out_norms:
            if not 0 <= level < len(self.feature_info):
                raise ValueError(
                    f"`out_norms` must be levels in 0..{len(self.feature_info) - 1}, got {tuple(out_norms)}"
                )
            channels = self.feature_info[level]["num_chs"]
            norm = LayerNorm2d(channels, eps=1e-5, device=kwargs.get("device"), dtype=kwargs.get("dtype"))
            self.add_module(f"norm{level}", norm)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay: none besides the biases and norms that timm excludes."""
        return set()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final features and the feature maps of selected stages, with their output norms.

        Args:
            x: images ``[B, in_chans, H, W]``.
            indices: stages to return; an integer n selects the last n, None selects all.
            norm: apply the norm before pooling, if the model has one, to the last map.
            stop_early: do not run stages after the last selected one.
            output_fmt: layout of the maps, ``"NCHW"`` (contiguous) or ``"NHWC"``.
            intermediates_only: return only the list of maps.

        Returns:
            The final features ``[B, C, H', W']``, as returned by `forward_features`, and the list of maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"`output_fmt` must be 'NCHW' or 'NHWC', got {str(output_fmt)!r}")
        take, _ = feature_take_indices(len(self.stages), indices)
        result = super().forward_intermediates(x, indices, norm, stop_early, "NCHW", intermediates_only)
        maps = result if intermediates_only else result[1]
        norms = [getattr(self, f"norm{level}", nn.Identity()) for level in sorted(set(take))]
        maps = [out_norm(out).contiguous() for out_norm, out in zip(norms, maps, strict=True)]
        if output_fmt == "NHWC":
            maps = [out.permute(0, 2, 3, 1) for out in maps]
        return maps if intermediates_only else (result[0], maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the modules that the stages in `indices` do not need; returns the indices as non-negative integers."""
        take = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if (prune_head or len(self.stages) < len(self.feature_info)) and hasattr(self.head, "norm"):
            self.head.norm = nn.Identity()  # timm before 1.0.31 keeps it, and it gets no gradient
        for level in range(len(self.feature_info)):
            if level not in take and hasattr(self, f"norm{level}"):
                delattr(self, f"norm{level}")
        return take

    def convert_official(self, state_dict: dict[str, Any]) -> Conversion:
        """Convert a checkpoint of the authors or of timm; see `load_official`."""
        return convert_davit(state_dict, self)


def is_davit(model: nn.Module) -> bool:
    """Return True if the model is or contains a DaViT of timm, such as a feature extractor."""
    return any(isinstance(module, davit.DaVitStage) for module in model.modules())


def restore_drop_path(model: nn.Module) -> nn.Module:
    """Restore the stochastic depth modules of timm's DaViT with ``ffn=False``, in place; returns the model.

    timm 1.0.22 to 1.0.31 removes `drop_path1` of spatial blocks instead of `drop_path2`, so that the forward pass calls
    None. The restored module has the rate of the channel block of the same pair.
    """
    for pair in model.modules():
        for block in pair.children() if isinstance(pair, nn.Sequential) else ():
            if isinstance(block, davit.SpatialBlock) and block.drop_path1 is None:
                paths = [b.drop_path1 for b in pair.children() if isinstance(b.drop_path1, DropPath)]
                block.drop_path1 = DropPath(paths[0].drop_prob) if paths else nn.Identity()
    return model


def convert_davit(state_dict: Mapping[str, Any], model: nn.Module) -> Conversion:
    """Convert a checkpoint of the authors or of timm to the parameter names of `model`."""
    if _FLORENCE in state_dict:
        return _convert_florence(state_dict, model)
    conversion = backbone_tensors(state_dict)
    conversion.classifier, conversion.final_norm = "head.fc", "head.norm"
    own = model.state_dict()
    flat = any(name.startswith("stages_") for name in own)  # timm's feature wrapper
    for name in list(conversion.state_dict):
        target = _timm_name(name)
        if OUT_NORM.fullmatch(target) and target not in own:
            conversion.drop(name, "a per-output norm, which the model does not have")
            continue
        conversion.rename(name, re.sub(r"^stages\.", "stages_", target) if flat else target)
    return conversion


def _timm_name(name: str) -> str:
    for pattern, target in _NAMES:
        if pattern.match(name):
            return pattern.sub(target, name, count=1)
    return name


def _convert_florence(state_dict: Mapping[str, Any], model: nn.Module) -> Conversion:
    """Convert the image tower of a Florence-2 checkpoint with timm's conversion."""
    converted = davit.checkpoint_filter_fn(dict(state_dict), model)
    names = {id(tensor): name for name, tensor in converted.items()}
    conversion = Conversion(converted, classifier="head.fc", final_norm="head.norm")
    for name, tensor in state_dict.items():
        if id(tensor) in names:
            conversion.renamed[name] = names[id(tensor)]
        else:
            conversion.dropped[name] = "not part of the backbone"
    return conversion


register_foreign(ForeignModel(is_davit, convert_davit, restore_drop_path))


@register_description
def describe(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the variant that a checkpoint belongs to, such as ``"davit_tiny"``; None for another family."""
    names = {_timm_name(name): tensor for name, tensor in tensors.items()}
    stem = names.get("stem.conv.weight")
    if stem is None or not any(re.match(r"stages\.0\.blocks\.0\.\w+\.cpe1\.", name) for name in names):
        return None
    blocks = {tuple(map(int, m.groups())) for name in names if (m := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name))}
    stages = sorted({stage for stage, _ in blocks})
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in stages)
    has_mlps = any(".mlp." in name for name in names)
    for variant, sizes in _VARIANTS.items():
        if sizes == (stem.shape[0], depths) and has_mlps:
            return variant
    return f"DaViT of unpublished size (embed_dim={stem.shape[0]}, depths={depths}, ffn={has_mlps})"


default_cfgs = generate_default_cfgs(
    {
        # The weights were not released.
        "davit_large_window12_384": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 384, 384),
            "pool_size": (12, 12),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "stem.conv",
            "classifier": "head.fc",
            "origin_url": "https://github.com/dingmyu/davit",
            "paper_ids": "arXiv:2204.03645",
        }
    }
)


@register_model
def davit_large_window12_384(pretrained: bool = False, **kwargs: Any) -> DaViT:
    """DaViT-Large of the authors' code, with window size 12 for 384 x 384 pixels: 197 M parameters, 103 GFLOPs."""
    architecture = {
        "depths": (1, 1, 9, 1),
        "embed_dims": (192, 384, 768, 1536),
        "num_heads": (6, 12, 24, 48),
        "window_size": 12,
    }
    return build_model_with_cfg(
        DaViT,
        "davit_large_window12_384",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**architecture, **kwargs},
    )
