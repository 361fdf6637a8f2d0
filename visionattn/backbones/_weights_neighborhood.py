"""Checkpoints of NAT, DiNAT, DiNAT_s, isotropic NAT and DiNAT, and ViT-rpb.

The models here have the published names, so what is left to convert is what depends on the use of a model.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors
from visionattn.backbones._variants import DINAT, DINAT_S, ISOTROPIC

__all__ = ["convert_neighborhood", "describe_neighborhood"]


def convert_neighborhood(state_dict: Mapping[str, Any], model: nn.Module) -> Conversion:
    """Convert a checkpoint of the NAT family: prefixes, other modules, position biases, dense norms."""
    own = model.state_dict()
    conversion = backbone_tensors(state_dict)
    conversion.stages = model.STAGES
    for name, tensor in list(conversion.state_dict.items()):
        target = own.get(name)
        if name.endswith("relative_position_index"):
            if target is None or target.shape != tensor.shape:
                conversion.drop(name, "an index table, computed by the model")
        elif OUT_NORM.fullmatch(name):
            if target is None:
                conversion.drop(name, "a norm for dense prediction, which this model does not have")
        elif name.endswith(".rpb") and target is not None and target.shape != tensor.shape:
            resized = _resize_rpb(tensor, target)
            if resized is not None:
                conversion.state_dict[name] = resized
                conversion.interpolated[name] = f"bicubic, {_size(tensor)} to {_size(target)}"
    return conversion


def _size(rpb: Tensor) -> str:
    return "x".join(str(n) for n in rpb.shape[1:])


def _resize_rpb(rpb: Tensor, target: Tensor) -> Tensor | None:
    """`rpb` at another kernel size, or None where the tables differ in more than that."""
    if rpb.ndim != 3 or target.ndim != 3 or rpb.shape[0] != target.shape[0]:
        return None
    resized = F.interpolate(rpb[None].float(), size=target.shape[1:], mode="bicubic", align_corners=False)
    return resized[0].to(rpb.dtype)


def describe_neighborhood(tensors: Mapping[str, Tensor]) -> str | None:
    """Variant of this family by names and shapes, such as ``"dinat_mini"``; None for another family."""
    for family, table, marker in (
        ("NAT or DiNAT", DINAT, "levels.0.blocks.0.attn.rpb"),
        ("DiNAT_s", DINAT_S, "layers.0.blocks.0.attn.rpb"),
        ("isotropic NAT, DiNAT or ViT-rpb", ISOTROPIC, "layers.0.attn.rpb"),
    ):
        if marker in tensors:
            found = _sizes(tensors, marker)
            names = [name for name, variant in table.items() if _matches(name, variant, found)]
            if names:
                return " or ".join(names)
            sizes = ", ".join(f"{key}={value}" for key, value in found.items() if value is not None)
            return f"{family} of unpublished size ({sizes})"
    return None


def _sizes(tensors: Mapping[str, Tensor], marker: str) -> dict[str, Any]:
    """Architecture of a NAT-family checkpoint, read off its shapes."""
    block = marker.removesuffix("attn.rpb")
    blocks = {re.sub(r"attn\.rpb$", "", name) for name in tensors if name.endswith(".attn.rpb")}
    dim = tensors[f"{block}attn.proj.weight"].shape[0] if f"{block}attn.proj.weight" in tensors else 0
    hidden = tensors[f"{block}mlp.fc1.weight"].shape[0] if f"{block}mlp.fc1.weight" in tensors else 0
    levels: dict[int, int] = {}
    for name in blocks:
        level = int(name.split(".")[1])
        levels[level] = levels.get(level, 0) + 1
    isotropic = ".blocks." not in block
    return {
        "embed_dim": dim,
        "depths": None if isotropic else tuple(levels[level] for level in sorted(levels)),
        "depth": len(blocks) if isotropic else None,
        "mlp_ratio": round(hidden / dim, 2) if dim else 0,
        "kernel_size": (tensors[marker].shape[-1] + 1) // 2,
        "layer_scale": f"{block}gamma1" in tensors,
    }


def _matches(name: str, variant: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    kernel = 14 if name.startswith("vitrpb") else variant.get("kernel_size", 7)
    ratio = variant.get("mlp_ratio", 4.0)
    return (
        found["embed_dim"] == variant["embed_dim"]
        and found["depths"] == variant.get("depths")
        and found["depth"] == variant.get("depth")
        and math.isclose(found["mlp_ratio"], ratio)
        and found["kernel_size"] == kernel
        and found["layer_scale"] == (variant.get("layer_scale") is not None)
    )
