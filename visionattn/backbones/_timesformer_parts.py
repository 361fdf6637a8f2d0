"""Embeddings, pose masks, checks and the resizing of weights of TimeSformer."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, trunc_normal_
from torch import Tensor, nn

from visionattn.backbones._conversion import Conversion
from visionattn.layers.pose_attention import ATTENTIONS

LAYOUTS = ("tyx", "legacy")


@register_notrace_function  # torch.fx does not wrap functions whose names start with an underscore
def to_frames(x: Tensor) -> Tensor:
    """Return the frames ``[B * T, C, H, W]`` of clips or images."""
    if x.ndim not in (4, 5):
        raise ValueError(f"`x` must be [B, channels, T, H, W] or [B, channels, H, W], got shape {tuple(x.shape)}")
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)


@register_notrace_function
def add_embeddings(
    patches: Tensor,
    x: Tensor,
    pos_embed: Tensor,
    time_embed: Tensor,
    grid_size: tuple[int, int],
    patch_size: tuple[int, int],
) -> Tensor:
    """Add position and time embeddings to the patches ``[B * T, N, C]`` of clips `x`; returns ``[B, N, T, C]``."""
    table = pos_embed[:, 1:]
    rows, columns = (-(-side // patch) for side, patch in zip(x.shape[-2:], patch_size, strict=True))
    if (rows, columns) != grid_size:
        grid = table.transpose(1, 2).unflatten(2, grid_size)
        table = F.interpolate(grid, (rows, columns), mode="nearest").flatten(2).transpose(1, 2)
    T = x.shape[2] if x.ndim == 5 else 1
    if time_embed.shape[1] != T:
        time_embed = F.interpolate(time_embed.transpose(1, 2), T, mode="nearest").transpose(1, 2)
    return (patches + table).unflatten(0, (x.shape[0], T)).transpose(1, 2) + time_embed[:, None]


@register_notrace_function
def pose_masks(
    pose: Tensor | None, patches: Tensor, x: Tensor, patch_size: tuple[int, int], layout: str, attention: str
) -> tuple[Tensor | None, Tensor | None]:
    """Return the mask ``[B, N, T]`` of the patches to replace and, for the published code, the attention mask."""
    if pose is None:  # in traced graphs, which always have the argument
        return None, None
    B, N, T, _ = patches.shape
    flat = layout == "legacy" and pose.ndim == 2
    grid = (-(-side // patch) for side, patch in zip(x.shape[-2:], patch_size, strict=True))
    expected = (B, T * N) if flat else (B, T, *grid)
    if tuple(pose.shape) != expected:
        raise ValueError(f"`pose` must have shape {expected} for this clip, got {tuple(pose.shape)}")
    if layout == "tyx":
        return pose.flatten(2).transpose(1, 2), None
    vector = pose if flat else pose.transpose(2, 3).reshape(B, T * N)
    replaced = vector.view(B, N, T)
    return replaced, replaced if attention == "joint" else vector.view(B, T, N).transpose(1, 2)


def call(module: nn.Module, *inputs: Any) -> Any:
    return module(*inputs)


def init_linear(module: nn.Module, std: float = 0.02) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def check_arguments(
    depth: int, dim: int, heads: int, paab: Sequence[int], attention: str, number: int, paat: Sequence[int],
    joints: int, layout: str,
) -> None:  # fmt: skip
    if dim % heads:
        raise ValueError(f"`embed_dim` must be a multiple of `num_heads`={heads}, got {dim}")
    for name, places in (("paab", paab), ("paat", paat)):
        if any(isinstance(p, bool) or not isinstance(p, int) or not 1 <= p <= depth for p in places):
            raise ValueError(f"`{name}` must be block numbers in 1..{depth}, got {tuple(places)}")
        if len(set(places)) != len(places):
            raise ValueError(f"`{name}` must not contain a block twice, got {tuple(places)}")
    if set(paab) & set(paat):
        raise ValueError(f"`paab` and `paat` must not share a block, got {tuple(paab)} and {tuple(paat)}")
    for name, value, allowed in (("paab_attention", attention, ATTENTIONS), ("mask_layout", layout, LAYOUTS)):
        if value not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}")
    for name, value in (("num_pose_blocks", number), ("num_joints", joints)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")


def initialize_temporal(conversion: Conversion, own: Mapping[str, Tensor]) -> None:
    """Initialize temporal attention and norms from the spatial ones of an image ViT."""
    given = conversion.state_dict
    for name in list(given):
        found = re.fullmatch(r"(blocks\.\d+)\.(attn|norm1)\.(.+)", name)
        if found:
            given[f"{found[1]}.temporal_{found[2]}.{found[3]}"] = given[name].clone()
    for name in own:
        if (".temporal_fc." in name and ".pose_blocks." not in name) or name == "time_embed":
            conversion.missing[name] = "the checkpoint is of an image model"


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor | None:
    side = round((table.shape[1] - 1) ** 0.5)
    if side * side + 1 != table.shape[1]:
        return None
    patches = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    resized = F.interpolate(patches.float(), grid, mode="nearest").to(table.dtype)
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], 1)


def resize_times(table: Tensor, frames: int) -> Tensor:
    return F.interpolate(table.float().transpose(1, 2), frames, mode="nearest").transpose(1, 2).to(table.dtype)
