"""Checkpoints of TimeSformer and of its pose-aware kin under our names, which are theirs; and those of image ViTs."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.backbones._conversion import Conversion, backbone_tensors

__all__ = ["convert_timesformer"]


def convert_timesformer(state_dict: Mapping[str, Any], model: nn.Module) -> Conversion:
    """The tensors of a checkpoint for a `visionattn.backbones.timesformer.TimeSformer`.

    Positions and times are interpolated (nearest) to the model's numbers. From an image ViT the spatial attention and
    its norm also start the temporal ones, as published. What of pose the checkpoint lacks keeps its own values.
    """
    conversion = backbone_tensors(state_dict)
    given, own = conversion.state_dict, model.state_dict()
    if not any(".temporal_attn." in name for name in given):
        _start_time(conversion, own)
    for name in [n for n in given if n.startswith(("head_dist.", "dist_token"))]:
        conversion.drop(name, "of distillation, which the model has not")
    for name in [n for n in given if ".pose_blocks." in n and n not in own]:
        stem = name.split(".pose_blocks.")[0]
        if not any(n.startswith(f"{stem}.pose_blocks.") for n in own):
            conversion.drop(name, "the model has no pose blocks there")
    for name in own:
        if ".pose_blocks." in name and name not in given:
            conversion.missing[name] = "the checkpoint has no such pose block; it keeps its own values"
    grid = getattr(model.patch_embed, "grid_size", None)
    for name in ("pos_embed", "time_embed"):
        if name in given and name in own and given[name].shape != own[name].shape and given[name].ndim == 3:
            resized = _positions(given[name], grid) if name == "pos_embed" else _times(given[name], own[name].shape[1])
            if resized is not None and resized.shape == own[name].shape:
                conversion.interpolated[name] = f"{given[name].shape[1]} to {own[name].shape[1]}"
                given[name] = resized
    return conversion


def _start_time(conversion: Conversion, own: Mapping[str, Tensor]) -> None:
    given = conversion.state_dict
    for name in list(given):
        found = re.fullmatch(r"(blocks\.\d+)\.(attn|norm1)\.(.+)", name)
        if found:
            given[f"{found[1]}.temporal_{found[2]}.{found[3]}"] = given[name].clone()
    for name in own:
        if (".temporal_fc." in name and ".pose_blocks." not in name) or name == "time_embed":
            conversion.missing[name] = "the checkpoint is of an image model; it keeps its own values"


def _positions(table: Tensor, grid: tuple[int, int]) -> Tensor | None:
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side + 1 != table.shape[1]:
        return None
    patches = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(patches.float(), grid, mode="nearest").to(table.dtype)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], 1)


def _times(table: Tensor, frames: int) -> Tensor:
    return F.interpolate(table.float().transpose(1, 2), frames, mode="nearest").transpose(1, 2).to(table.dtype)
