"""Dense masked attention on CPU, for small maps where each region attends to a large part of the map.

With few tokens per region the products of a chunk are too small to be efficient, and PyTorch's fused attention is
faster although it computes masked pairs.
"""

from functools import lru_cache

import torch
from torch import Tensor

from visionattn.kernels.routing.regions import masked_bias, nothing_attended, region_size

__all__ = ["forward", "is_better"]

# Limit on the bytes of the mask; images are processed in groups to stay below it.
MASK_BYTES = 1 << 22
# Bytes of the scores of one image up to which two separate matrix products stay in cache and are faster.
SCORE_BYTES = 1 << 22


def is_better(q: Tensor, k: Tensor, v: Tensor, topk: int, regions: tuple[int, int]) -> bool:
    """Return True if dense attention is supported and faster according to `benchmarks/routing_cpu.py`."""
    if q.device.type != "cpu" or q.shape[-1] != v.shape[-1]:
        return False
    if not q.stride(-1) == k.stride(-1) == v.stride(-1) == 1:
        return False
    count = regions[0] * regions[1]
    if topk == count:
        return True
    pairs = q.shape[1] * q.shape[2] * k.shape[1] * k.shape[2]
    if pairs * max(4, q.element_size()) > MASK_BYTES:
        return False
    size = region_size(*q.shape[1:3], regions)
    tokens = size[0] * size[1]
    return 2 * topk >= count or tokens == 1 or (4 * topk >= count and tokens <= 9)


@lru_cache(maxsize=64)
def _region_of(shape: tuple[int, int], regions: tuple[int, int]) -> Tensor:
    """The region of each token of the flattened map."""
    size = region_size(*shape, regions)
    row, column = (torch.arange(n) // length for n, length in zip(shape, size, strict=True))
    return (row[:, None] * regions[1] + column).flatten()


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Attention of one image, ``[heads, tokens, d]``, with a bias ``[1, queries, keys]``."""
    if bias is None:
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    else:
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, -1, out=scores), v)


def forward(
    q: Tensor, k: Tensor, v: Tensor, key_regions: Tensor, mask: Tensor | None, regions: tuple[int, int], scale: float
) -> Tensor:
    """Attention of each region to its selected regions; arguments as in `reference.attend_reference`."""
    batch, count, topk = key_regions.shape
    hidden = None
    if mask is not None:  # one region for the whole map, so this is the bias of its tokens
        hidden = masked_bias(tuple(k.shape[1:3]), (1, 1), mask, q.dtype, q.device)
    of_query, of_key = _region_of(tuple(q.shape[1:3]), regions), _region_of(tuple(k.shape[1:3]), regions)
    pair_bytes = of_query.numel() * of_key.numel() * q.element_size()
    plain = q.element_size() >= 4 and q.shape[3] * pair_bytes <= SCORE_BYTES
    step = 1 if plain else max(1, batch if topk == count else MASK_BYTES // pair_bytes)
    out = q.new_empty(q.shape)
    heads_first = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)]
    for start in range(0, batch, step):
        part = slice(start, min(start + step, batch))
        bias = None if hidden is None else hidden[part if hidden.shape[0] > 1 else slice(None)]
        if topk < count:
            selected = torch.full((part.stop - start, count, count), torch.finfo(q.dtype).min, dtype=q.dtype)
            selected.scatter_(2, key_regions[part], 0)
            selected = selected.index_select(1, of_query).index_select(2, of_key)
            bias = selected if bias is None else torch.minimum(selected, bias)
        if plain:
            result = _attend(*(x[start] for x in heads_first), bias, scale)[None]
        else:
            if bias is not None:
                bias = bias[:, None].expand(part.stop - start, q.shape[3], of_query.numel(), -1)
            result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(x[part] for x in heads_first), 0.0, False, attn_mask=bias, scale=scale
            )[0]
        out[part].flatten(1, 2).copy_(result.transpose(1, 2))
    by_region = masked_bias(tuple(k.shape[1:3]), regions, mask, q.dtype, q.device)
    dead = None if by_region is None else nothing_attended(by_region, key_regions)
    if dead is not None:
        out.masked_fill_(dead.index_select(1, of_query).view(*q.shape[:3], 1, 1), 0)
    return out
