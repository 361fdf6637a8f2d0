"""Validate and test images of different sizes separately, so that the results do not depend on the batch size.

The data preprocessors pad the images of a batch to a common size, which changes the features near the padded borders.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["by_size", "evaluate_by_size"]

Step = Callable[[Any], Any]


def evaluate_by_size(model: nn.Module) -> nn.Module:
    """Replace ``val_step`` and ``test_step`` of a model of mmengine by `by_size` of them, and return the model."""
    for name in ("val_step", "test_step"):
        if hasattr(model, name):
            setattr(model, name, by_size(getattr(model, name)))
    return model


def by_size(step: Step) -> Step:
    """Return a function that calls `step` on each group of images of the same size in a batch.

    Args:
        step: takes a batch, a dict with a list of image tensors ``inputs`` and lists of the same length, and returns a
            list with one result per image.

    Returns:
        The function. Its results are in the order of the batch. Batches of any other form are passed on unchanged.
    """

    def stepped(batch: Any) -> Any:
        groups = _groups(batch)
        if len(groups) < 2:
            return step(batch)
        results: list[Any] = [None] * len(batch["inputs"])
        for group in groups:
            part = step({key: [values[i] for i in group] for key, values in batch.items()})
            for index, result in zip(group, part, strict=True):
                results[index] = result
        return results

    return stepped


def _groups(batch: Any) -> list[list[int]]:
    """Return the indices of the images of each size, or nothing if the batch cannot be divided."""
    inputs = batch.get("inputs") if isinstance(batch, Mapping) else None
    if not isinstance(inputs, (list, tuple)) or not all(torch.is_tensor(image) for image in inputs):
        return []
    if any(not isinstance(v, (list, tuple)) or len(v) != len(inputs) for v in batch.values()):
        return []
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(inputs):
        groups.setdefault(tuple(image.shape), []).append(index)
    return list(groups.values())
