"""Load the weights of a checkpoint into a model, and report what was renamed, what is new, and what does not fit."""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from visionattn.backbones._conversion import OUT_NORM
from visionattn.backbones._weights import of_averaged
from visionattn.engine.config.class_names import config_classes
from visionattn.engine.weights.class_layers import class_layers
from visionattn.engine.weights.convert import Converted, convert
from visionattn.engine.weights.messages import Difference, class_error, mismatch_error
from visionattn.errors import CheckpointError

__all__ = ["FitReport", "fit"]

# Entries that models compute, and counters that evaluation does not use.
_COMPUTED = ("num_batches_tracked", "relative_position_index")


@dataclass(frozen=True)
class FitReport:
    """Result of `fit`.

    Attributes:
        path: the checkpoint.
        loaded: names of the model's tensors that were set.
        renamed: checkpoint name to model name, where they differ.
        interpolated: model name to a description such as ``"bicubic, 13x13 to 21x21"``.
        dropped: checkpoint name to the reason why the entry was not needed.
        settings: arguments that a backbone has adopted from the checkpoint, with descriptions.
        new: names of class layers that keep their initial values, since their number of classes differs.
        classes: number of classes in the checkpoint and in the model, if ``new`` is not empty and they are known.
        unmatched: one line for each other tensor that does not match; empty unless ``partial`` was set.
        averaged: key of the entry of the checkpoint with averaged weights that was loaded, or an empty string.
    """

    path: str
    loaded: tuple[str, ...]
    renamed: dict[str, str] = field(default_factory=dict)
    interpolated: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    new: tuple[str, ...] = ()
    classes: tuple[int, int] | None = None
    unmatched: tuple[str, ...] = ()
    averaged: str = ""

    def lines(self) -> list[str]:
        """Return a short description, a few lines; empty if all tensors had the names of the model."""
        lines, parts = [], []
        if self.renamed:
            source, target = next(iter(self.renamed.items()))
            parts.append(f"{len(self.renamed)} renamed, such as {source} to {target}")
        if self.interpolated:
            parts.append(f"{len(self.interpolated)} interpolated ({next(iter(self.interpolated.values()))})")
        if self.dropped:
            name, reason = next(iter(self.dropped.items()))
            parts.append(f"{len(self.dropped)} not needed, such as {name} ({reason})")
        parts += [f"{name} is {value}" for name, value in self.settings.items()]
        if parts or self.averaged:
            lines.append("; ".join([self._loaded(), *parts]))
        if self.new:
            counts = f" ({self.classes[0]} classes in the file, {self.classes[1]} in the model)" if self.classes else ""
            layers = dict.fromkeys(name.rsplit(".", 1)[0] for name in self.new)
            lines.append(f"new class layers{counts}: {', '.join(layers)}")
        if self.unmatched:
            more = f" and {len(self.unmatched) - 2} more" if len(self.unmatched) > 2 else ""
            lines.append(
                f"{len(self.unmatched)} tensors of {self.path} and the model do not match, and the model keeps its "
                f"initial values: {'; '.join(self.unmatched[:2])}{more}"
            )
        return lines

    def _loaded(self) -> str:
        return f"{self.path}: loaded {len(self.loaded)} tensors{of_averaged(self.averaged)}"

    def __str__(self) -> str:
        lines = [self._loaded()]
        lines += [f"renamed: {old} to {new}" for old, new in self.renamed.items()]
        lines += [f"interpolated: {name}, {text}" for name, text in self.interpolated.items()]
        lines += [f"not needed: {name}, {reason}" for name, reason in self.dropped.items()]
        lines += [f"setting: {name} is {value}" for name, value in self.settings.items()]
        lines += [f"new class layer: {name}" for name in self.new]
        return "\n".join([*lines, *(f"not loaded: {line}" for line in self.unmatched)])


def fit(
    model: nn.Module,
    checkpoint: Mapping[str, Any] | Converted,
    path: str | os.PathLike,
    *,
    config: Mapping[str, Any] | None = None,
    finetune: bool = False,
    partial: bool = False,
    extra: bool = False,
    revise_keys: Sequence[tuple[str, str]] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> FitReport:
    """Load the weights of a checkpoint into a model, which is unchanged if they do not fit.

    Args:
        model: the model.
        checkpoint: as returned by `visionattn.io.weights.read`, or converted by `convert`.
        path: path of the checkpoint, for messages.
        config: whole config of the model; needed to recognize the layers of another number of classes.
        finetune: class layers of another number of classes keep their initial values, see `FitReport.new`.
        partial: load the tensors that match; the others keep their initial values.
        extra: the checkpoint may have further tensors that the model does not have.
        revise_keys: see `visionattn.io.weights.state_dict_of`.
        meta: metadata of a converted checkpoint, for messages.

    Raises:
        CheckpointError: a tensor does not match, other than the allowed ones, or no tensor matches. The message names
            the parts of the model that do not match and the models that the checkpoint seems to belong to.
    """
    if not isinstance(checkpoint, Converted):
        meta = checkpoint.get("meta")
        checkpoint = convert(model, checkpoint, config_classes(config) if config else (), revise_keys, str(path))
    found, path = checkpoint, str(path)
    own = model.state_dict()
    usable, differences = _compare(own, found)
    if hasattr(model, "convert_published"):  # published classifiers have no norms of the outputs
        differences = [d for d in differences if d.given is not None or not OUT_NORM.fullmatch(d.name)]
    if extra:
        differences = [d for d in differences if d.given is None or d.own is not None]
    layers = class_layers(model, config) if config and any(d.resized for d in differences) else {}
    counts = {
        d.name: count
        for d in differences
        if d.resized and d.name in layers and (count := layers[d.name].count(d.given)) is not None
    }
    others = [d for d in differences if d.name not in counts]
    classes = {(count, layers[name].classes) for name, count in counts.items()}
    known = next(iter(classes)) if len(classes) == 1 and None not in next(iter(classes)) else None
    if (others and not partial) or not usable:
        raise mismatch_error(path, own, (finetune and others) or differences, found, meta, finetune)
    if counts and not (finetune or partial):
        raise class_error(path, [d for d in differences if d.name in counts], known, meta)
    try:
        model.load_state_dict(OrderedDict(usable), strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the model ({str(error).splitlines()[-1].strip()})") from error
    found.apply_settings()
    return FitReport(
        path=path,
        loaded=tuple(usable),
        renamed={old: new for old, new in found.renamed.items() if new in usable},
        interpolated={name: text for name, text in found.interpolated.items() if name in usable},
        dropped=found.dropped,
        settings=found.settings,
        new=tuple(counts),
        classes=known,
        unmatched=tuple(map(str, others)),
        averaged=found.averaged,
    )


def _compare(own: Mapping[str, Tensor], found: Converted) -> tuple[dict[str, Tensor], list[Difference]]:
    """Return the tensors that match, and the differences."""
    sources = {new: old for old, new in found.renamed.items()}
    usable, differences = {}, []
    for name, tensor in own.items():
        given = found.weights.get(name)
        if given is not None and given.shape == tensor.shape:
            usable[name] = given
        elif given is not None:
            differences.append(Difference(name, tuple(tensor.shape), tuple(given.shape), sources.get(name, name)))
        elif not name.endswith(_COMPUTED):
            differences.append(Difference(name, tuple(tensor.shape), None, name))
    for name, tensor in found.weights.items():
        if name not in own and not name.endswith(_COMPUTED):
            differences.append(Difference(name, None, tuple(tensor.shape), sources.get(name, name)))
    return usable, differences
