"""Start a run from other weights: those of a backbone, or of a whole model, of which the parts that fit are loaded."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.build import keep_arguments
from visionattn.engine.config.class_names import checkpoint_classes, dataset_classes
from visionattn.engine.config.custom_data import coco_datasets
from visionattn.engine.parts.backbone import Backbone
from visionattn.engine.train.finetune.sources import Source
from visionattn.engine.train.record import file_sha256
from visionattn.engine.weights.class_layers import class_layers
from visionattn.engine.weights.convert import Converted, convert
from visionattn.errors import CheckpointError

__all__ = ["Started", "start_from"]

COUNTER = "num_batches_tracked"  # missing in some published files, and without effect in evaluation
GROUPS = ("roi_head",)  # modules with several heads


@dataclass
class Started:
    """What a model takes from a source.

    Attributes:
        weights: the tensors that are loaded, by their names in the model.
        lines: summary of what is loaded, changed, new and not used.
        record: source, file, SHA-256 and summary, for the checkpoints of the run.
        adopted: keys of the config that the backbone has adopted, which the checkpoints of the run need as well.
    """

    weights: dict[str, Tensor]
    lines: list[str]
    record: dict[str, Any] = field(default_factory=dict)
    adopted: dict[str, str] = field(default_factory=dict)


def start_from(model: nn.Module, config: Config, source: Source) -> Started:
    """Select the weights of a source for a model, part by part.

    The backbone must fit. A neck or head is loaded if its parameter names are the same and the shapes fit, except that
    layers whose shape depends on the number of classes are new if the class names differ, and follow the order of the
    config if only the order differs. Everything else keeps its initial values.

    Args:
        model: as built from the config. Its backbone may be modified.
        config: the config, with the classes of the data. Its backbone gets the arguments that the weights were trained
            with, where it does not set them.
        source: the weights.

    Returns:
        The selected weights.

    Raises:
        CheckpointError: the file cannot be read safely, or the backbone does not fit.
    """
    own = model.state_dict()
    prefix = _backbone_prefix(model)
    parts = _parts(own, prefix)
    if source.file is None:
        new = {f"{prefix}{n}" for n in getattr(model.get_submodule(prefix[:-1]), "new_tensors", ())}
        taken = {n for n in own if n.startswith(f"{prefix}net.") and n not in new}
        return Started({}, _summary(source, model, parts, taken, {}), {"source": source.name})
    checkpoint = checkpoints.read(source.file)
    converted = convert(model, checkpoint, _classes(config))
    given = converted.weights
    theirs = _parts(given, prefix)
    arguments = converted.arguments
    fits = {n for n, w in own.items() if n in given and given[n].shape == w.shape}
    weights, heads = {}, _Heads(model, config, checkpoint_classes(checkpoint))
    for part, names in parts.items():
        counters = {n: given[n] for n in fits if n.startswith(part) and n.endswith(COUNTER)}
        if part == prefix:
            if names <= fits:
                weights |= {n: given[n] for n in names} | counters
            else:
                backbone = model.get_submodule(prefix[:-1])
                published = checkpoints.state_dict_of(checkpoint)
                weights |= _backbone_weights(backbone, prefix, own, given, published, source)
            converted.apply_settings()
            keep_arguments(config, arguments)  # which the checkpoints of the run are used with
        elif part != "" and names == theirs.get(part) and (found := heads.select(own, given, names)):
            weights |= found | counters
        elif part == "" and names <= fits:
            weights |= {n: given[n] for n in names}
    if not weights:
        raise CheckpointError(f"{source.name}: no part of it fits {type(model).__name__}")
    used = {part for part, names in parts.items() if names & weights.keys()}
    reasons = {
        p: "shapes differ" if names == theirs[p] else "names differ" for p, names in parts.items() if p in theirs
    }
    lines = [*_summary(source, model, parts, weights.keys(), reasons), *heads.lines(source)]
    lines += [f"{n} is {text}" for n, text in converted.settings.items() if "." not in n or n.startswith(tuple(used))]
    if unused := _unused(converted, prefix, used):
        lines.append(f"not used from {source.name}: {', '.join(unused)}")
    record = {"source": source.name, "file": str(source.file), "sha256": file_sha256(source.file)}
    record |= {key: checkpoints.meta_of(checkpoint).get(key) for key in ("config_name", "iter")}
    return Started(weights, lines, {**record, "loaded": lines}, arguments)


def _backbone_prefix(model: nn.Module) -> str:
    """Return the prefix of the parameter names of the backbone, such as ``"backbone."``, or an empty string."""
    found = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] == "backbone"]
    return f"{found[0]}." if found else ""


def _parts(names: Iterable[str], prefix: str) -> dict[str, set[str]]:
    """Group parameter names by the part of the model: backbone, neck, and one for each head."""
    outer = prefix.removesuffix("backbone.").rstrip(".")
    parts: dict[str, set[str]] = {}
    for name in names:
        words = name.split(".")
        count = 2 if words[0] in GROUPS or (outer and words[0] == outer) else 1
        part = "".join(f"{word}." for word in words[:count]) if len(words) > count else ""
        if not name.endswith(COUNTER):
            parts.setdefault(part, set()).add(name)
    return parts


def _backbone_weights(
    backbone: nn.Module,
    prefix: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    published: Mapping[str, Tensor],
    source: Source,
) -> dict[str, Tensor]:
    """Return the weights of a backbone that do not have its names: of a classifier, or of timm."""
    if not isinstance(backbone, Backbone):
        wanted = {n: w for n, w in own.items() if n.startswith(prefix)}
        missing = next(n for n, w in wanted.items() if n not in given or given[n].shape != w.shape)
        problem = "is missing"
        if missing in given:
            problem = f"is {list(given[missing].shape)} instead of {list(own[missing].shape)}"
        raise CheckpointError(
            f"{source.name}: does not fit the backbone {type(backbone).__name__}: {missing} {problem}"
        )
    try:
        loaded = backbone.load_weights(published, source.name)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(source.name) else f"{source.name}: {text}") from error
    state = backbone.state_dict()
    return {f"{prefix}{n}": state[n].clone() for n in loaded}


def _unused(converted: Converted, prefix: str, used: Collection[str]) -> list[str]:
    """Return the parts of a detector or segmentor that are not used, without those of a classifier."""
    stems = {n.partition("backbone.")[0] for n in (*converted.renamed, *converted.dropped) if "backbone." in n}
    names = set(converted.weights)
    for stem in stems - {""}:  # a whole model in another one, from which only the backbone was converted
        names |= {n.removeprefix(stem) for n in converted.dropped if n.startswith(stem)}
    if not any(n.startswith(prefix) for n in names):
        return []
    return sorted({p.rstrip(".") for p in _parts(names, prefix) if p not in used and p} - {prefix[:-1], "backbone"})


class _Heads:
    """Select the weights of necks and heads, and note which layers are new or reordered for the classes of the data."""

    def __init__(self, model: nn.Module, config: Config, trained: Sequence[str]) -> None:
        self.model, self.config = model, config
        self.classes, self.trained = _classes(config), list(trained)
        self.new: set[str] = set()
        self.reordered: set[str] = set()

    @cached_property
    def layouts(self) -> dict[str, "_Layout"]:
        return _layouts(self.model, self.config)

    def select(self, own: Mapping[str, Tensor], given: Mapping[str, Tensor], names: Collection[str]) -> dict:
        """Return the weights of a part with the same parameter names; none if other layers than those differ."""
        wrong = {n for n in names if given[n].shape != own[n].shape}
        unknown = not (self.classes and self.trained)
        if not wrong and (unknown or self.classes == self.trained):
            return {n: given[n] for n in names}
        if not wrong <= self.layouts.keys():
            return {}
        layers = {n: self.layouts[n] for n in names if n in self.layouts}
        result = {n: given[n] for n in names if n not in layers}
        if wrong or sorted(self.classes) != sorted(self.trained):
            self.new |= {n.rsplit(".", 1)[0] for n in layers}
            return result
        self.reordered |= {n.rsplit(".", 1)[0] for n in layers}
        order = [self.trained.index(name) for name in self.classes]
        return result | {n: _reordered(given[n], layout, order) for n, layout in layers.items()}

    def lines(self, source: Source) -> list[str]:
        """Return what has been noted."""
        result = []
        if self.new:
            names = f"{_short(self.classes)} (were {_short(self.trained)})"
            result.append(f"new for the classes {names}: {', '.join(sorted(self.new))}")
        if self.reordered:
            names = f"{_short(self.classes)} (in {source.name} {_short(self.trained)})"
            result.append(f"reordered to the classes {names}: {', '.join(sorted(self.reordered))}")
        return result


def _classes(config: Config) -> list[str]:
    loader = config.get("train_dataloader")
    found = next(coco_datasets(loader["dataset"], any_file=True), None) if loader else None
    return [] if found is None else dataset_classes(found, config.get("default_scope"))


@dataclass(frozen=True)
class _Layout:
    """How a tensor depends on the classes: along ``dim``, it has ``per_class`` entries for each class.

    ``class_first`` is True for box regression, in which the entries of a class are adjacent. Otherwise the classes of
    an anchor are adjacent, followed by its background if there is one.
    """

    dim: int
    per_class: int
    class_first: bool


def _layouts(model: nn.Module, config: Config) -> dict[str, _Layout]:
    """Return how the tensors depend on the classes that do so along one dimension, by name."""
    layouts = {}
    for name, layer in class_layers(model, config).items():
        grown = [dim for dim, step in enumerate(layer.step) if step]
        if len(grown) == 1:
            class_first = bool(re.search("reg|bbox", name.split(".")[-2]))
            layouts[name] = _Layout(grown[0], layer.step[grown[0]], class_first)
    return layouts


def _reordered(weight: Tensor, layout: _Layout, order: Sequence[int]) -> Tensor:
    size, count = weight.shape[layout.dim], len(order)
    index = torch.arange(size)
    if layout.class_first:
        index = index.view(count, layout.per_class)[order].flatten()
    else:
        blocks = index.view(layout.per_class, size // layout.per_class)
        index = torch.cat([blocks[:, order], blocks[:, count:]], 1).flatten()
    return weight.index_select(layout.dim, index)


def _summary(
    source: Source,
    model: nn.Module,
    parts: Mapping[str, set[str]],
    taken: Collection[str],
    reasons: Mapping[str, str],
) -> list[str]:
    texts, rest = [], []
    unit = " tensors"
    for part, names in parts.items():
        count = sum(n in taken for n in names)
        label = part.rstrip(".")
        if count:
            texts.append(f"{label or 'other'} {count} of {len(names)}{unit}")
            unit = ""
            if count < len(names) and label.endswith("backbone"):
                rest.append(
                    f"new in {label}: {', '.join(sorted(n.removeprefix(part) for n in names if n not in taken))}"
                )
        elif label:
            why = f", {reasons[part]}" if part in reasons else ""
            texts.append(f"{label} new ({type(model.get_submodule(label)).__name__}{why})")
        else:
            texts.append(f"other new ({_short(sorted(names))})")
    return [f"from {source.name}: {', '.join(texts)}", *rest]


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f", ... {len(names)} in total" if len(names) > 4 else "") or "unknown"
