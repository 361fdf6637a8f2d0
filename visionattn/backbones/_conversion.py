"""The result of converting a checkpoint, and the step common to all families: unwrapping and removing prefixes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from visionattn.errors import CheckpointError
from visionattn.io.weights import check_tensor, entry_of, is_averaged

__all__ = ["OUT_NORM", "Conversion", "backbone_tensors"]

OUT_NORM = re.compile(r"norm\d+\.(weight|bias)")  # per-output norms of detection and segmentation backbones
_NESTED = 3  # entries of weights within each other
# torch.compile; DataParallel; detectors and segmentors; OpenPCDet; `visionattn.Backbone`; timm's feature wrapper.
_PREFIXES = ("_orig_mod.", "module.", "backbone.", "backbone_3d.", "net.", "model.")


@dataclass
class Conversion:
    """A state dict under the model's parameter names, with a record of the changes.

    Attributes:
        state_dict: model parameter name to value.
        renamed: checkpoint name to model name, where they differ.
        interpolated: model name to a description of the interpolation.
        dropped: checkpoint name to the reason.
        classifier: name of the classifier module.
        final_norm: name of the norm before or after pooling.
        stages: prefix of the stage index in parameter names.
        settings: arguments that the checkpoint was trained with, for the model's ``apply_settings``.
        missing: model name to the reason why the checkpoint does not need to have it.
        averaged: key of the entry with averaged weights that was selected, or an empty string.
    """

    state_dict: dict[str, Tensor]
    renamed: dict[str, str] = field(default_factory=dict)
    interpolated: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    classifier: str = "head"
    final_norm: str = "norm"
    stages: str = "stages"
    settings: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    averaged: str = ""

    def rename(self, source: str, target: str) -> None:
        """Rename the entry `source` (its current name) to `target`."""
        if source == target:
            return
        if target in self.state_dict:
            raise CheckpointError(f"the checkpoint has two entries for {target}, one of them named {source}")
        self.state_dict[target] = self.state_dict.pop(source)
        self.renamed[self._original(source)] = target

    def drop(self, name: str, reason: str) -> None:
        """Remove the entry `name` (its current name)."""
        del self.state_dict[name]
        original = self._original(name)
        self.renamed.pop(original, None)
        self.dropped[original] = reason

    def _original(self, name: str) -> str:
        """Return the checkpoint name of the entry currently called `name`."""
        return next((old for old, new in self.renamed.items() if new == name), name)


def backbone_tensors(checkpoint: Mapping[str, Any]) -> Conversion:
    """Select the backbone's tensors of a checkpoint and remove prefixes from their names.

    Raises:
        CheckpointError: if the checkpoint is not a dictionary, has no backbone tensors, or has two entries for one
            name.
    """
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(f"the checkpoint must be a dictionary of tensors, got a {type(checkpoint).__name__}")
    conversion = Conversion({})
    for _ in range(_NESTED):
        key, checkpoint = entry_of(checkpoint)
        conversion.averaged = key if is_averaged(key) else conversion.averaged
    has_backbone = any(re.match(r"(module\.|model\.)*backbone(_3d)?\.", str(name)) for name in checkpoint)
    for name, tensor in checkpoint.items():
        if not isinstance(tensor, Tensor):
            conversion.dropped[str(name)] = "not a tensor"
            continue
        if not isinstance(name, str):
            conversion.dropped[str(name)] = "the name is not a string"
            continue
        if not tensor.is_meta:  # meta tensors have shapes only, which `describe` accepts
            check_tensor(tensor, name)
        inner, in_backbone = name, False
        while inner.startswith(_PREFIXES):
            prefix, inner = inner.split(".", 1)
            in_backbone = in_backbone or prefix in ("backbone", "backbone_3d")
        if has_backbone and not in_backbone:
            conversion.dropped[name] = "not part of the backbone"
            continue
        if inner in conversion.state_dict:
            raise CheckpointError(f"the checkpoint has two entries for {inner}, one of them named {name}")
        conversion.state_dict[inner] = tensor
        if inner != name:
            conversion.renamed[name] = inner
    if not conversion.state_dict:
        raise CheckpointError("the checkpoint has no backbone tensors")
    return conversion
