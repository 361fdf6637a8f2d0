"""Loading checkpoints as their authors published them, from timm, mmdet, mmseg or detectron2."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.backbones._variants import DINAT, DINAT_S, ISOTROPIC
from visionattn.errors import CheckpointError

__all__ = [
    "Conversion",
    "LoadReport",
    "checkpoint_filter_fn",
    "convert_neighborhood",
    "describe",
    "load_official",
]

_OUT_NORM = re.compile(r"norm\d+\.(weight|bias)")
_WRAPPERS = ("state_dict", "model")  # mmengine and timm; detectron2 and the Swin family
_PREFIXES = (
    "module.",
    "backbone.",
    "model.",
)  # data parallelism; detectors and segmentors; timm's feature wrapper


@dataclass
class Conversion:
    """A state dict under a model's own names, and what was done to get there."""

    state_dict: dict[str, Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    interpolated: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadReport:
    """What `load_official` did.

    Attributes:
        loaded: names in the model that now hold the checkpoint's values.
        renamed: name in the checkpoint to name in the model, where they differ.
        interpolated: name in the model to what was done, such as ``"13x13 to 21x21"``.
        dropped: name in the checkpoint to the reason why it was not used.
        missing: name in the model to the reason why it keeps its own value.
    """

    loaded: tuple[str, ...]
    renamed: dict[str, str]
    interpolated: dict[str, str]
    dropped: dict[str, str]
    missing: dict[str, str]

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        if self.renamed:
            source, target = next(iter(self.renamed.items()))
            lines.append(f"renamed {len(self.renamed)}, such as {source} to {target}")
        for word, entries in (
            ("interpolated", self.interpolated),
            ("dropped", self.dropped),
            ("missing", self.missing),
        ):
            by_reason: dict[str, list[str]] = {}
            for name, reason in entries.items():
                by_reason.setdefault(reason, []).append(name)
            for reason, names in by_reason.items():
                shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                lines.append(f"{word} ({reason}): {shown}")
        return "\n".join(lines)


def load_official(model: nn.Module, state_dict: Mapping[str, Any]) -> LoadReport:
    """Load a published checkpoint into one of this package's backbones.

    Accepts the state dict of a classifier, of an mmdet or mmseg model, or of a detectron2 model, alone or
    inside its checkpoint's ``{"state_dict": ...}`` or ``{"model": ...}``. Every tensor of the model must get
    a value. The exceptions, which the report names: the classifier where the checkpoint has none, or one for
    another number of classes; the norms that dense prediction adds, or the final norm that it lacks; computed
    tables.

    Args:
        model: from `timm.create_model`, with or without ``features_only=True``.
        state_dict: as ``torch.load(path, weights_only=True)`` or safetensors gives it.

    Returns:
        What was loaded, renamed, interpolated, dropped and left as it was. The model is changed in place.

    Raises:
        CheckpointError: the checkpoint does not fit; the message says which model it looks like. The model is
            then unchanged.
        TypeError: the model is not one of this package's backbones.
    """
    inner = getattr(model, "model", model)  # timm's feature wrapper
    if not hasattr(inner, "convert_official"):
        raise TypeError(f"load_official does not know {type(inner).__name__}; it takes the backbones of visionattn")
    conversion = inner.convert_official(state_dict)
    own = inner.state_dict()
    given, dropped = conversion.state_dict, dict(conversion.dropped)
    missing: dict[str, str] = {}

    if "head.weight" in given and "head.weight" in own and given["head.weight"].shape != own["head.weight"].shape:
        classes, expected = given["head.weight"].shape[0], own["head.weight"].shape[0]
        for name in ("head.weight", "head.bias"):
            given.pop(name, None)
            dropped[name] = f"a classifier for {classes} classes, and the model has {expected}"
            missing[name] = f"the checkpoint's classifier is for {classes} classes"
    for name in [n for n in given if n not in own and n.startswith(("head.", "norm."))]:
        del given[name]
        dropped[name] = "the model has no classifier" if name.startswith("head.") else "the model has no final norm"
    dense = not any(name.startswith("head.") for name in (*given, *dropped))
    for name in own:
        if name in given or name in missing:
            continue
        if name.endswith("relative_position_index"):
            missing[name] = "computed by the model"
        elif _OUT_NORM.fullmatch(name):
            missing[name] = "the checkpoint has no norms for dense prediction; they start at 1 and 0"
        elif name.startswith(("head.", "norm.")) and dense:
            missing[name] = "the checkpoint is of a model without a classifier"

    problems = [f"{name} is missing" for name in own if name not in given and name not in missing]
    problems += [f"{name} is unknown" for name in given if name not in own]
    problems += [
        f"{name} has shape {tuple(given[name].shape)} instead of {tuple(own[name].shape)}"
        for name in given
        if name in own and given[name].shape != own[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(
            f"the checkpoint does not fit {type(inner).__name__}: {'; '.join(problems[:3])}{more}; "
            f"it looks like {describe(state_dict)}; create that model, or load another file"
        )
    inner.load_state_dict(given, strict=False)  # completeness was checked above
    return LoadReport(
        loaded=tuple(given),
        renamed={k: v for k, v in conversion.renamed.items() if v in given},
        interpolated=conversion.interpolated,
        dropped=dropped,
        missing=missing,
    )


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's hook for ``pretrained=True``: the conversion of `load_official`; timm then does the loading."""
    return model.convert_official(state_dict).state_dict


def convert_neighborhood(state_dict: Mapping[str, Any], model: nn.Module) -> Conversion:
    """Convert a checkpoint of the NAT family: prefixes, other modules, position biases, dense norms."""
    own = model.state_dict()
    conversion = _backbone_tensors(state_dict)
    for name, tensor in list(conversion.state_dict.items()):
        target = own.get(name)
        if name.endswith("relative_position_index"):
            if target is None or target.shape != tensor.shape:
                del conversion.state_dict[name]
                conversion.dropped[name] = "an index table, computed by the model"
        elif _OUT_NORM.fullmatch(name):
            if target is None:
                del conversion.state_dict[name]
                conversion.dropped[name] = "a norm for dense prediction, which this model does not have"
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


def _backbone_tensors(checkpoint: Mapping[str, Any]) -> Conversion:
    """The backbone's tensors under names without prefixes."""
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"a checkpoint must be a dictionary of tensors, but this is a {type(checkpoint).__name__}"
        )
    for _ in _WRAPPERS:
        for wrapper in _WRAPPERS:
            if isinstance(checkpoint.get(wrapper), Mapping):
                checkpoint = checkpoint[wrapper]
    conversion = Conversion({})
    has_backbone = any(re.match(r"(module\.|model\.)*backbone\.", str(name)) for name in checkpoint)
    for name, tensor in checkpoint.items():
        if not isinstance(tensor, Tensor):
            conversion.dropped[str(name)] = "not a tensor"
            continue
        inner, in_backbone = name, False
        while inner.startswith(_PREFIXES):
            prefix, inner = inner.split(".", 1)
            in_backbone = in_backbone or prefix == "backbone"
        if has_backbone and not in_backbone:
            conversion.dropped[name] = "not part of the backbone"
            continue
        if inner in conversion.state_dict:
            raise CheckpointError(f"the checkpoint has {inner} twice, once as {name}")
        conversion.state_dict[inner] = tensor
        if inner != name:
            conversion.renamed[name] = inner
    if not conversion.state_dict:
        raise CheckpointError("the checkpoint holds no tensors of a backbone")
    return conversion


def describe(state_dict: Mapping[str, Any]) -> str:
    """Which family and variant a checkpoint looks like by its names and shapes, such as ``"dinat_mini"``."""
    tensors = _backbone_tensors(state_dict).state_dict
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
    for family, pattern in (
        ("Swin", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"),
        ("DaViT", r"main_blocks\.0\..*|stages\.0\.blocks\.0\.0\.cpe1\..*"),
        ("BiFormer", r"downsample_layers\.0\.0\..*|.*\.attn\.router\..*"),
        ("ViT", r"blocks\.0\.attn\.qkv\.weight"),
        ("ResNet", r"layer1\.0\.conv1\.weight"),
    ):
        if any(re.fullmatch(pattern, name) for name in tensors):
            return family
    return f"no model known here (its first entry is {next(iter(tensors))})"


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
