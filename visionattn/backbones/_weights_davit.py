"""Checkpoints of DaViT: the authors' names (https://github.com/dingmyu/davit) to timm's.

timm has such a conversion, for classifiers only: it replaces parts of names wherever they occur, so that the heads
of a detector confuse it. This one reads whole names, and knows the dense models, which have a norm per output.
"""

import re
from collections.abc import Mapping
from typing import Any

from timm.layers import DropPath
from timm.models import davit
from torch import Tensor, nn

from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors

__all__ = ["convert_davit", "describe_davit", "is_davit", "mend_blocks"]

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
        (r"stages_(\d+)\.", r"stages.\1."),  # as timm's feature wrapper names them
    )
)
_FLORENCE = "vision_tower.convs.0.proj.weight"

# Channels of the first stage and pairs of blocks per stage. A window leaves no trace in the weights.
_VARIANTS = {
    "davit_tiny": (96, (1, 1, 3, 1)),
    "davit_small": (96, (1, 1, 9, 1)),
    "davit_base": (128, (1, 1, 9, 1)),
    "davit_large or davit_large_window12_384": (192, (1, 1, 9, 1)),
    "davit_huge": (256, (1, 1, 9, 1)),
    "davit_giant": (384, (1, 1, 12, 3)),
}


def is_davit(model: nn.Module) -> bool:
    """Whether this is a DaViT of timm, whole or as a feature extractor."""
    return any(isinstance(module, davit.DaVitStage) for module in model.modules())


def mend_blocks(model: nn.Module) -> nn.Module:
    """Make a DaViT that timm built with ``ffn=False`` usable; returns it, changed in place.

    timm 1.0.31 (and 1.0.22) then removes the stochastic depth of the attention branch of a spatial block in place of
    that of the MLP branch, and the forward pass calls None. Its rate is that of the channel block beside it.
    """
    for pair in model.modules():
        for block in pair.children() if isinstance(pair, nn.Sequential) else ():
            if isinstance(block, davit.SpatialBlock) and block.drop_path1 is None:
                paths = [b.drop_path1 for b in pair.children() if isinstance(b.drop_path1, DropPath)]
                block.drop_path1 = DropPath(paths[0].drop_prob) if paths else nn.Identity()
    return model


def convert_davit(state_dict: Mapping[str, Any], model: nn.Module) -> Conversion:
    """Convert a checkpoint of DaViT, by its authors or by timm, to the names in `model`."""
    if _FLORENCE in state_dict:
        return _convert_florence(state_dict, model)
    conversion = backbone_tensors(state_dict)
    conversion.classifier, conversion.final_norm = "head.fc", "head.norm"
    own = model.state_dict()
    flat = any(name.startswith("stages_") for name in own)  # in timm's feature wrapper
    for name in list(conversion.state_dict):
        target = _timm_name(name)
        if OUT_NORM.fullmatch(target) and target not in own:
            conversion.drop(name, "a norm for dense prediction, which this model does not have")
            continue
        conversion.rename(name, re.sub(r"^stages\.", "stages_", target) if flat else target)
    return conversion


def _timm_name(name: str) -> str:
    for pattern, target in _NAMES:
        if pattern.match(name):
            return pattern.sub(target, name, count=1)
    return name


def _convert_florence(state_dict: Mapping[str, Any], model: nn.Module) -> Conversion:
    """The image tower in a checkpoint of Florence-2, by timm's own conversion."""
    converted = davit.checkpoint_filter_fn(dict(state_dict), model)
    names = {id(tensor): name for name, tensor in converted.items()}
    conversion = Conversion(converted, classifier="head.fc", final_norm="head.norm")
    for name, tensor in state_dict.items():
        if id(tensor) in names:
            conversion.renamed[name] = names[id(tensor)]
        else:
            conversion.dropped[name] = "not part of the backbone"
    return conversion


def describe_davit(tensors: Mapping[str, Tensor]) -> str | None:
    """Variant of this family by names and shapes, such as ``"davit_tiny"``; None for another family."""
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
