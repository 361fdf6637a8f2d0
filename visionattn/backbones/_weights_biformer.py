"""Checkpoints of BiFormer: the published channels-last models, whose names are those here, and the NCHW one.

The two differ in more than names where the regions do not divide the map, and in the last stage's convolution, so a
conversion also says how the model must behave.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors
from visionattn.backbones._variants import BIFORMER

__all__ = ["accept_nchw", "convert_biformer", "describe_biformer"]

_CHANNELS_LAST = {"padding": "input", "global_lepe": "input"}
_NCHW = {"padding": "projected", "global_lepe": "value"}


def _own_name(name: str) -> str:
    name = name.replace(".attn.qkv_linear.", ".attn.qkv.qkv.").replace(".attn.output_linear.", ".attn.wo.")
    return re.sub(r"^extra_norms\.(\d+)\.", r"norm\1.", name)


def _own_value(name: str, tensor: Tensor) -> Tensor:
    """Pointwise convolutions of the NCHW model as linear layers; the other convolutions are none of these."""
    linear = re.search(r"\.(attn\.qkv\.qkv|attn\.wo|attn\.qkv|attn\.proj|mlp\.[02])\.weight$", name)
    return tensor.flatten(1) if linear and tensor.ndim == 4 and tensor.shape[2:] == (1, 1) else tensor


def _is_nchw(names: Any) -> bool:
    return any(".attn.qkv_linear." in name for name in names)


def convert_biformer(state_dict: Mapping[str, Any], model: nn.Module) -> Conversion:
    """Convert a checkpoint of BiFormer: prefixes, the NCHW layout, dense norms; classifier and final norm stay."""
    own = model.state_dict()
    conversion = backbone_tensors(state_dict)
    conversion.settings = dict(_NCHW if _is_nchw(conversion.state_dict) else _CHANNELS_LAST)
    last = max((int(m[1]) for n in own if (m := re.match(r"downsample_layers\.(\d+)\.", n))), default=-1)
    for name in list(conversion.state_dict):
        target = _own_name(name)
        step = re.match(r"downsample_layers\.(\d+)\.", name)
        if OUT_NORM.fullmatch(target) and target not in own:
            conversion.drop(name, "a norm for dense prediction, which this model does not have")
        elif step and last + 1 < len(model.feature_info) and int(step[1]) > last:
            conversion.drop(name, "after the last stage of this model")
        else:
            conversion.rename(name, target)
            conversion.state_dict[target] = _own_value(target, conversion.state_dict[target])
    return conversion


def accept_nchw(
    model: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, *messages: list[str]
) -> None:
    """Hook before `load_state_dict`: what has the names of the NCHW model loads, and the model then behaves so.

    The channels-last checkpoints have our own names, so that nothing tells them from one that was trained here.
    """
    names = [name for name in state_dict if name.startswith(prefix)]
    if not _is_nchw(names):
        return
    for name in names:
        target = _own_name(name)
        state_dict[target] = _own_value(target, state_dict.pop(name))
    model.apply_settings(_NCHW)


def describe_biformer(tensors: Mapping[str, Tensor]) -> str | None:
    """Variant of this family by names and shapes, such as ``"biformer_tiny"``; None for another family."""
    stem = tensors.get("downsample_layers.0.0.weight")
    routed = [n for n in tensors if re.fullmatch(r"stages\..*\.attn\.(qkv\.qkv|qkv_linear|lepe)\.weight", n)]
    if stem is None or not routed:
        return None
    found = [re.match(r"stages\.(\d+)\.(?:blocks\.)?(\d+)\.norm1\.", name) for name in tensors]
    blocks = {(int(m[1]), int(m[2])) for m in found if m}
    depths = tuple(sum(stage == s for stage, _ in blocks) for s in sorted({stage for stage, _ in blocks}))
    patches = stem.shape[-1] == 4
    dim = stem.shape[0] * (1 if patches else 2)
    for name, variant in BIFORMER.items():
        if (variant["embed_dim"], variant["depths"]) == (dim, depths) and patches == (name == "biformer_stl"):
            return f"{name} in its NCHW layout" if _is_nchw(tensors) else name
    return f"BiFormer of unpublished size (embed_dim={dim}, depths={depths})"
