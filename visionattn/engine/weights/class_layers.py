"""Find the layers whose size depends on the number of classes, by building a model with another number of classes."""

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from visionattn.engine.config.build import drop_initialisation, quiet

__all__ = ["ClassLayer", "class_layers"]

WEIGHTS = "class_weight"
_COUNT = re.compile(r"num_(\w+_)?classes")


@dataclass(frozen=True)
class ClassLayer:
    """A tensor whose size depends on the number of classes.

    Attributes:
        shape: shape in the model.
        step: growth of each dimension by one more class.
        classes: number of classes of the model, or None if the model has several numbers.
    """

    shape: tuple[int, ...]
    step: tuple[int, ...]
    classes: int | None

    def count(self, shape: tuple[int, ...]) -> int | None:
        """Return the number of classes of a tensor of another shape; None if more differs than that number.

        Without a known number of classes, the result is relative to that of the model.
        """
        if len(shape) != len(self.shape):
            return None
        more = set()
        for size, own, step in zip(shape, self.shape, self.step, strict=True):
            if step == 0:
                if size != own:
                    return None
            else:
                if (size - own) % step:
                    return None
                more.add((size - own) // step)
        return (self.classes or 0) + more.pop() if len(more) == 1 else None


def class_layers(model: nn.Module, config: Mapping[str, Any]) -> dict[str, ClassLayer]:
    """Return the tensors of a model whose size depends on the number of classes, by their names.

    The model is built a second time without memory for its weights, with one more class: the values of all keys
    ``num_classes`` and ``num_things_classes`` outside of backbones are increased by one, or each of the
    ``class_groups`` gets one more class. The tensors whose shapes change are the class layers.

    Args:
        model: the model.
        config: the whole config of the model.

    Returns:
        The class layers; none if the second model cannot be built.
    """
    counts: set[int | None] = set()
    larger: dict[str, tuple[int, ...]] = {}
    # Lists of as many numbers as classes need one more, but also exist by chance, such as the ratios of anchors.
    for lists in (WEIGHTS, ""):
        changed = deepcopy(config["model"])
        drop_initialisation(changed)
        counts.clear()
        _one_more(changed, counts, lists)
        if not counts:
            return {}
        if larger := _shapes(changed, config.get("default_scope", "mmengine")):
            break
    classes = counts.pop() if len(counts) == 1 else None
    found = {}
    for name, tensor in model.state_dict().items():
        shape, other = tuple(tensor.shape), larger.get(name)
        if other is not None and other != shape and len(other) == len(shape):
            step = tuple(b - a for a, b in zip(shape, other, strict=True))
            found[name] = ClassLayer(shape, step, classes)
    return found


def _one_more(part: Any, counts: set[int | None], lists: str) -> None:
    """Add a class to each number of classes in a config, or one to each group of classes; note the former numbers.

    Lists of one number for each class are extended if their key contains `lists`.
    """
    if isinstance(part, (list, tuple)):
        for value in part:
            _one_more(value, counts, lists)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if not _COUNT.fullmatch(str(key)) or not isinstance(value, int):
            if key != "backbone":
                _one_more(value, counts, lists)
        elif groups := part.get("class_groups"):
            part["class_groups"] = [[*group, value + number] for number, group in enumerate(groups)]
            part[key] = value + len(groups)
            counts.add(None)  # the layers of a group tell the number of its classes only
            _lengthen(part, value, len(groups), lists)
        elif key != "num_stuff_classes":  # counted with the things
            counts.add(value + (part.get("num_stuff_classes") or 0 if key == "num_things_classes" else 0))
            part[key] = value + 1
            _lengthen(part, value, 1, lists)


def _lengthen(part: Any, length: int, more: int, lists: str) -> None:
    for key, value in part.items():
        if isinstance(value, dict):
            _lengthen(value, length, more, lists)
        elif not isinstance(value, (list, tuple)) or len(value) != length or lists not in str(key):
            continue
        elif isinstance(value[0], (int, float)):
            part[key] = [*value, *[value[-1]] * more]


def _shapes(model: dict, scope: str) -> dict[str, tuple[int, ...]]:
    for device in ("meta", "cpu"):  # constructors that compute with tensors fail on the meta device
        try:
            with torch.device(device), torch.random.fork_rng([]), quiet(), DefaultScope.overwrite_default_scope(scope):
                built = MODELS.build(deepcopy(model))
        except Exception:
            continue
        return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
    return {}
