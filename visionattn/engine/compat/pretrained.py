"""``init_cfg=dict(type="Pretrained", ...)``: initialize a module from a checkpoint."""

from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.model.weight_init import PretrainedInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.weights.convert import published_parts
from visionattn.engine.weights.fit import FitReport, fit
from visionattn.errors import CheckpointError
from visionattn.io.weights import entry_of

__all__ = ["Pretrained", "install", "load_pretrained"]


def load_pretrained(
    module: nn.Module,
    checkpoint: str,
    prefix: str | None = None,
    map_location: Any = "cpu",
    partial: bool = False,
) -> FitReport:
    """Load weights as mmengine's ``PretrainedInit`` does, with the conversion and the checks of `fit`.

    Args:
        module: a model, or a part of one.
        checkpoint: a path, a URL, or a name such as ``torchvision://resnet50``.
        prefix: prefix of the part's parameters in the checkpoint, such as ``"backbone."``.
        map_location: see `torch.load`.
        partial: load the weights that fit, and keep the initial values of the others.

    Raises:
        CheckpointError: the checkpoint cannot be read safely; or, unless ``partial``, weights of the module are missing
            or have another shape. The checkpoint of a part may have further weights, such as a classifier.
    """
    loaded = checkpoints.load(checkpoint, map_location)
    key, weights = entry_of(loaded)[0] or "state_dict", checkpoints.state_dict_of(loaded)
    if prefix:
        start = f"{prefix.removesuffix('.')}."
        weights = {k.removeprefix(start): v for k, v in weights.items() if k.startswith(start)}
        if not weights:
            raise CheckpointError(f"{checkpoint}: has no weights with the prefix {start!r}")
    extra = not isinstance(module, BaseModel)
    report = fit(module, {key: weights}, checkpoint, finetune=True, partial=partial, extra=extra)
    if lines := report.lines():
        print_log("\n".join(lines), logger="current")
    return report


class Pretrained(PretrainedInit):
    """mmengine's ``PretrainedInit``, which uses `load_pretrained` for models and parts with a `visionattn.Backbone`.

    Args:
        checkpoint, prefix, map_location: as for ``PretrainedInit``.
        partial: see `load_pretrained`.
    """

    def __init__(
        self, checkpoint: str, prefix: str | None = None, map_location: Any = "cpu", partial: bool = False
    ) -> None:
        super().__init__(checkpoint, prefix, map_location)
        self.partial = partial

    def __call__(self, module: nn.Module) -> None:
        """Load the checkpoint into the module."""
        if not isinstance(module, BaseModel) and not published_parts(module):
            super().__call__(module)  # such as mmdet's ResNet with deformable convolutions, which no file has
            return
        load_pretrained(module, self.checkpoint, self.prefix, self.map_location, self.partial)
        if hasattr(module, "_params_init_info"):
            update_init_info(module, init_info=self._get_init_info())


def install() -> None:
    """Replace mmengine's initializer ``Pretrained``. Calling it again has no further effect."""
    WEIGHT_INITIALIZERS.register_module(name="Pretrained", module=Pretrained, force=True)
