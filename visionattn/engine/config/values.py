"""Text where a class needs a number or a truth value, such as ``lr="1e-3"``."""

import collections.abc
import inspect
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = ["text_problems"]

_NUMERIC = {int, float, bool, complex, type(None), numbers.Number, numbers.Real, numbers.Integral, torch.Tensor}
_TEXTUAL = {str, bytes, Path, os.PathLike, type, Callable, collections.abc.Callable}
_SEQUENCES = {list, tuple, set, collections.abc.Sequence, collections.abc.Iterable}
_WORDS = ("true", "false", "none")
# Parts of a config in which no text looks like a number.
_NUMBERS_ONLY = {
    "model", "optim_wrapper", "train_cfg", "val_cfg", "test_cfg", "param_scheduler", "auto_scale_lr", "randomness",
    "train_dataloader", "val_dataloader", "test_dataloader",
}  # fmt: skip


def text_problems(node: Mapping[str, Any], path: str, cls: Any, free: bool = False) -> Iterator[str]:
    """Yield one line for each argument that is text, while the class can only use numbers or truth values.

    This follows from the annotation of the argument. Arguments without an annotation are compared to their default
    value, and only text that looks like a number or truth value is reported.

    Args:
        node: the part of the config.
        path: its dotted path.
        cls: the class that it configures, or None.
        free: the user chooses the keys and values of this part, such as names of classes.
    """
    top, _, rest = path.partition(".")
    part = path if rest.startswith("dataset") else top  # text in a dataset can look like a number
    for key, value in node.items():
        if key in ("type", "_scope_") or not (texts := list(_texts(value))):
            continue
        parameter = _parameter(cls, key)
        allowed = _admits_text(parameter.annotation) if parameter is not None else None
        default = parameter.default if parameter is not None else None
        wanted = isinstance(default, (int, float)) or part in _NUMBERS_ONLY
        for text in texts:
            literal = _is_literal(text)
            if allowed is False or (allowed is None and literal and wanted and not free):
                shown = f"{path}.{key}={value!r}"
                if literal:
                    yield f"{shown} is text; remove the quotes of {text!r}"
                else:
                    yield f"{shown} must be {_spell(parameter.annotation)}"
                break


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _is_literal(text: str) -> bool:
    if text.strip().lower() in _WORDS:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parameter(cls: Any, name: str) -> inspect.Parameter | None:
    """Return the parameter of a function, or of the constructor of a class or its base classes."""
    if cls is None:
        return None
    functions = [vars(c)["__init__"] for c in cls.__mro__ if "__init__" in vars(c)] if inspect.isclass(cls) else [cls]
    for function in functions:
        try:
            found = inspect.signature(function).parameters.get(name)
        except (TypeError, ValueError):  # built-in classes have no signature
            return None
        if found is not None:
            return found
    return None


def _admits_text(annotation: Any) -> bool | None:
    """Return whether a value of this type can be text or contain it, or None if that is unknown."""
    if annotation in _NUMERIC:
        return False
    if annotation in _TEXTUAL:
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return any(isinstance(a, str) for a in arguments)
    if origin in (typing.Union, types.UnionType) or (origin in _SEQUENCES and arguments):
        parts = [_admits_text(a) for a in arguments if a is not Ellipsis]
        return True if True in parts else None if None in parts else False
    return None


def _spell(annotation: Any) -> str:
    text = annotation.__name__ if inspect.isclass(annotation) else str(annotation)
    return text.replace("typing.", "").replace("collections.abc.", "").replace("torch.", "")
