"""Reference implementation of bi-level routing attention: dense and simple; the other backends are tested against it.

A map is divided into ``rows x columns`` regions of equal size, in row-major order; if they do not divide it, it is
padded at the bottom and right first. The routing uses the mean query and the mean key of each region, over all heads
together. Each region attends to the ``topk`` regions whose mean keys have the largest products with its mean query.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.nonfinite import masked_product
from visionattn.kernels.transforms import is_symbolic

__all__ = ["attend_reference", "regions_of", "route_reference"]


def regions_of(length: int, count: int) -> Tensor:
    """The region of each position along one axis."""
    size = -(-length // count)
    return torch.arange(length) // size


def _region_index(shape: tuple[int, int], regions: tuple[int, int]) -> Tensor:
    """The region of each token of the flattened map."""
    row, column = (regions_of(n, count) for n, count in zip(shape, regions, strict=True))
    return (row[:, None] * regions[1] + column[None, :]).flatten()


def _real(padding_mask: Tensor | None, batch: int, tokens: int, device: torch.device) -> Tensor:
    """Boolean ``[B, tokens]``, False for padding."""
    if padding_mask is None:
        return torch.ones(batch, tokens, dtype=torch.bool, device=device)
    return ~padding_mask.flatten(1).expand(batch, tokens)


def route_reference(
    query: Tensor, key: Tensor, regions: tuple[int, int], topk: int, padding_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The selected regions and their unscaled affinities, in descending order, both ``[B, regions, topk]``.

    Padding is excluded from the means. Regions of padding only, and affinities that are not finite, are selected last.
    """
    batch, height, width = query.shape[:3]
    exact = torch.promote_types(query.dtype, torch.float32)
    member = F.one_hot(_region_index((height, width), regions), regions[0] * regions[1]).to(query.device)
    real = _real(padding_mask, batch, height * width, query.device)
    count = (member * real[..., None]).sum(1)  # [B, regions]
    of_token = member.argmax(-1)

    def means(x: Tensor) -> Tensor:
        x = x.flatten(3).flatten(1, 2).to(exact).masked_fill(~real[..., None], 0)
        total = x.new_zeros(batch, count.shape[1], x.shape[-1]).index_add(1, of_token, x)
        return total / count.clamp(min=1)[..., None]

    logits = means(query) @ means(key).transpose(1, 2)
    logits = logits.masked_fill((count == 0)[:, None, :], -torch.inf)
    index = logits.masked_fill(~logits.isfinite(), -torch.inf).topk(topk, dim=-1).indices
    return index, logits.gather(-1, index)


def attend_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_regions: Tensor,
    padding_mask: Tensor | None,
    regions: tuple[int, int],
    scale: float,
) -> Tensor:
    """Dense masked attention. Arguments as in `api.bilevel_routing_attention`; computed in at least float32.

    Args:
        padding_mask: boolean ``[B or 1, H_k, W_k]`` of the map of keys, True for padding.

    Returns:
        ``[B, H, W, heads, value_dim]`` in the dtype of the query; zero where all selected keys are padding.
    """
    batch, heads = query.shape[0], query.shape[-2]
    exact = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.flatten(1, 2).transpose(1, 2).to(exact) for x in (query, key, value))  # [B, heads, tokens, d]
    count = regions[0] * regions[1]
    selected = F.one_hot(key_regions, count).sum(2).bool()  # [B, query region, key region]
    of_query = _region_index(tuple(query.shape[1:3]), regions).to(query.device)
    of_key = _region_index(tuple(key.shape[1:3]), regions).to(query.device)
    allowed = selected[:, of_query][:, :, of_key]
    allowed = allowed & _real(padding_mask, batch, of_key.numel(), query.device)[:, None, :]
    logits = (q * scale) @ k.transpose(-1, -2)
    logits = logits.masked_fill(~allowed[:, None], -torch.inf)
    none = ~allowed.any(-1)[:, None, :, None]
    allowed = allowed[:, None].expand_as(logits)
    probability = torch.softmax(logits.masked_fill(none, 0), dim=-1).masked_fill(~allowed, 0)
    out = probability @ v if is_symbolic(v) else masked_product(probability, v, allowed)
    return out.transpose(1, 2).reshape(*query.shape[:3], heads, value.shape[-1]).to(query.dtype)
