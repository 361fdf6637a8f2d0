"""Rename the weights of published checkpoints to the names of a model, part by part."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.backbones._weights import apply_settings
from visionattn.engine.weights import mask2former
from visionattn.errors import CheckpointError
from visionattn.io.weights import check_finite, entry_of, is_averaged, state_dict_of

__all__ = ["Converted", "convert", "published_parts"]

# Names of mmdet 1.x that its heads for anchor-free detection accept.
_ANCHOR_FREE = re.compile(r"(bbox_head)\.\w+_(cls|reg|centerness)\.(weight|bias)$")


@dataclass
class Converted:
    """Weights under the names of a model.

    Attributes:
        weights: the weights by their new names.
        renamed: checkpoint name to model name, where they differ.
        interpolated: model name to a description such as ``"bicubic, 13x13 to 21x21"``.
        dropped: checkpoint name to the reason why the model does not need the entry.
        settings: arguments that a backbone has adopted from the checkpoint, with descriptions.
        arguments: keys of the config that the checkpoint was trained with, such as ``"model.backbone.padding"``.
        adopt: backbones and the conversions whose settings they adopt when the weights are loaded.
        averaged: key of the entry of the checkpoint with averaged weights that was selected, or an empty string.
    """

    weights: dict[str, Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    interpolated: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    adopt: list[tuple[nn.Module, Any]] = field(default_factory=list)
    averaged: str = ""

    def rename(self, names: Mapping[str, str], reason: str = "not used by the model") -> None:
        """Rename entries by their current names; ``""`` drops the entry."""
        originals = {new: old for old, new in self.renamed.items()}
        moved = {name: self.weights.pop(name) for name in names}
        for name, tensor in moved.items():
            original, new = originals.get(name, name), names[name]
            self.renamed.pop(original, None)
            if not new:
                self.dropped[original] = reason
                continue
            if new in self.weights:
                raise CheckpointError(f"the checkpoint has two entries for {new}, one of them named {original}")
            self.weights[new] = tensor
            if new != original:
                self.renamed[original] = new

    def apply_settings(self) -> None:
        """Let the backbones adopt the arguments that the checkpoint was trained with."""
        for net, conversion in self.adopt:
            self.settings |= apply_settings(net, conversion)


def published_parts(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a model that convert published weights, by the prefix of their parameter names."""
    return {f"{n}." if n else "": m for n, m in model.named_modules() if hasattr(m, "convert_published")}


def convert(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    classes: Sequence[str] = (),
    revise_keys: Sequence[tuple[str, str]] | None = None,
    path: str = "the checkpoint",
) -> Converted:
    """Rename the weights of a checkpoint to the names of a model.

    Checkpoints of this package are returned unchanged. Of others, the part of each `visionattn.Backbone` is converted
    as `visionattn.backbones.load_official` does, wherever the backbone is in the model, and heads are renamed to mmdet
    3.x and mmseg 1.x: Mask2Former of detectron2 and mmdet 2.x, and anchor-free heads of mmdet 1.x. The model is
    unchanged.

    Args:
        model: the model.
        checkpoint: as returned by `visionattn.io.weights.read`.
        classes: class names of the model by label, if known; panoptic models of detectron2 may order them differently.
        revise_keys: see `visionattn.io.weights.state_dict_of`.
        path: path of the checkpoint, for messages.

    Raises:
        CheckpointError: there are no tensors, two entries have the same name after the conversion, or a weight of the
            model is NaN or infinite.
    """
    weights = state_dict_of(checkpoint, revise_keys)
    key, entry = entry_of(checkpoint)
    if not weights:
        names = ", ".join(map(str, list(entry)[:3]))
        place = f" in {key}" if key else f" by name; its first entries are {names}" if names else ""
        raise CheckpointError(f"{path}: contains no tensors{place}")
    result = Converted(dict(weights))
    if prefix := _prefix(model, weights):
        result.rename({name: name.removeprefix(prefix) for name in weights})
    if hasattr(model, "own_names"):  # a model whose authors published checkpoints under other names
        renamed = model.own_names(result.weights)
        sources = {id(tensor): name for name, tensor in weights.items()}
        result = Converted(dict(renamed))
        result.renamed = {
            sources[id(t)]: n for n, t in renamed.items() if id(t) in sources and sources[id(t)] != n
        }  # fmt: skip
    result.averaged = key if is_averaged(key) else ""
    raw = {f"ema_{name.replace('.', '_')}" for name in result.weights}
    result.rename(
        {n: "" for n in result.weights if n in raw},
        "a buffer of mmcv's EMAHook, which saves the averaged weights under the ordinary names",
    )
    if not hasattr(model, "auxiliary_head"):
        result.rename(
            {n: "" for n in result.weights if n.startswith("auxiliary_head.")},
            "an auxiliary head is only used in training",
        )
    _convert_mask2former(model, result, classes)
    if any(base.__name__ == "AnchorFreeHead" for m in model.modules() for base in type(m).__mro__):
        names = {n: _ANCHOR_FREE.sub(r"\1.conv_\2.\3", n) for n in result.weights if _ANCHOR_FREE.match(n)}
        own = model.state_dict()
        result.rename({old: new for old, new in names.items() if old not in own and new in own})
    parts = published_parts(model)
    for prefix, module in parts.items():
        _convert_part(model, module, prefix, result, only=len(parts) == 1)
    check_finite(result.weights, path, model.state_dict(), {new: old for old, new in result.renamed.items()})
    return result


