"""What a checkpoint's conversion is, and the part of it that no family differs in: containers and prefixes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from visionattn.errors import CheckpointError
from visionattn.io.weights import check_tensor

__all__ = ["OUT_NORM", "Conversion", "backbone_tensors"]

OUT_NORM = re.compile(r"norm\d+\.(weight|bias)")  # norms of single outputs, which dense prediction adds
_WRAPPERS = ("state_dict", "model")  # mmengine and timm; detectron2 and the Swin family
# Compiled models; data parallelism; detectors and segmentors; `visionattn.Backbone`; timm's feature wrapper.
_PREFIXES = ("_orig_mod.", "module.", "backbone.", "net.", "model.")


@dataclass
class Conversion:
    """A state dict under a model's own names, and what was done to get there.

    Attributes:
        state_dict: name in the model to value.
        renamed: name in the checkpoint to name in the model, where they differ.
        interpolated: name in the model to what was done.
        dropped: name in the checkpoint to the reason.
        classifier: module of the model, or of such a model with one, that maps features to classes.
        final_norm: module that norms the features before or after pooling.
        stages: what comes before the number of a stage in the model's names.
        settings: arguments of the model that the checkpoint needs, for its ``apply_settings``.
        missing: name in the model to the reason why the checkpoint need not have it.
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

    def rename(self, source: str, target: str) -> None:
        """Give an entry another name; `source` is its present one."""
        if source == target:
            return
        if target in self.state_dict:
            raise CheckpointError(f"the checkpoint has {target} twice, once as {source}")
        self.state_dict[target] = self.state_dict.pop(source)
        self.renamed[self._original(source)] = target

    def drop(self, name: str, reason: str) -> None:
        """Leave an entry out; `name` is its present one."""
        del self.state_dict[name]
        original = self._original(name)
        self.renamed.pop(original, None)
        self.dropped[original] = reason

    def _original(self, name: str) -> str:
        """The name in the checkpoint of what is called `name` now."""
        return next((old for old, new in self.renamed.items() if new == name), name)


def backbone_tensors(checkpoint: Mapping[str, Any]) -> Conversion:
    """The backbone's tensors under names without prefixes."""
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"a checkpoint must be a dictionary of tensors, but this is a {type(checkpoint).__name__}"
        )
    for _ in _WRAPPERS:
        for wrapper in _WRAPPERS:
            if isinstance(checkpoint.get(wrapper), Mapping):
                checkpoint = checkpoint[wrapper]
    conversion = Conversion({})
    has_backbone = any(re.match(r"(module\.|model\.)*backbone\.", str(name)) for name in checkpoint)
    for name, tensor in checkpoint.items():
        if not isinstance(tensor, Tensor):
            conversion.dropped[str(name)] = "not a tensor"
            continue
        if not isinstance(name, str):
            conversion.dropped[str(name)] = "not a name"
            continue
        if not tensor.is_meta:  # of which shapes are known, enough to tell what model they are of
            check_tensor(tensor, name)
        inner, in_backbone = name, False
        while inner.startswith(_PREFIXES):
            prefix, inner = inner.split(".", 1)
            in_backbone = in_backbone or prefix == "backbone"
        if has_backbone and not in_backbone:
            conversion.dropped[name] = "not part of the backbone"
            continue
        if inner in conversion.state_dict:
            raise CheckpointError(f"the checkpoint has {inner} twice, once as {name}")
        conversion.state_dict[inner] = tensor
        if inner != name:
            conversion.renamed[name] = inner
    if not conversion.state_dict:
        raise CheckpointError("the checkpoint holds no tensors of a backbone")
    return conversion
