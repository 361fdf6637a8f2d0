"""The registries of the types that a config names as ``visionattn.<Name>``.

mmengine splits a dotted type into scope and name and looks the scope up among the children of its root registry.
Each registry here is such a child with the scope ``visionattn``, so that its types are found from the registries of
mmdet and mmseg as well. The modules that define the types are imported on the first look-up.
"""

from importlib import import_module
from typing import Any

from mmengine import registry as root
from mmengine.registry import Registry

from visionattn.errors import ConfigError, VisionattnError

__all__ = [
    "CONSTRUCTORS",
    "DATASETS",
    "FUNCTIONS",
    "HOOKS",
    "METRICS",
    "MODELS",
    "OPTIM_WRAPPERS",
    "SCOPE",
    "TRANSFORMS",
    "VISBACKENDS",
    "add_location",
    "find_type",
    "type_names",
]

SCOPE = "visionattn"
OPENMMLAB = "visionattn.openmmlab"
"""Module that adds the modules of the jobs with `add_location`. It is a location itself, so it need not be imported."""

_locations: list[str] = []
_imported: dict[str, VisionattnError | None] = {}
"""Modules of `_locations` that were imported, each with the error if that failed."""


class _Registry(Registry):
    """A registry that also imports the modules of `add_location`."""

    def import_from_location(self) -> None:
        super().import_from_location()
        for name in _locations:
            if name not in _imported:
                _imported[name] = None  # before the import, which may look up types
                _imported[name] = _import(name)
            if (error := _imported[name]) is not None:
                raise error


def _import(name: str) -> VisionattnError | None:
    try:
        import_module(name)
    except VisionattnError as error:
        return error
    except Exception as error:
        failed = ConfigError(f"{name}: cannot be imported ({type(error).__name__}: {error})")
        failed.__cause__ = error
        return failed
    return None


def _registry(name: str, parent: Registry, *locations: str) -> _Registry:
    modules = [f"visionattn.engine.{location}" for location in locations]
    return _Registry(name, scope=SCOPE, parent=parent, locations=[*modules, OPENMMLAB])


MODELS = _registry("model", root.MODELS, "parts.backbone", "parts.losses")
DATASETS = _registry("dataset", root.DATASETS, "parts.datasets")
TRANSFORMS = _registry("transform", root.TRANSFORMS, "parts.albu", "parts.transforms", "train.robustness")
FUNCTIONS = _registry("function", root.FUNCTIONS)
METRICS = _registry("metric", root.METRICS, "parts.metrics")
HOOKS = _registry("hook", root.HOOKS, "train.finetune.early_stopping", "train.hooks", "train.progress")
OPTIM_WRAPPERS = _registry("optim_wrapper", root.OPTIM_WRAPPERS, "train.train_options")
CONSTRUCTORS = _registry("optimizer constructor", root.OPTIM_WRAPPER_CONSTRUCTORS, "train.finetune.layer_decay")
VISBACKENDS = _registry("vis_backend", root.VISBACKENDS, "train.train_options")

_ALL = (MODELS, DATASETS, TRANSFORMS, FUNCTIONS, METRICS, HOOKS, OPTIM_WRAPPERS, CONSTRUCTORS, VISBACKENDS)


def add_location(module: str) -> None:
    """Import a module that registers types on the next look-up in any of the registries.

    Args:
        module: dotted name of the module.
    """
    if module not in _locations:
        _locations.append(module)


def find_type(name: str) -> Any:
    """Return the class or function registered under a name in any of the registries, or None."""
    for registry in _ALL:
        registry.import_from_location()
        if name in registry.module_dict:
            return registry.module_dict[name]
    return None


def type_names() -> list[str]:
    """Return the names in all registries, sorted."""
    for registry in _ALL:
        registry.import_from_location()
    return sorted({name for registry in _ALL for name in registry.module_dict})
