"""What ``visionattn train --data`` knows about a data set and a machine, and how a job wants to be trained on it.

The engine describes the data (`DataSummary`) and the request (`Request`); each job that can be trained on such data
returns a `Recipe` from `visionattn.inference.job.Job.recipe`. No part of this depends on OpenMMLab.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import ConfigError

__all__ = ["DataSummary", "Levels", "Recipe", "Request", "fit_scale", "object_sides", "rounded"]

STRIDE = 32
"""Sizes of images are multiples of it, the stride of the last level of the backbones."""


@dataclass(frozen=True)
class DataSummary:
    """Facts about the data in a folder.

    Attributes:
        root: the folder.
        kind: its format, see `visionattn.data.formats.detect.Found`.
        annotations: what is annotated: ``"boxes"``, ``"masks"`` (of instances), ``"maps"`` (a class for each pixel),
            ``"labels"`` (a class for each image).
        custom_data: keys of the ``custom_data`` block of a config for this data.
        classes: the names.
        images: number of images of each split.
        sizes: width and height of the training images in pixels, ``[N, 2]``.
        boxes: width and height of the objects in the training images in pixels, ``[M, 2]``.
        owners: index into `sizes` of each object, ``[M]``.
        labels: index into `classes` of each object, ``[M]``.
        masked: number of objects with a mask.
        pixels: number of pixels of each class in the training masks, or None.
        notes: further lines for the user.
    """

    root: Path
    kind: str
    annotations: frozenset[str]
    custom_data: dict[str, Any]
    classes: tuple[str, ...]
    images: dict[str, int]
    sizes: np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    owners: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    masked: int = 0
    pixels: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Levels:
    """The feature levels of a backbone.

    Attributes:
        name: model name of timm.
        index: index of the level, by stride.
        channels: number of channels of the level, by stride.
    """

    name: str
    index: dict[int, int]
    channels: dict[int, int]

    def at(self, strides: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return ``out_indices`` and channels of the levels with these strides.

        Raises:
            ConfigError: the backbone lacks one of them.
        """
        if missing := [stride for stride in strides if stride not in self.index]:
            raise ConfigError(
                f"`model` {self.name}: has no level of stride {missing[0]}, only {sorted(self.index)}; use a "
                "hierarchical backbone, such as dinat_mini"
            )
        return [self.index[s] for s in strides], [self.channels[s] for s in strides]


@dataclass(frozen=True)
class Request:
    """What the user asks for, and the machine.

    Attributes:
        backbone: the backbone to use.
        gpu: train on a GPU.
        size: longer side of the images in pixels, or None.
    """

    backbone: Levels
    gpu: bool = False
    size: int | None = None


@dataclass
class Recipe:
    """How to train a job on a data set.

    Attributes:
        config: name of a config of the package with a ``custom_data`` block.
        options: values by key of the config.
        batch: images per iteration.
        lr: learning rate for a small backbone, and the images per iteration that it is meant for.
        metric: name of the validation metric that selects the best checkpoint.
        cost: time per image relative to a detector, by which the default number of images is divided.
        starts: names of models of the package to start from, the best first.
        choices: (what, value, reason) of each choice, for the user.
    """

    config: str
    options: dict[str, Any]
    batch: int
    lr: tuple[float, int]
    metric: str
    cost: float
    starts: tuple[str, ...] = ()
    choices: list[tuple[str, str, str]] = field(default_factory=list)


def rounded(side: float) -> int:
    """Return the nearest multiple of the stride, at least one."""
    return max(1, round(side / STRIDE)) * STRIDE


def object_sides(data: DataSummary) -> tuple[np.ndarray, float]:
    """Return the side of each object relative to the longer side of its image, and that of the small objects.

    The side is the square root of the area of the box. The small objects are those of the class with the smallest
    median, or the smallest tenth of all, whichever are smaller. Classes with less than 1 % of the objects do not count.
    """
    longest = data.sizes.max(axis=1)[data.owners]
    sides = np.sqrt(data.boxes.prod(axis=1)) / longest
    medians = [
        float(np.median(sides[data.labels == label]))
        for label in np.unique(data.labels)
        if (data.labels == label).mean() >= 0.01
    ]
    return sides, min([float(np.quantile(sides, 0.1)), *medians])


def fit_scale(data: DataSummary, longer: float) -> tuple[int, int]:
    """Return (width, height) to which images are resized with their aspect ratio: the longer side, and the shorter one.

    The shorter side leaves room for nine in ten images of the data.

    Args:
        data: the data.
        longer: the longer side in pixels; it is rounded to a multiple of 32.
    """
    ratio = float(np.quantile(data.sizes.min(axis=1) / data.sizes.max(axis=1), 0.9))
    long = rounded(longer)
    return long, max(STRIDE, math.ceil(long * ratio / 8) * 8)
