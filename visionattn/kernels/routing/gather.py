"""Attention of regions with differentiable operators, for transforms (see `kernels.transforms`).

It stores ``topk`` copies of the keys and values.
"""

import torch
from torch import Tensor

from visionattn.kernels.routing.regions import padded

__all__ = ["attend_gather"]


def _split(x: Tensor, regions: tuple[int, int], value: float = 0.0) -> Tensor:
    """``[B, H, W, ...]``, padded, to ``[B, regions, tokens, ...]``."""
    x = padded(x, regions, value)
    x = x.unflatten(2, (regions[1], -1)).unflatten(1, (regions[0], -1)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


def attend_gather(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_regions: Tensor,
    padding_mask: Tensor | None,
    regions: tuple[int, int],
    scale: float,
) -> Tensor:
    """Attention of each region to its selected regions; arguments as in `reference.attend_reference`."""
    exact = torch.promote_types(query.dtype, torch.float32)
    batch, height, width = query.shape[:3]
    mask = torch.zeros_like(key[..., 0, 0], dtype=torch.bool) if padding_mask is None else padding_mask
    mask = mask.expand(key.shape[:3])
    key, value = (x.masked_fill(mask[..., None, None], 0) for x in (key, value))
    image = torch.arange(batch, device=query.device)[:, None, None]
    k, v = (_split(x.to(exact), regions)[image, key_regions].flatten(2, 3) for x in (key, value))
    hidden = _split(mask, regions, value=True)[image, key_regions].flatten(2, 3)[:, :, None, None]
    q = _split(query.to(exact), regions)
    scores = torch.einsum("brqhd,brthd->brhqt", q * scale, k)
    nothing = hidden.all(-1, keepdim=True)
    scores = scores.masked_fill(hidden & ~nothing, -torch.inf)
    probability = scores.softmax(-1).masked_fill(hidden, 0)
    out = torch.einsum("brhqt,brthd->brqhd", probability, v)
    size = (-(-height // regions[0]), -(-width // regions[1]))
    out = out.unflatten(2, size).unflatten(1, regions).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return out[:, :height, :width].to(query.dtype)
