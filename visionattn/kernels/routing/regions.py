"""Conversion between maps and lists of regions, shared by the routing and the PyTorch backend."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["join", "masked_bias", "nothing_attended", "padded", "region_size", "split"]


def region_size(height: int, width: int, regions: tuple[int, int]) -> tuple[int, int]:
    """Tokens of a region per axis; the last regions are padded if the regions do not divide the map."""
    return -(-height // regions[0]), -(-width // regions[1])


def padded(x: Tensor, regions: tuple[int, int], value: float = 0.0) -> Tensor:
    """``x [B, H, W, ...]`` padded at the bottom and right to a multiple of the region size."""
    height, width = x.shape[1:3]
    size = region_size(height, width, regions)
    bottom, right = size[0] * regions[0] - height, size[1] * regions[1] - width
    if bottom or right:
        x = F.pad(x, (0, 0) * (x.dim() - 3) + (0, right, 0, bottom), value=value)
    return x


def split(x: Tensor, regions: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """``[B, H, W, heads, d]`` to a copy ``[B * heads * regions, tokens, d]`` of the given dtype."""
    x = padded(x, regions)
    batch, height, width, heads, dim = x.shape
    rows, columns = height // regions[0], width // regions[1]
    x = x.unflatten(1, (regions[0], rows)).unflatten(3, (regions[1], columns)).permute(0, 5, 1, 3, 2, 4, 6)
    result = torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)
    return result.view(batch * heads * regions[0] * regions[1], rows * columns, dim)


def join(x: Tensor, shape: tuple[int, ...], regions: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The inverse of `split`: a contiguous map ``[B, H, W, heads, d]`` of the given dtype, without padding."""
    batch, height, width, heads, dim = shape
    rows, columns = region_size(height, width, regions)
    x = x.view(batch, heads, *regions, rows, columns, dim).permute(0, 2, 4, 3, 5, 1, 6)
    if rows * regions[0] == height and columns * regions[1] == width:
        result = torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)
        return result.view(shape)
    x = x.reshape(batch, rows * regions[0], columns * regions[1], heads, dim)[:, :height, :width]
    return torch.empty(shape, dtype=dtype, device=x.device).copy_(x)


def masked_bias(
    shape: tuple[int, int],
    regions: tuple[int, int],
    padding_mask: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """Additive mask of keys, ``[B or 1, regions, tokens]``: 0, or the lowest finite number of the dtype for padding.

    None if there is no padding. It is finite so that rows of padding only stay finite.
    """
    size = region_size(*shape, regions)
    if padding_mask is None:
        if size[0] * regions[0] == shape[0] and size[1] * regions[1] == shape[1]:
            return None
        padding_mask = torch.zeros(1, *shape, dtype=torch.bool, device=device)
    mask = padded(padding_mask, regions, value=True)
    mask = mask.unflatten(1, (regions[0], size[0])).unflatten(3, (regions[1], size[1])).transpose(2, 3)
    mask = mask.reshape(mask.shape[0], regions[0] * regions[1], size[0] * size[1])
    return torch.zeros(mask.shape, dtype=dtype, device=device).masked_fill_(mask, torch.finfo(dtype).min)


def nothing_attended(bias: Tensor, key_regions: Tensor) -> Tensor | None:
    """Boolean ``[B, regions]``: regions whose selected regions contain only padding; None if there are none.

    Args:
        bias: result of `masked_bias`.
        key_regions: ``[B, regions, topk]``.
    """
    filled = (bias == 0).any(-1).expand(key_regions.shape[0], -1)
    batch = torch.arange(key_regions.shape[0], device=bias.device)[:, None, None]
    dead = ~filled[batch, key_regions].any(-1)
    return dead if dead.any() else None
