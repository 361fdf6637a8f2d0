"""Keys that options may add to a config: the arguments of the class that a part of the config names."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from mmengine import registry as root
from mmengine.hooks import CheckpointHook
from mmengine.registry import Registry
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from visionattn.errors import ConfigError, VisionattnError

__all__ = ["accepted_arguments", "check_key", "close_matches", "find_class", "is_known", "resembles"]

# Dicts without a ``type`` whose keys the user chooses.
FREE = {"metainfo", "data_prefix", "filter_cfg", "backend_args", "custom_keys", "mapping", "keymap", "meta"}

# Top-level keys that this package and mmengine read in addition to the arguments of Runner.
TOP = {
    "activation_checkpointing",
    "compile",
    "custom_data",
    "custom_imports",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "max_bad_samples",
    "model_wrapper_cfg",
    "partial",
    "skip_nonfinite",
    "start_from",
    "sync_bn",
    "task",
}


# Top-level keys of published configs that only the tools of OpenMMLab read.
FOREIGN = {"tta_model", "tta_pipeline"}


def _parameters(function: Any) -> set[str]:
    return {
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in ("self", "runner", "dataloader")
    }


RUNNER = _parameters(Runner.__init__)
LOOPS = _parameters(EpochBasedTrainLoop.__init__) | _parameters(IterBasedTrainLoop.__init__)
LOADER = _parameters(DataLoader.__init__) | {"dataset", "num_batch_per_epoch", "drop_last"}
KNOWN: dict[str, set[str]] = {
    "train_dataloader": LOADER,
    "val_dataloader": LOADER,
    "test_dataloader": LOADER,
    "train_cfg": {"by_epoch", "type"} | LOOPS,
    "val_cfg": {"type", "fp16"},
    "test_cfg": {"type", "fp16"},
    "randomness": {"seed", "diff_rank_seed", "deterministic"},
    "env_cfg": {"cudnn_benchmark", "mp_cfg", "dist_cfg", "resource_limit"},
    "env_cfg.mp_cfg": {"mp_start_method", "opencv_num_threads"},
    "env_cfg.dist_cfg": {"backend", "timeout", "init_backend"},
    "auto_scale_lr": {"enable", "base_batch_size"},
    "optim_wrapper.clip_grad": {"type", "max_norm", "norm_type", "error_if_nonfinite", "foreach", "clip_value"},
    "optim_wrapper.paramwise_cfg": {
        "lr_mult", "decay_mult", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult",
        "dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate", "custom_keys",
        "layer_decay_rate",
    },
    "custom_data": {
        "root", "train_ann", "val_ann", "test_ann", "train_img", "val_img", "test_img", "classes",
        "train_mask", "val_mask", "test_mask", "train_list", "val_list", "test_list", "mask_suffix", "palette",
        "format", "val_share", "boxes_as_ignored", "converted",
    },
}  # fmt: skip


def is_known(name: str) -> bool:
    """Return True if mmengine or this package reads a top-level key of a config, rather than only the file itself."""
    return name in TOP or name in RUNNER


def resembles(name: str, others: Iterable[str] = ()) -> str | None:
    """Return the known top-level key, or other name, of which a name probably is a misspelling, or None."""
    if name in FOREIGN:
        return None
    close = difflib.get_close_matches(name, sorted(TOP | RUNNER | set(others)), n=1, cutoff=0.85)
    return close[0] if close else None


def close_matches(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean ...?``, or the known words if none is similar, as the end of an error message."""
    names = sorted({str(k) for k in known if not str(k).startswith("_")})
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if not names:
        return ""
    return f"; known: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


def find_class(name: Any, scope: str | None = None) -> Any:
    """Return the class or function that a ``type`` names, from any registry of mmengine, or None.

    Args:
        name: the name, or the class itself.
        scope: ``default_scope`` of the config, whose package is searched first.

    Raises:
        VisionattnError: a module that registers types cannot be imported.
    """
    if not isinstance(name, str):
        return name if callable(name) else None
    own = [f"{scope}."] if scope else []
    for prefix in [""] if "." in name else [*own, "", "mmdet.", "mmseg."]:
        for registry in vars(root).values():
            if not isinstance(registry, Registry):
                continue
            try:
                found = registry.get(prefix + name)
            except VisionattnError:  # a module of a job cannot be imported
                raise
            except Exception:  # registries raise various errors for unknown names
                found = None
            if found is not None:
                return found
    return None


def accepted_arguments(cls: Any) -> set[str] | None:
    """Return the names of the arguments that a class accepts, or None if it accepts any.

    Arguments of the base classes are included if the class accepts ``**kwargs``.
    """
    if getattr(cls, "open_arguments", False):
        return None
    if cls is CheckpointHook:  # it ignores its **kwargs
        return _parameters(cls.__init__)
    if not inspect.isclass(cls):
        signature = inspect.signature(cls)
        if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            return None
        return _parameters(cls)
    names: set[str] = set()
    for base in cls.__mro__:
        if base is object or "__init__" not in vars(base):
            continue
        names |= _parameters(base.__init__)
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(base.__init__).parameters.values()):
            break
    else:
        return None
    if any(len([b for b in base.__bases__ if hasattr(b, "forward")]) > 1 for base in cls.__mro__):
        for base in cls.__mro__:  # with two base classes, either may receive the remaining arguments
            names |= _parameters(base.__init__) if base is not object and "__init__" in vars(base) else set()
    return names


def check_key(around: Any, path: list[str], key: str, scope: str | None = None) -> None:
    """Check a key that is to be added to a part of a config.

    Args:
        around: the part.
        path: dotted path of the key, as a list, up to the name that is to be added to ``around``.
        key: the complete option key, for error messages.
        scope: ``default_scope`` of the config; a ``_scope_`` in ``around`` takes precedence.

    Raises:
        ConfigError: ``around`` is not a dict, or the class that it configures takes no argument of this name.
    """
    name, parent = path[-1], ".".join(path[:-1])
    if not isinstance(around, Mapping):
        raise ConfigError(f"`cfg_options` {key}: {parent} is {around!r} and has no key {name!r}")
    if not parent:
        known = set(around) | TOP | RUNNER
        if name in known:
            return
        raise ConfigError(f"`cfg_options` {key}: the config has no key {name!r}{close_matches(name, known)}")
    if parent in KNOWN:
        known = KNOWN[parent] | set(around)
        if name in known:
            return
        raise ConfigError(f"`cfg_options` {key}: {parent} has no key {name!r}{close_matches(name, known)}")
    if path[-2] in FREE or not around:
        return
    if "type" in around and (cls := find_class(around["type"], around.get("_scope_", scope))) is not None:
        accepted = accepted_arguments(cls)
        if accepted is None or name in accepted:
            return
        raise ConfigError(
            f"`cfg_options` {key}: {parent} ({around['type']}) takes no {name!r}"
            f"{close_matches(name, accepted | set(around))}"
        )
    if "type" in around:  # an unknown type, which is reported when the model is built
        return
    raise ConfigError(
        f"`cfg_options` {key}: {parent} has no key {name!r}{close_matches(name, around)}; "
        "write a config with _base_ to add a key"
    )
