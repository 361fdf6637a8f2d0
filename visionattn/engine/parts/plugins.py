"""The `plugins` of `visionattn.Backbone`: attention modules that replace parts of a timm model or are inserted into it.

Each plugin is a dict. ``type`` is ``"agent"``, ``"inline"``, ``"gpsa"`` or ``"sparsifiner"``, which replace attention
(`visionattn.layers.replace_attention`), or ``"ela"`` or ``"ulsam"``, which are inserted into convolutional networks
(`visionattn.layers.insert_after`). ``where`` is a shell-style pattern of the module names of the timm model without
``features_only``, such as ``"blocks.[0-5].*"``; without it, all places or the default ones are used.
``dict(type="ulsam", where=..., replace=True)`` replaces whole blocks (`visionattn.layers.replace_blocks`). The other
keys are options of the module.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import timm
import torch
from torch import Tensor, nn

from visionattn.backbones._conversion import backbone_tensors
from visionattn.errors import CheckpointError, ConfigError
from visionattn.layers import ReplaceReport, filter_official, insert_after, replace_attention, replace_blocks
from visionattn.layers.insert import INSERTED
from visionattn.layers.replace import ATTENTIONS, CONVERTED

__all__ = [
    "apply_plugins",
    "changed_weights",
    "is_plugin",
    "load_changed",
    "original_names",
    "plain_model",
    "summary",
]

_FLAT = re.compile(r"^([a-z_]+)_(\d+)(?=\.|$)")  # "stages_0", as timm's FeatureListNet renames "stages.0"
_COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")


class _Pattern:
    """A pattern that matches names of the original timm model and of its feature extractor."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, name: str) -> bool:
        return fnmatchcase(name, self.text) or fnmatchcase(_FLAT.sub(r"\1.\2", name), self.text)

    def __repr__(self) -> str:
        return repr(self.text)


def apply_plugins(net: nn.Module, plugins: Sequence[Mapping[str, Any]]) -> list[ReplaceReport]:
    """Apply plugins to a timm model, in place and in order.

    Args:
        net: a model of timm, with or without ``features_only``.
        plugins: see the module.

    Returns:
        The report of each plugin, with names relative to the model inside timm's feature wrapper.

    Raises:
        ConfigError: a plugin has an unknown type, matches nothing in the model, or has wrong options.
    """
    if not isinstance(plugins, (list, tuple)):
        raise ConfigError(f"backbone plugins={plugins!r} must be a list of dicts, such as [dict(type='agent')]")
    return [_apply(getattr(net, "model", net), f"backbone plugins.{n}", plugin) for n, plugin in enumerate(plugins)]