def _prefix(model: nn.Module, names: Iterable[str]) -> str:
    """Return what all names begin with before they begin as those of the model, such as ``"model."`` of Lightning."""
    parts, (first, *others) = {name.split(".", 1)[0] for name in model.state_dict()}, names
    prefix = ""
    while (part := first.removeprefix(prefix).split(".", 1)[0]) not in parts:
        prefix += f"{part}."
        if not all(name.startswith(prefix) for name in (first, *others)):
            return ""
    return prefix


def _convert_mask2former(model: nn.Module, result: Converted, classes: Sequence[str]) -> None:
    prefix = mask2former.head_prefix(model)
    if prefix is None:
        return
    if not mask2former.is_detectron2(result.weights):
        result.rename(mask2former.rename_mmdet2(result.weights, prefix))
        return
    result.rename(mask2former.rename_detectron2(result.weights, prefix))
    head = model.get_submodule(prefix.removesuffix("."))
    order = mask2former.class_order(classes, head.num_things_classes, head.num_stuff_classes)
    if order is not None:
        result.settings[f"{prefix}cls_embed"] = "reordered to the classes of the config"
        order = torch.tensor([*order, len(order)])  # the last row is for queries without an object
        for name in (f"{prefix}cls_embed.weight", f"{prefix}cls_embed.bias"):
            if name in result.weights and len(result.weights[name]) == len(order):
                result.weights[name] = result.weights[name][order]


def _convert_part(model: nn.Module, module: Any, prefix: str, result: Converted, only: bool) -> None:
    """Convert the weights of one backbone, unless they have the names of the model already."""
    start = prefix
    if only and not any(n.startswith(prefix) for n in result.weights):
        # a detector's file for a model that has its backbone elsewhere, or the file of a classifier
        start = "backbone." if any(n.startswith("backbone.") for n in result.weights) else ""
        if not start and model.state_dict().keys() & result.weights.keys():
            return
    part = {n.removeprefix(start): t for n, t in result.weights.items() if n.startswith(start)}
    if not part or (start == prefix and any(n.startswith("net.") for n in part)):
        return
    try:
        found = module.convert_published(part)
    except CheckpointError:
        return  # another family, which the comparison with the model reports
    originals = {new: old for old, new in result.renamed.items()}
    sources = {new: old for old, new in found.renamed.items()}
    for name in part:
        del result.weights[f"{start}{name}"]
        result.renamed.pop(originals.get(f"{start}{name}", ""), None)
    for name, tensor in found.state_dict.items():
        new, current = f"{prefix}{name}", f"{start}{sources.get(name, name)}"
        original = originals.get(current, current)
        result.weights[new] = tensor
        if original != new:
            result.renamed[original] = new
    for name, reason in found.dropped.items():
        result.dropped[originals.get(f"{start}{name}", f"{start}{name}")] = reason
    result.interpolated |= {f"{prefix}{name}": text for name, text in found.interpolated.items()}
    result.adopt.append((module.net, found))
    result.arguments |= {f"model.{prefix}{name}": value for name, value in found.settings.items()}
