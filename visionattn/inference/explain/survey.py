"""The three questions of ViT visual analytics, over a set of images.

Which heads are important, how far heads look, and which patterns their attention maps have (Li et al., arXiv
2303.13731).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm.data
import torch
from torch import Tensor, nn

from visionattn.errors import ConfigError, DataError
from visionattn.inference.explain.attention import record_attention
from visionattn.inference.explain.heads import head_importance
from visionattn.inference.explain.patterns import GRID, pattern_maps
from visionattn.inference.explain.rings import mean_distance, offset_shares, ring_shares, spread_places

__all__ = ["Layer", "Survey", "class_names", "folder_labels", "survey_heads"]


@dataclass(frozen=True)
class Layer:
    """An attention layer, with means over the images.

    Attributes:
        name: name of the module.
        grid: (rows, columns) of its map.
        effects: effect of removing heads for each image, ``[images, heads, 2, 3]``, see `head_importance`.
        distance: mean attention distance in pixels of the input, ``[heads]``.
        shares: share of attention of each ring, ``[heads, rings]``, see `ring_shares`.
        per_patch: mean share of a patch of the ring, ``[heads, rings]``.
        offsets: share of each relative position, ``[heads, 2 * rows - 1, 2 * columns - 1]``, see `offset_shares`.
        offsets_per_patch: mean share of a patch at the position, of the same shape.
        maps: reduced attention maps of each image, ``[images, heads, 64, 64]``, see `pattern_maps`.
    """

    name: str
    grid: tuple[int, int]
    effects: Tensor
    distance: Tensor
    shares: Tensor
    per_patch: Tensor
    offsets: Tensor
    offsets_per_patch: Tensor
    maps: Tensor

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.distance)


@dataclass(frozen=True)
class Survey:
    """Measures of all attention layers.

    Attributes:
        layers: the attention layers in order.
        labels: class of each image, int64 ``[images]``; -1 without a classifier.
    """

    layers: Sequence[Layer]
    labels: Tensor


def survey_heads(model: nn.Module, inputs: Iterable[tuple[Tensor, int | None]]) -> Survey:
    """Measure the attention heads of a model on images.

    Args:
        model: backbone in eval mode.
        inputs: images ``[1, C, H, W]`` of one size with their classes; the class None is the predicted one.

    Raises:
        ConfigError: the model has no attention layer that can be drawn.
        ValueError: there are no images, or their sizes differ.
    """
    labels: list[int] = []
    images: list[list[tuple[Tensor, ...]]] = []
    names: list[tuple[str, tuple[int, int]]] = []
    for image, given in inputs:
        calls = record_attention(model, image)
        if not calls:
            raise ConfigError("the model has no attention over a feature map, so there are no heads to measure")
        if names and names != [(call.name, call.grid) for call in calls]:
            raise ValueError("`inputs` must have one size")
        names = [(call.name, call.grid) for call in calls]
        label = given
        if label is None and getattr(model, "num_classes", 0):
            with torch.no_grad():
                label = int(model(image).argmax())
        labels.append(-1 if label is None else label)
        found = []
        for call, effects in zip(calls, head_importance(model, image, label), strict=True):
            places = spread_places(call.grid, GRID)
            weights = call.maps(places)
            once = list({place: index for index, place in enumerate(places)}.values())
            part, at = weights[once], [places[index] for index in once]
            distance = mean_distance(call, (image.shape[2], image.shape[3]))
            found.append((effects, distance, *ring_shares(part, at), *offset_shares(part, at), pattern_maps(weights)))
        images.append(found)
    if not images:
        raise ValueError("`inputs` has no images")
    layers = []
    for (name, grid), parts in zip(names, zip(*images, strict=True), strict=True):
        effects, *means, maps = (torch.stack(values) for values in zip(*parts, strict=True))
        layers.append(Layer(name, grid, effects, *(values.mean(0) for values in means), maps))
    return Survey(layers, torch.tensor(labels))


def class_names(model: nn.Module, given: Sequence[str] | None) -> list[str]:
    """Return the class names of a model: those given, or the WordNet ids of a timm model for ImageNet, or indices.

    Raises:
        ConfigError: the number of names does not fit the model.
    """
    count = int(getattr(model, "num_classes", 0) or 0)
    if given is not None:
        if len(given) != count:
            raise ConfigError(f"`classes` must have {count} names, as many as the model has classes, got {len(given)}")
        return list(given)
    subset = timm.data.infer_imagenet_subset(model)
    if subset and timm.data.ImageNetInfo(subset).num_classes() == count:
        return list(timm.data.ImageNetInfo(subset).label_names())
    return [str(index) for index in range(count)]


def folder_labels(files: Sequence[Path], folder: Path, names: Sequence[str], required: bool) -> list[int | None]:
    """Return the class index of each image from the name of its subfolder.

    Args:
        files: images in the folder.
        folder: the folder.
        names: class names, in the order of the outputs of the model.
        required: names were given, so a subfolder with another name is an error; otherwise the labels are then None.

    Raises:
        DataError: a subfolder has another name, and `required`.
    """
    found = [file.relative_to(folder).parts[0] for file in files]
    unknown = sorted(set(found) - set(names))
    if not unknown:
        return [names.index(name) for name in found]
    if required:
        raise DataError(f"{folder}: the subfolder of each image must be the name of its class, got {unknown[0]!r}")
    return [None] * len(files)
