"""The backbone and the weights to start from."""

import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import timm

from visionattn.data.recipes import Levels
from visionattn.engine.config.load import load_config
from visionattn.engine.model import find_run
from visionattn.engine.parts.backbone import Backbone
from visionattn.errors import ConfigError
from visionattn.io.cache import models_dir
from visionattn.zoo import find_model, model_names
from visionattn.zoo.backbones import published_backbones
from visionattn.zoo.catalog import published_models

__all__ = ["cached_weights", "choose_backbone", "choose_start", "levels_of"]

SMALL, LARGE = "dinat_pico", "dinat_mini"
"""Backbone of the models of the package, and that for GPUs if its published weights are in the cache."""


def choose_backbone(asked: str | None, gpu: bool, start: str | None = None) -> tuple[str, str]:
    """Return the name of the backbone, and why it was chosen.

    Args:
        asked: the backbone that the user wants.
        gpu: whether there is one.
        start: the weights that the user wants to start from.

    Raises:
        ConfigError: timm does not know the name.
    """
    if asked is not None:
        name = asked.replace("-", "_")
        if not timm.is_model(name.split(".", 1)[0]):
            close = difflib.get_close_matches(name, timm.list_models(), n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else "; timm.list_models() has the names"
            raise ConfigError(f"`model` {asked!r} is not a backbone of timm or of this package{hint}")
        return name, "as asked"
    if start is not None and (name := _backbone_of(start)) is not None:
        return name, f"that of {start}, from which the training starts"
    if gpu and cached_weights(LARGE) is not None:
        return LARGE, "GPU, and its published weights are in the cache"
    return SMALL, "small; models of the package have it" if not gpu else "its weights are in the package; see --model"


def _backbone_of(start: str) -> str | None:
    """Return the backbone of a trained model by name, of a run or of a timm model, or None if it has none of timm."""
    if start in model_names():
        config = find_model(start).config
    elif start in published_models():
        config = published_models()[start].config
    else:
        config = find_run(start)[0] if Path(start).expanduser().is_dir() else None
    backbone = load_config(config, resolve_data=False).model.get("backbone") if config else {"model_name": start}
    name = str((backbone or {}).get("model_name")).partition(".")[0]
    return name if timm.is_model(name) else None


def cached_weights(name: str) -> Path | None:
    """Return the published weights of a backbone if they are on this machine."""
    for full in published_backbones():
        file = models_dir() / f"{full}.pth"
        if name in (full, full.split(".", 1)[0]) and file.is_file():
            return file
    return None


@cache
def levels_of(name: str) -> Levels:
    """Build a backbone with random weights and return its levels."""
    count = len(timm.create_model(name, pretrained=False).feature_info)
    built = Backbone(name, out_indices=range(count))
    index = {stride: level for level, stride in zip(built.out_indices, built.strides, strict=True)}
    channels = dict(zip(built.strides, built.num_features, strict=True))
    return Levels(name, index, channels)


def choose_start(
    asked: str | None, backbone: str, names: Sequence[str], classes: Sequence[str]
) -> tuple[str | None, str]:
    """Return the weights to start from, as `visionattn.engine.train.finetune.sources.find_source` accepts them.

    A model of the package whose classes are all among those of the data was probably trained on such data, maybe on
    the images that are used for validation here; the scores would be too high.

    Args:
        asked: what the user wants.
        backbone: name of the backbone.
        names: models of the package, the best first.
        classes: class names of the data.
    """
    if asked is not None:
        return asked, "as asked"
    if (file := cached_weights(backbone)) is not None:
        return str(file), "published weights, in the cache"
    own = {name.lower() for name in classes}
    skipped = []
    for name in names:
        of_model, known = _backbone_and_classes(name)
        if of_model != backbone:
            continue
        if not known <= own:
            others = f"not {', '.join(skipped)}, which may have been trained on these images" if skipped else ""
            return name, others or f"a model of the package with {backbone}"
        skipped.append(name)
    return None, f"no weights of {backbone} on this machine; --from loads published ones"


@cache
def _backbone_and_classes(name: str) -> tuple[str, frozenset[str]]:
    """Return the backbone of a model of the package and its class names in lower case."""
    model = find_model(name)
    config = load_config(model.config, resolve_data=False)
    classes = frozenset(str(c).lower() for c in model.meta["dataset_meta"]["classes"])
    return config.model.backbone.model_name, classes
