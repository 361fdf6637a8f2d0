"""Create the timm models of backbones, with errors that name the part of the config."""

import difflib
import inspect
import re
from typing import Any

import timm
import torch
from torch import Tensor, nn

from visionattn.backbones._download import create_model
from visionattn.errors import CheckpointError, ConfigError

__all__ = ["bare_name", "create_net"]


def bare_name(model_name: str) -> str:
    """Return the name of a timm model without its tag."""
    return model_name.split(".", 1)[0]


def create_net(
    model_name: str,
    out_indices: tuple[int, ...],
    pretrained: Any,
    weights: dict[str, Tensor],
    kwargs: dict[str, Any],
) -> nn.Module:
    """Create a feature extractor of timm.

    Args:
        model_name, out_indices, pretrained, kwargs: see `visionattn.Backbone`.
        weights: the tensors of the checkpoint `pretrained`, if that is a path.

    Raises:
        ConfigError: the model name, an argument or a level is unknown.
        CheckpointError: the weights do not match the model.
    """
    if not timm.is_model(bare_name(model_name)):
        close = difflib.get_close_matches(bare_name(model_name), timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists the names"
        raise ConfigError(f"backbone model_name={model_name!r} is not known to timm; {hint}")
    if "checkpoint_path" in kwargs:
        raise ConfigError("backbone takes no argument `checkpoint_path`; use pretrained=PATH")
    if (
        not out_indices
        or any(not isinstance(i, int) for i in out_indices)
        or list(out_indices) != sorted(set(out_indices))
    ):
        raise ConfigError(f"backbone out_indices={out_indices} must be ascending integers, such as (0, 1, 2, 3)")
    extra: dict[str, Any] = {}
    if weights:
        extra["pretrained_cfg_overlay"] = {
            "state_dict": {re.sub(r"^net\.(model\.)?", "", k): v for k, v in weights.items()}
        }
    arguments = {"features_only": True, "out_indices": out_indices, **kwargs}
    try:
        if not extra:
            return _with_download(model_name, bool(pretrained), arguments)
        before = torch.get_rng_state()
        fresh = timm.create_model(model_name, **arguments)
        torch.set_rng_state(before)
        loaded = timm.create_model(model_name, pretrained=True, **extra, **arguments)
        _check_all_loaded(loaded, fresh, model_name, str(pretrained))
        return loaded
    except TypeError as error:
        raise ConfigError(f"backbone {model_name}: {_argument_problem(model_name, kwargs, error)}") from error
    except (AssertionError, IndexError) as error:
        raise ConfigError(
            f"backbone {model_name}: out_indices={out_indices} contains a level that the model does not have ({error})"
        ) from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{pretrained}: does not match the backbone {model_name} ({reason})") from error


def _with_download(model_name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    try:
        return create_model(model_name, pretrained, **arguments)
    except CheckpointError as error:
        raise CheckpointError(f"backbone {error} with pretrained=PATH, or pretrained=None") from error


def _check_all_loaded(loaded: nn.Module, fresh: nn.Module, model_name: str, path: str) -> None:
    """Raise `CheckpointError` if weights still have their random initial values, since timm skips missing tensors."""
    start = dict(fresh.named_parameters())
    added = [part for module in loaded.modules() for part in getattr(module, "not_pretrained", ())]
    weights = {  # not norms and biases, whose initial values may equal the pretrained ones
        n: p for n, p in loaded.named_parameters() if p.ndim > 1 and not any(part in n for part in added)
    }
    missing = [n for n, p in weights.items() if torch.equal(p, start[n])]
    if missing:
        raise CheckpointError(
            f"{path}: does not match the backbone {model_name}: {len(missing)} of {len(weights)} weights are missing, "
            f"such as {missing[0]}; use a checkpoint of this model"
        )


def _argument_problem(model_name: str, kwargs: dict[str, Any], error: TypeError) -> str:
    """Return a message that names the argument of the config which timm rejected."""
    for name in kwargs:
        if f"'{name}'" in str(error):
            accepted = [a for a in _accepted_arguments(model_name) if a != name]
            close = difflib.get_close_matches(name, accepted, n=2)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            return f"takes no argument {name!r}{hint}"
    return str(error)


def _accepted_arguments(model_name: str) -> list[str]:
    module = inspect.getmodule(timm.models.model_entrypoint(bare_name(model_name)))
    names: set[str] = set()
    for _, member in inspect.getmembers(module, inspect.isclass):
        if issubclass(member, nn.Module) and member.__module__ == module.__name__:
            names |= set(inspect.signature(member.__init__).parameters)
    return sorted(names - {"self", "kwargs"})
