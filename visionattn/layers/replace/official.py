"""Convert official checkpoints of models with replaced attention."""

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from timm.models.davit import DaVit
from timm.models.davit import checkpoint_filter_fn as davit_filter
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from timm.models.pvt_v2 import checkpoint_filter_fn as pvt_filter
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import Tensor, nn

from visionattn.errors import CheckpointError

__all__ = ["CONVERTED", "filter_official"]

_FILTERS = {
    VisionTransformer: vit_filter,
    SwinTransformer: swin_filter,
    DaVit: davit_filter,
    PyramidVisionTransformerV2: pvt_filter,
}
CONVERTED = tuple(_FILTERS)  # classes of models whose checkpoints are converted
_LENGTH_AXES = {"ah_bias": 3, "aw_bias": 4, "ha_bias": 2, "wa_bias": 3}  # axis of the map's height or width


def filter_official(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Convert an official checkpoint of Agent-DeiT, Agent-Swin, InLine-DeiT or InLine-Swin to timm's parameter names.

    This is a ``filter_fn`` of timm for a model after `replace_attention`:
    ``timm.models.load_checkpoint(model, path, filter_fn=filter_official)``. The result loads strictly. Containers,
    DataParallel prefixes and computed buffers are removed, stages are renumbered, and position biases are interpolated
    if the model has another size.

    Args:
        state_dict: the official checkpoint, plain or in ``{"model": ...}`` or ``{"state_dict": ...}``.
        model: timm's `VisionTransformer`, `SwinTransformer`, `DaVit` or `PyramidVisionTransformerV2`, with the same
            attention replaced as in the checkpoint. There are no official checkpoints of the last two; those of timm's
            names are converted.

    Raises:
        CheckpointError: if the model is of another class, the checkpoint has no tensors, or it has window attention in
            modules that were replaced in the model.
    """
    timms_filter = next((function for kind, function in _FILTERS.items() if isinstance(model, kind)), None)
    if timms_filter is None:
        names = ", ".join(kind.__name__ for kind in _FILTERS)
        raise CheckpointError(f"`model` must be one of {names} of timm, got a {type(model).__name__}")
    for wrapper in ("model", "state_dict"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    tensors = {re.sub(r"^(module\.)+", "", name): t for name, t in state_dict.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CheckpointError("the checkpoint has no tensors")
    replaced = isinstance(model, SwinTransformer) and [
        name for name in tensors if name.endswith("relative_position_bias_table") and name not in model.state_dict()
    ]
    if replaced:
        raise CheckpointError(
            f"the checkpoint has window attention in {replaced[0].rsplit('.', 1)[0]}, which was replaced in the model; "
            "set `where` of `replace_attention` to the modules that the checkpoint replaces"
        )
    tensors = timms_filter(tensors, model)
    own = model.state_dict()
    return {name: _resize_bias(name, tensor, own.get(name)) for name, tensor in tensors.items()}


def _resize_bias(name: str, tensor: Tensor, like: Tensor | None) -> Tensor:
    """Interpolate (linear) a position bias of agent attention to the length in `like`."""
    axis = _LENGTH_AXES.get(name.rsplit(".", 1)[-1])
    if axis is None or like is None or tensor.dim() != like.dim() or tensor.shape[axis] == like.shape[axis]:
        return tensor
    moved = tensor.movedim(axis, -1)
    rows = F.interpolate(moved.reshape(1, -1, moved.shape[-1]).float(), like.shape[axis], mode="linear")
    return rows.view(*moved.shape[:-1], -1).movedim(-1, axis).to(tensor.dtype)
