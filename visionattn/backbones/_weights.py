"""Loading of official checkpoints: classifiers, and the backbones of mmdet, mmseg and detectron2 models."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from visionattn.backbones._conversion import OUT_NORM, Conversion, backbone_tensors
from visionattn.errors import CheckpointError
from visionattn.io.weights import check_finite, check_tensor

__all__ = [
    "ForeignModel",
    "LoadReport",
    "apply_settings",
    "checkpoint_filter_fn",
    "convert_for",
    "describe",
    "load_official",
    "of_averaged",
    "register_description",
    "register_foreign",
]


Tensors = Mapping[str, Tensor]
_DESCRIPTIONS: list[Callable[[Tensors], str | None]] = []
_FOREIGN: list["ForeignModel"] = []


@dataclass(frozen=True)
class ForeignModel:
    """Models of timm whose official checkpoints `load_official` converts.

    Attributes:
        matches: returns True for these models.
        convert: converts a state dict for such a model.
        finish: called with the model after loading.
    """

    matches: Callable[[nn.Module], bool]
    convert: Callable[[Mapping[str, Any], nn.Module], Conversion]
    finish: Callable[[nn.Module], Any]


def register_description(function: Callable[[Tensors], str | None]) -> Callable[[Tensors], str | None]:
    """Register a function that names the variant of a checkpoint of its family, and returns None for others."""
    _DESCRIPTIONS.append(function)
    return function


def register_foreign(model: ForeignModel) -> None:
    """Register models of timm for `load_official`."""
    _FOREIGN.append(model)


def _foreign(model: nn.Module) -> ForeignModel | None:
    return next((known for known in _FOREIGN if known.matches(model)), None)


@dataclass(frozen=True)
class LoadReport:
    """Result of `load_official`.

    Attributes:
        loaded: model names that were set from the checkpoint.
        renamed: checkpoint name to model name, where they differ.
        interpolated: model name to a description such as ``"13x13 to 21x21"``.
        dropped: checkpoint name to the reason why it was not used.
        missing: model name to the reason why it keeps its value.
        settings: model argument to its value after loading, where published models differ in more than weights.
        averaged: key of the entry of the checkpoint with averaged weights that was loaded, or an empty string.
    """

    loaded: tuple[str, ...]
    renamed: dict[str, str]
    interpolated: dict[str, str]
    dropped: dict[str, str]
    missing: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)
    averaged: str = ""

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors{of_averaged(self.averaged)}"]
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


def of_averaged(key: str) -> str:
    """Return the end of a line about loaded tensors, which names the entry of averaged weights, if any."""
    return f" of {key}, the averaged weights" if key else ""


def load_official(model: nn.Module, state_dict: Mapping[str, Any]) -> LoadReport:
    """Load an official checkpoint into one of this package's backbones or into timm's DaViT.

    Accepts the state dict of a classifier or of an mmdet, mmseg or detectron2 model, plain or wrapped in
    ``{"state_dict": ...}`` or ``{"model": ...}``. Loading is strict, with these exceptions, which are reported: a
    classifier that is missing or has another number of classes; the per-output norms of dense prediction models; the
    final norm where the checkpoint has none; computed index tables; and stages after the last one of a model that was
    pruned by ``out_indices``.

    Args:
        model: from `timm.create_model`, with or without ``features_only=True``, or a `visionattn.Backbone`.
        state_dict: as returned by ``torch.load(path, weights_only=True)`` or safetensors.

    Returns:
        A report of the loaded, renamed, interpolated, dropped and missing entries. The model is modified in place.

    Raises:
        CheckpointError: if the checkpoint does not fit; the message names the model that it seems to belong to. The
            model is left unchanged.
        TypeError: if the model is not supported.
    """
    if hasattr(model, "load_official"):
        return model.load_official(state_dict)
    inner = _inner(model)
    conversion, missing = convert_for(model, state_dict)
    own, given = inner.state_dict(), conversion.state_dict
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
            f"it seems to be a checkpoint of {describe(state_dict)}"
        )
    for name, tensor in given.items():
        check_tensor(tensor, name)
    check_finite(given, own=own, names={new: old for old, new in conversion.renamed.items()})
    inner.load_state_dict(given, strict=False)  # completeness was checked above
    settings = apply_settings(model, conversion)
    if foreign := _foreign(inner):
        foreign.finish(inner)
    return LoadReport(
        loaded=tuple(given),
        renamed={k: v for k, v in conversion.renamed.items() if v in given},
        interpolated=conversion.interpolated,
        dropped=conversion.dropped,
        missing=missing,
        settings=settings,
        averaged=conversion.averaged,
    )


def _inner(model: nn.Module) -> nn.Module:
    return getattr(model, "model", model)  # timm's feature wrapper


def convert_for(model: nn.Module, state_dict: Mapping[str, Any]) -> tuple[Conversion, dict[str, str]]:
    """Convert an official checkpoint to the parameter names of a model, without loading it.

    Args:
        model, state_dict: as for `load_official`.

    Returns:
        The conversion, and the model's entries that the checkpoint need not have, with reasons. Other differences
        between the conversion and the model are errors, which the caller finds by comparing them.

    Raises:
        CheckpointError, TypeError: see `load_official`.
    """
    inner = _inner(model)
    conversion = _convert(inner, state_dict)
    return conversion, _resolve_differences(conversion, inner.state_dict(), len(getattr(inner, "feature_info", ())))


def apply_settings(model: nn.Module, conversion: Conversion) -> dict[str, str]:
    """Adopt the arguments that a converted checkpoint was trained with, and return a description of each."""
    return _inner(model).apply_settings(conversion.settings) if conversion.settings else {}


def _convert(model: nn.Module, state_dict: Mapping[str, Any]) -> Conversion:
    foreign = _foreign(model)
    if not hasattr(model, "convert_official") and foreign is None:
        raise TypeError(
            f"`model` must be a backbone of visionattn or a DaViT of timm, got {type(model).__module__}."
            f"{type(model).__name__}"
        )
    try:
        if hasattr(model, "convert_official"):
            return model.convert_official(state_dict)
        return foreign.convert(state_dict, model)
    except (IndexError, ValueError, KeyError, RuntimeError, AttributeError) as error:  # unexpected names or shapes
        raise CheckpointError(
            f"the checkpoint does not fit {type(model).__name__}: unexpected tensor name or shape "
            f"({type(error).__name__}: {' '.join(str(error).split())[:120]})"
        ) from error


def _resolve_differences(conversion: Conversion, own: Mapping[str, Tensor], stages: int) -> dict[str, str]:
    """Drop entries that the model does not need; return those that the checkpoint need not have, with reasons.

    `stages` is the number of stages of the full architecture; fewer in `own` mean that the model was pruned.
    """
    given = conversion.state_dict
    head, norm = f"{conversion.classifier}.", f"{conversion.final_norm}."
    missing = dict(conversion.missing)
    weight = f"{head}weight"
    if weight in given and weight in own and given[weight].ndim and given[weight].shape[0] != own[weight].shape[0]:
        classes, expected = given[weight].shape[0], own[weight].shape[0]
        for name in [n for n in given if n.startswith(head)]:
            conversion.drop(name, f"the classifier has {classes} classes, the model has {expected}")
        missing |= {n: f"the checkpoint's classifier has {classes} classes" for n in own if n.startswith(head)}
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
            conversion.drop(name, "after the last stage of the model")
    for name in own:
        if name in given or name in missing:
            continue
        if name.endswith("relative_position_index"):
            missing[name] = "computed by the model"
        elif name.endswith("num_batches_tracked"):
            missing[name] = "a step counter that is not used in evaluation"
        elif OUT_NORM.fullmatch(name):
            missing[name] = "the checkpoint has no per-output norms; they keep their initial values"
        elif name.startswith((head, norm)) and dense:
            missing[name] = "the checkpoint is of a model without a classifier"
    return missing


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Convert a checkpoint as `load_official` does: the ``pretrained_filter_fn`` of timm, which then loads it."""
    conversion = _convert(model, state_dict)
    if conversion.settings:
        model.apply_settings(conversion.settings)
    own = model.state_dict() if conversion.missing else {}
    return conversion.state_dict | {name: own[name] for name in conversion.missing if name in own}


def describe(state_dict: Mapping[str, Any]) -> str:
    """Return the family and variant of a checkpoint, judged by names and shapes, such as ``"dinat_mini"``."""
    tensors = backbone_tensors(state_dict).state_dict
    for describe_family in _DESCRIPTIONS:
        try:
            if found := describe_family(tensors):
                return found
        except (IndexError, ValueError, KeyError):  # the names match this family, the shapes do not
            continue
    for name, pattern in (
        ("Swin", r"(layers|stages)[._]0\.blocks\.0\.attn\.(w_msa\.)?relative_position_bias_table"),
        ("ConvNeXt", r"downsample_layers\.0\.0\..*"),
        ("TimeSformer", r"blocks\.0\.temporal_fc\.weight"),
        ("ViT", r"blocks\.0\.attn\.qkv\.weight"),
        ("ResNet", r"layer1\.0\.conv1\.weight"),
    ):
        if any(re.fullmatch(pattern, key) for key in tensors):
            return name
    return f"an unknown model (its first entry is {next(iter(tensors))})"
