"""The layers of a timm model by depth: for layer-wise learning rates and for freezing the first stages."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import group_parameters
from torch import nn

from visionattn.engine.parts.plugins import is_plugin, original_names, plain_model
from visionattn.errors import ConfigError

__all__ = ["freeze_stages", "layer_ids", "no_weight_decay"]

AGENT_BIASES = ("an_bias", "na_bias", "ah_bias", "aw_bias", "ha_bias", "wa_bias", "ac_bias", "ca_bias")


def layer_ids(
    net: nn.Module, model_name: str, kwargs: Mapping[str, Any], plugins: Sequence[Mapping[str, Any]] = ()
) -> dict[str, int]:
    """Number the layers of a timm model by depth, as its ``group_matcher`` defines them.

    Args:
        net: created by timm with ``features_only``.
        model_name, kwargs: arguments that it was created with.
        plugins: the plugins of the backbone that were applied to it.

    Returns:
        Parameter name to layer, from 0 for the stem, without gaps.

    Raises:
        ConfigError: the model defines no layers.
    """
    model, names = _definition(net, model_name, kwargs, plugins)
    found = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    found |= _inserted(model, found)
    ids = {name: found[original] for name, original in names.items()}
    ranks = {number: rank for rank, number in enumerate(sorted(set(ids.values())))}
    return {name: ranks[number] for name, number in ids.items()}


def _inserted(model: nn.Module, found: Mapping[str, int]) -> dict[str, int]:
    """Return the layers of modules that plugins have put next to others, where timm's patterns do not match them.

    timm counts such parameters as the last layer. They belong to the last layer of the module that they are in.
    """
    matcher, result = model.group_matcher(coarse=False), {}
    if not isinstance(matcher, Mapping):  # a function, which knows all names
        return result
    specs = [[(spec,)] if isinstance(spec, str) else spec for spec in matcher.values() if spec is not None]
    patterns = [pattern for spec in specs for pattern, *_ in spec]
    for path in [path for path, module in model.named_modules() if is_plugin(module)]:
        own = [name for name in found if name.startswith(f"{path}.")]
        if not any(re.match(pattern, own[0]) for pattern in patterns):
            parent = f"{path.rpartition('.')[0]}."
            last = max(number for name, number in found.items() if name.startswith(parent) and name not in own)
            result |= dict.fromkeys(own, last)
    return result


def no_weight_decay(
    net: nn.Module, model_name: str, kwargs: Mapping[str, Any], plugins: Sequence[Mapping[str, Any]] = ()
) -> set[str]:
    """Return the names of parameters without weight decay; the arguments are those of `layer_ids`.

    They include the position biases of agent attention, as in the published detection models.
    """
    model, names = _definition(net, model_name, kwargs, plugins)
    renamed = {original: name for name, original in names.items()}
    patterns = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    patterns |= {name for name in names.values() if name.rsplit(".", 1)[-1] in AGENT_BIASES}
    return {renamed.get(p, p if "*" in p else f"{_inner(net)}{p}") for p in patterns}


def _inner(net: nn.Module) -> str:
    return "model." if hasattr(net, "model") else ""


def _definition(
    net: nn.Module, model_name: str, kwargs: Mapping[str, Any], plugins: Sequence[Mapping[str, Any]]
) -> tuple[nn.Module, dict[str, str]]:
    """Return the model that defines the layers of `net`, and its parameter name for each parameter of `net`."""
    inner = getattr(net, "model", net)
    own = [name for name, _ in net.named_parameters()]
    if hasattr(inner, "group_matcher"):
        return inner, {name: name.removeprefix(_inner(net)) for name in own}
    model, _ = plain_model(model_name, kwargs, plugins)
    names = original_names(net, model)
    if not hasattr(model, "group_matcher") or not all(name in names for name in own):
        raise ConfigError(f"backbone {model_name}: its layers are unknown, as it defines no `group_matcher`")
    return model, {name: names[name] for name in own}


def freeze_stages(
    net: nn.Module,
    model_name: str,
    kwargs: Mapping[str, Any],
    plugins: Sequence[Mapping[str, Any]],
    count: int | str,
) -> list[nn.Module]:
    """Freeze the parameters before the stages and in the first stages of a timm model.

    A stage is an entry of ``feature_info`` whose module has parameters and does not belong to the stem. What precedes
    the next stage, such as the downsampling before it, is not frozen unless it is part of the module of a frozen stage.

    Args:
        net, model_name, kwargs, plugins: see `layer_ids`.
        count: number of stages; 0 freezes only the stem, ``"all"`` everything, and -1 nothing.

    Returns:
        The modules that only have frozen parameters, which should stay in eval mode.

    Raises:
        ConfigError: the number is out of range, or the stages are unknown.
    """
    if count == "all":
        net.requires_grad_(False)
        return list(net.modules())
    if isinstance(count, bool) or not isinstance(count, int):
        raise ConfigError(f'backbone frozen_stages must be an integer from -1, or "all", got {count!r}')
    if count < 0:
        return []
    ids = layer_ids(net, model_name, kwargs, plugins)
    stages = []
    for entry in net.feature_info.info:
        # feature nets rename "stages.0" to "stages_0" where they flatten a Sequential
        starts = tuple(f"{_inner(net)}{name}." for name in (entry["module"], entry["module"].replace(".", "_")))
        found = [ids[name] for name in ids if name.startswith(starts)]
        if found and max(found) > 0:
            stages.append(found)
    if count > len(stages):
        raise ConfigError(f"backbone frozen_stages={count} must be -1 to {len(stages)}, the number of stages in use")
    if not stages:
        raise ConfigError("backbone frozen_stages must be -1, because the stages of this model are unknown")
    end = max(stages[count - 1]) + 1 if count else min(stages[0])
    for name, parameter in net.named_parameters():
        if ids[name] < end:
            parameter.requires_grad_(False)
    frozen = [m for m in net.modules() if (p := list(m.parameters())) and not any(q.requires_grad for q in p)]
    return list({id(inner): inner for module in frozen for inner in module.modules()}.values())