def _apply(model: nn.Module, path: str, plugin: Any) -> ReplaceReport:
    known = (*ATTENTIONS, *INSERTED)
    if not isinstance(plugin, Mapping) or "type" not in plugin:
        raise ConfigError(f"{path} must be a dict with a `type` of {', '.join(known)}, got {plugin!r}")
    options = dict(plugin)
    kind, where, replace = options.pop("type"), options.pop("where", None), options.pop("replace", False)
    if kind not in known:
        close = difflib.get_close_matches(str(kind), known, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"must be one of {', '.join(known)}"
        raise ConfigError(f"{path}.type={kind!r} is not a plugin; {hint}")
    if where is not None and not isinstance(where, str):
        raise ConfigError(f"{path}.where={where!r} must be a pattern of module names, such as 'blocks.*'")
    if not isinstance(replace, bool) or (replace and kind != "ulsam"):
        raise ConfigError(f"{path}.replace={replace!r} must be True or False, and False except for type='ulsam'")
    function = replace_blocks if replace else replace_attention if kind in ATTENTIONS else insert_after
    try:
        return function(model, kind, where=None if where is None else _Pattern(where), **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} (type={kind!r}): {' '.join(str(error).split())}") from error


def is_plugin(module: nn.Module) -> bool:
    """Return whether a module is of a class that plugins add."""
    return isinstance(module, (*ATTENTIONS.values(), *INSERTED.values()))


def summary(plugins: Sequence[Mapping[str, Any]], reports: Sequence[ReplaceReport]) -> str:
    """Return one line that describes what the plugins have done; empty without plugins."""
    texts = []
    for plugin, report in zip(plugins, reports, strict=True):
        first, count = report.modules[0], len(report.modules)
        places = f"1 place ({first})" if count == 1 else f"{count} places ({first} to {report.modules[-1]})"
        text = f"{plugin['type']} in {places}, {len(report.kept)} tensors kept, {len(report.new)} new"
        texts.append(", ".join([text, *report.notes]))
    return "; ".join(texts)


def plain_model(
    model_name: str, kwargs: Mapping[str, Any], plugins: Sequence[Mapping[str, Any]]
) -> tuple[nn.Module, list[ReplaceReport]]:
    """Return the whole timm model of a feature extractor with its plugins, on the meta device, and their reports."""
    arguments = {
        key: value for key, value in kwargs.items() if key not in ("features_only", "out_indices", "feature_cls")
    }
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = timm.create_model(model_name, **arguments)
        return model, apply_plugins(model, plugins)


def original_names(net: nn.Module, model: nn.Module) -> dict[str, str]:
    """Return the name in the whole timm model of each tensor of its feature extractor that it has.

    timm's ``FeatureListNet`` has only the layers of a model, and renames ``stages.0`` to ``stages_0``. Its
    ``FeatureGetterNet`` has the model as the attribute ``model``.
    """
    inner = "model." if hasattr(net, "model") else ""
    known = {f"{inner}{name.replace('.', '_', count)}": name for name in model.state_dict() for count in (1, 0)}
    return {name: known[name] for name in net.state_dict() if name in known}


def changed_weights(
    model_name: str,
    kwargs: Mapping[str, Any],
    plugins: Sequence[Mapping[str, Any]],
    weights: Mapping[str, Tensor],
    source: str,
) -> dict[str, Tensor] | None:
    """Return weights of a timm model with plugins under timm's names, or None if they are of the original model.

    Args:
        model_name, kwargs, plugins: arguments of the backbone.
        weights: the tensors of a checkpoint of the backbone: official, or saved by timm or this package.
        source: its name, for error messages.

    Raises:
        CheckpointError: the checkpoint has no tensors, or has window attention in replaced modules.
    """
    model, reports = plain_model(model_name, kwargs, plugins)
    tensors = backbone_tensors(weights).state_dict
    plain = {_FLAT.sub(r"\1.\2", name): tensor for name, tensor in tensors.items()}
    if not any(name in plain for report in reports for name in report.new):
        return None
    of_extractor = any(name.startswith("net.") for name in weights) or plain.keys() != tensors.keys()
    if of_extractor or not isinstance(model, CONVERTED):
        return plain
    try:
        return filter_official(plain, model)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def load_changed(net: nn.Module, weights: Mapping[str, Tensor], problem: str) -> None:
    """Load weights of a timm model with plugins into its feature extractor with the same plugins.

    Args:
        net: the feature extractor.
        weights: from `changed_weights`.
        problem: beginning of the error message.

    Raises:
        CheckpointError: a weight is missing or has another shape.
    """
    prefix, own = "model." if hasattr(net, "model") else "", net.state_dict()
    given = {name: weights.get(_FLAT.sub(r"\1.\2", name.removeprefix(prefix))) for name in own}
    wrong = [
        f"{name} is missing" if tensor is None else f"{name} is {list(tensor.shape)} instead of {list(own[name].shape)}"
        for name, tensor in given.items()
        if (tensor is None or tensor.shape != own[name].shape) and not name.endswith(_COMPUTED)
    ]
    if wrong:
        raise CheckpointError(f"{problem}: {len(wrong)} of {len(own)} tensors do not fit, such as {wrong[0]}")
    net.load_state_dict({name: t for name, t in given.items() if t is not None and t.shape == own[name].shape}, False)
