"""Turn errors raised while the objects of a config are built into one-line messages."""

import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import Registry

from visionattn.engine.config.options import accepted_arguments, close_matches, find_class
from visionattn.errors import ConfigError, VisionattnError

__all__ = ["building", "drop_initialisation", "keep_arguments", "quiet", "registered_names"]


@contextmanager
def building(name: str) -> Iterator[None]:
    """Raise errors that occur while the objects of a config are built as `ConfigError`.

    Args:
        name: name of the config, for error messages.
    """
    try:
        yield
    except VisionattnError:
        raise
    except (KeyError, RuntimeError) as error:
        text = str(error.args[0]) if error.args else ""
        unknown = re.match(r"(\S+) is not in the (\w+)::([\w ]+) registry", text)
        if unknown:
            known = registered_names(unknown[3])
            if unknown[1] in known:
                raise ConfigError(
                    f"{name}: type={unknown[1]!r} is in another package; set default_scope = 'mmdet' (or 'mmseg')"
                ) from error
            raise ConfigError(f"{name}: type={unknown[1]!r} is not known{close_matches(unknown[1], known)}") from error
        if failed := re.match(r"Failed to get (\S+)", text):
            raise ConfigError(
                f"{name}: type={failed[1]!r} is not known{close_matches(failed[1], registered_names(None))}"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise ConfigError(f"{name}: the key {text!r} is missing") from error
    except TypeError as error:
        text = " ".join(str(error).split())
        if "argument" not in text:
            raise ConfigError(f"{name}: {_failure(error)}") from error
        raise ConfigError(f"{name}: {_argument(text)}") from error
    except (ArithmeticError, AttributeError, IndexError) as error:  # an argument of the wrong type
        raise ConfigError(f"{name}: {_failure(error)}") from error


def _failure(error: Exception) -> str:
    """Describe an error raised by the constructor of a class."""
    made = [
        type(frame.f_locals["self"]).__name__
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals
    ]
    what = f"{made[-1]} cannot be created with these arguments" if made else "cannot be built"
    return f"{what} ({type(error).__name__}: {' '.join(str(error).split())})"


def _argument(text: str) -> str:
    """Describe a TypeError of a constructor call by the argument of the config."""
    if found := re.search(r"([\w.]+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text):
        cls = find_class(found[1].rsplit(".", 1)[-1])
        known = accepted_arguments(cls) if cls is not None else None
        return f"{found[1]} takes no argument {found[2]!r}{close_matches(found[2], known or ())}"
    if found := re.search(r"([\w.]+)\.__init__\(\) missing .*?: (.+)", text):
        return f"{found[1]} requires the argument {found[2]}"
    return text


def registered_names(registry_name: str | None) -> set[str]:
    """Return the type names in the registries of one name (``model``, ``hook``, ...), or in all of them."""
    names: set[str] = set()

    def collect(registry: Registry) -> None:
        names.update(registry.module_dict)
        for scope, child in registry.children.items():
            if scope == "visionattn":
                child.import_from_location()
                names.update(f"visionattn.{n}" for n in child.module_dict)
            else:
                collect(child)

    for registry in vars(root).values():
        if isinstance(registry, Registry) and registry_name in (None, registry.name):
            collect(registry)
    return names


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress log lines below ERROR and Python warnings while objects are built, before the log file exists."""
    if not MMLogger._instance_dict:
        MMLogger.get_instance("visionattn", logger_name="visionattn", log_level=logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def drop_initialisation(part: Any) -> None:
    """Remove ``init_cfg`` and ``pretrained`` from a model config, in place: the checkpoint has all weights."""
    if isinstance(part, dict):
        part.pop("init_cfg", None)
        if "pretrained" in part:
            part["pretrained"] = None
        for value in part.values():
            drop_initialisation(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            drop_initialisation(value)


def keep_arguments(config: Config, arguments: Mapping[str, Any]) -> bool:
    """Set keys of a model config that it does not set, in place.

    Args:
        config: the whole config.
        arguments: values by key, such as ``"model.backbone.padding"``. Those of a part that is absent are ignored.

    Returns:
        True if the config has changed.
    """
    changed = False
    for key, value in arguments.items():
        *path, last = key.split(".")
        part: Any = {"model": config.model}
        for word in path:
            part = part.get(word) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping) and part.get(last) is None:
            part[last] = value
            changed = True
    return changed
