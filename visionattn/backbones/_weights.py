"""Loading checkpoints as their authors published them, from timm, mmdet, mmseg or detectron2."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors
from visionattn.backbones._weights_biformer import describe_biformer
from visionattn.backbones._weights_davit import convert_davit, describe_davit, is_davit, mend_blocks
from visionattn.backbones._weights_neighborhood import describe_neighborhood
from visionattn.errors import CheckpointError
from visionattn.io.weights import check_tensor

__all__ = ["LoadReport", "checkpoint_filter_fn", "describe", "load_official"]

# Families that timm has already, whose classes cannot have a `convert_official` of ours: how to know one, to convert
# its checkpoints, and to mend what timm breaks in it.
_FOREIGN = ((is_davit, convert_davit, mend_blocks),)
_DESCRIBERS = (describe_neighborhood, describe_davit, describe_biformer)


@dataclass(frozen=True)
class LoadReport:
    """What `load_official` did.

    Attributes:
        loaded: names in the model that now hold the checkpoint's values.
        renamed: name in the checkpoint to name in the model, where they differ.
        interpolated: name in the model to what was done, such as ``"13x13 to 21x21"``.
        dropped: name in the checkpoint to the reason why it was not used.
        missing: name in the model to the reason why it keeps its own value.
        settings: argument of the model to what it is now, where published models differ in more than their weights.
    """

    loaded: tuple[str, ...]
    renamed: dict[str, str]
    interpolated: dict[str, str]
    dropped: dict[str, str]
    missing: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)

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
        lines += [f"{name} is {value}" for name, value in self.settings.items()]
        return "\n".join(lines)


def load_official(model: nn.Module, state_dict: Mapping[str, Any]) -> LoadReport:
    """Load a published checkpoint into one of this package's backbones, or into a DaViT of timm.

    Accepts the state dict of a classifier, of an mmdet or mmseg model, or of a detectron2 model, alone or
    inside its checkpoint's ``{"state_dict": ...}`` or ``{"model": ...}``. Every tensor of the model must get
    a value. The exceptions, which the report names: the classifier where the checkpoint has none, or one for
    another number of classes; the norms that dense prediction adds, or the final norm that it lacks; computed
    tables. Every tensor of the checkpoint's backbone must be used, except for those, and for the stages after
    the last one of a model cut by ``out_indices``.

    Args:
        model: from `timm.create_model`, with or without ``features_only=True``, or a `visionattn.Backbone`.
        state_dict: as ``torch.load(path, weights_only=True)`` or safetensors gives it.

    Returns:
        What was loaded, renamed, interpolated, dropped and left as it was. The model is changed in place.

    Raises:
        CheckpointError: the checkpoint does not fit; the message says which model it looks like. The model is
            then unchanged.
        TypeError: the model is not one of these.
    """
    if hasattr(model, "load_official"):
        return model.load_official(state_dict)
    inner = getattr(model, "model", model)  # timm's feature wrapper
    conversion = _convert(inner, state_dict)
    own = inner.state_dict()
    given = conversion.state_dict
    missing = _resolve_differences(conversion, own, len(getattr(inner, "feature_info", ())))
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
    for name, tensor in given.items():
        check_tensor(tensor, name)
    inner.load_state_dict(given, strict=False)  # completeness was checked above
    settings = inner.apply_settings(conversion.settings) if conversion.settings else {}
    for knows, _, mend in _FOREIGN:
        if knows(inner):
            mend(inner)
    return LoadReport(
        loaded=tuple(given),
        renamed={k: v for k, v in conversion.renamed.items() if v in given},
        interpolated=conversion.interpolated,
        dropped=conversion.dropped,
        missing=missing,
        settings=settings,
    )


def _convert(model: nn.Module, state_dict: Mapping[str, Any]) -> Conversion:
    converter = getattr(model, "convert_official", None)
    for knows, convert, _ in _FOREIGN:
        if converter is None and knows(model):
            converter = partial(convert, model=model)
    if converter is not None:
        try:
            return converter(state_dict)
        except (IndexError, ValueError, KeyError, RuntimeError, AttributeError) as error:  # of names or shapes
            raise CheckpointError(
                f"the checkpoint does not fit {type(model).__name__}: a tensor of it has a name or shape that no such "
                f"model has ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            ) from error
    raise TypeError(f"load_official does not know {type(model).__name__}; it takes visionattn's backbones and DaViT")


def _resolve_differences(conversion: Conversion, own: Mapping[str, Tensor], stages: int) -> dict[str, str]:
    """Drop what the model may lack, and return what the checkpoint may lack, each with its reason.

    `stages` is how many the model's architecture has; fewer of them in `own` mean that it was cut.
    """
    given = conversion.state_dict
    head, norm = f"{conversion.classifier}.", f"{conversion.final_norm}."
    missing = dict(conversion.missing)
    weight = f"{head}weight"
    if weight in given and weight in own and given[weight].ndim and given[weight].shape[0] != own[weight].shape[0]:
        classes, expected = given[weight].shape[0], own[weight].shape[0]
        for name in [n for n in given if n.startswith(head)]:
            conversion.drop(name, f"a classifier for {classes} classes, and the model has {expected}")
        missing |= {n: f"the checkpoint's classifier is for {classes} classes" for n in own if n.startswith(head)}
    dense = not any(name.startswith(head) for name in (*given, *conversion.dropped))

    number = re.compile(rf"{conversion.stages}[._](\d+)\.(downsample\.)?")
    last = max((int(m[1]) for n in own if (m := number.match(n))), default=-1)
    for name in [n for n in given if n not in own]:
        stage = number.match(name)
        if name.startswith(head):
            conversion.drop(name, "the model has no classifier")
        elif name.startswith(norm):
            conversion.drop(name, "the model has no final norm")
        elif stage and last + 1 < stages and (int(stage[1]) > last or (int(stage[1]) == last and stage[2])):
            conversion.drop(name, "after the last stage of this model")
    for name in own:
        if name in given or name in missing:
            continue
        if name.endswith("relative_position_index"):
            missing[name] = "computed by the model"
        elif name.endswith("num_batches_tracked"):
            missing[name] = "a count of training steps, which evaluation does not use"
        elif OUT_NORM.fullmatch(name):
            missing[name] = "the checkpoint has no norms for dense prediction; they start at 1 and 0"
        elif name.startswith((head, norm)) and dense:
            missing[name] = "the checkpoint is of a model without a classifier"
    return missing


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """timm's hook for ``pretrained=True``: the conversion of `load_official`; timm then does the loading."""
    conversion = _convert(model, state_dict)
    if conversion.settings:
        model.apply_settings(conversion.settings)
    own = model.state_dict() if conversion.missing else {}
    return conversion.state_dict | {name: own[name] for name in conversion.missing if name in own}


def describe(state_dict: Mapping[str, Any]) -> str:
    """Which family and variant a checkpoint looks like by its names and shapes, such as ``"dinat_mini"``."""
    tensors = backbone_tensors(state_dict).state_dict
    for describer in _DESCRIBERS:
        try:
            if found := describer(tensors):
                return found
        except (IndexError, ValueError, KeyError):  # names of a family, and shapes of none
            continue
    for family, pattern in (
        ("Swin", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"),
        ("ConvNeXt", r"downsample_layers\.0\.0\..*"),
        ("TimeSformer", r"blocks\.0\.temporal_fc\.weight"),
        ("ViT", r"blocks\.0\.attn\.qkv\.weight"),
        ("ResNet", r"layer1\.0\.conv1\.weight"),
    ):
        if any(re.fullmatch(pattern, name) for name in tensors):
            return family
    return f"no model known here (its first entry is {next(iter(tensors))})"
