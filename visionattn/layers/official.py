"""Published checkpoints of models with other attention: Agent-DeiT, Agent-Swin, InLine-DeiT, InLine-Swin."""

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer import checkpoint_filter_fn as swin_filter
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as vit_filter
from torch import Tensor, nn

from visionattn.errors import CheckpointError

__all__ = ["filter_official"]

_LENGTH = {"ah_bias": 3, "aw_bias": 4, "ha_bias": 2, "wa_bias": 3}  # axis of a table that is as long as the map


def filter_official(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """A published checkpoint under the names of timm, for a model after `replace_attention`.

    A ``filter_fn`` of timm: ``timm.models.load_checkpoint(model, path, filter_fn=filter_official)``. What it returns
    loads strictly. Containers, prefixes of data parallelism and computed buffers are taken off, stages are renumbered
    as timm has them, and what is learned of positions is interpolated where the model is for another size.

    Args:
        state_dict: as published, alone or in ``{"model": ...}`` or ``{"state_dict": ...}``.
        model: timm's `VisionTransformer` or `SwinTransformer`, with its attention replaced as in the checkpoint.

    Raises:
        CheckpointError: the model is of another class, or the checkpoint holds no tensors.
    """
    if not isinstance(model, (VisionTransformer, SwinTransformer)):
        raise CheckpointError(f"model={type(model).__name__} must be a VisionTransformer or SwinTransformer of timm")
    for wrapper in ("model", "state_dict"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    tensors = {re.sub(r"^(module\.)+", "", name): t for name, t in state_dict.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CheckpointError("the checkpoint holds no tensors")
    replaced = isinstance(model, SwinTransformer) and [
        name for name in tensors if name.endswith("relative_position_bias_table") and name not in model.state_dict()
    ]
    if replaced:
        raise CheckpointError(
            f"the checkpoint has window attention in {replaced[0].rsplit('.', 1)[0]}, which was replaced in the model; "
            "replace where the checkpoint has it, by where="
        )
    tensors = swin_filter(tensors, model) if isinstance(model, SwinTransformer) else vit_filter(tensors, model)
    own = model.state_dict()
    return {name: _resize(name, tensor, own.get(name)) for name, tensor in tensors.items()}


def _resize(name: str, tensor: Tensor, like: Tensor | None) -> Tensor:
    """A table of agent attention at another length of the map, linearly."""
    axis = _LENGTH.get(name.rsplit(".", 1)[-1])
    if axis is None or like is None or tensor.dim() != like.dim() or tensor.shape[axis] == like.shape[axis]:
        return tensor
    moved = tensor.movedim(axis, -1)
    rows = F.interpolate(moved.reshape(1, -1, moved.shape[-1]).float(), like.shape[axis], mode="linear")
    return rows.view(*moved.shape[:-1], -1).movedim(-1, axis).to(tensor.dtype)
