"""Spatial reduction attention: dense, in fixed sparse groups, or with a mask of selected keys.

Spatial reduction: Wang et al., "Pyramid Vision Transformer" (arXiv 2102.12122). Sparse attention: "NFA-ViT" (arXiv
2504.11922), whose official code uses dense masks for both forms.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor, nn

from visionattn.kernels.exporting import any_symbolic, maximum, pad_end
from visionattn.layers._sdpa import attend

__all__ = ["SpatialReductionAttention", "fixed_sparse_mask", "least_attended"]

CHUNK = 2**22
"""Number of probabilities that `least_attended` computes at a time."""

# Their loops depend on the size of the image, which the trace of an exported program must not: there, the functions of
# these names are single operators, without gradients. `visionattn.inference.export` has their ONNX implementations.
torch.library.define("visionattn::least_attended", "(Tensor query, Tensor key, float scale, float ratio) -> Tensor")
torch.library.define(
    "visionattn::grouped_attention",
    "(Tensor q, Tensor k, Tensor v, SymInt[] size, SymInt[] keys, int reduction, int rate) -> Tensor",
)


def _groups(size: tuple[int, int], cell: int, rate: int) -> Tensor:
    """Return the sparse group of each position of a map with cells of size `cell`, int64 ``[H * W]``."""
    rows, columns = (torch.arange(side) // cell % rate for side in size)
    return (rows[:, None] * rate + columns[None, :]).flatten()


def fixed_sparse_mask(size: tuple[int, int], reduction: int, rate: int = 2) -> Tensor:
    """Return the attention mask of fixed sparse attention, bool ``[H * W, h * w]``.

    The key grid ``(h, w)`` is `size` divided by `reduction`, rounded down, but at least 1. A query attends to the keys
    whose cells have the same row and column modulo `rate` as its own; a query without such a key attends to all keys.

    Args:
        size: height and width of the query map.
        reduction: size of the cell that is reduced to one key.
        rate: groups per axis.
    """
    keys = tuple(max(1, side // reduction) for side in size)
    mask = _groups(size, reduction, rate)[:, None] == _groups(keys, 1, rate)[None, :]
    return mask | ~mask.any(1, keepdim=True)


@lru_cache(maxsize=64)
def _group_indices(size: tuple[int, int], keys: tuple[int, int], reduction: int, rate: int) -> tuple:
    """Return the (queries, keys) indices of each non-empty group, and the permutation that undoes the grouping."""
    query_group, key_group = _groups(size, reduction, rate), _groups(keys, 1, rate)
    pairs = []
    for group in range(rate * rate):
        queries, chosen = (query_group == group).nonzero()[:, 0], (key_group == group).nonzero()[:, 0]
        if len(queries):
            pairs.append((queries, chosen if len(chosen) else torch.arange(len(key_group))))
    return pairs, torch.argsort(torch.cat([queries for queries, _ in pairs]))


@torch.no_grad()
def least_attended(query: Tensor, key: Tensor, scale: float, ratio: float) -> Tensor:
    """Return a mask of the keys with the lowest attention probability for each query, bool ``[B, heads, N, M]``.

    ``max(1, int(ratio * M))`` keys of each query are True. As in the official code, the selection among probabilities
    that underflow to 0 depends on tie-breaking in ``torch.topk``.

    Args:
        query: ``[B, heads, N, d]``.
        key: ``[B, heads, M, d]``.
        scale: scale of the logits.
        ratio: fraction of the keys, in (0, 1].
    """
    if torch.compiler.is_exporting():
        return torch.ops.visionattn.least_attended(query, key, scale, ratio)
    return _least_attended(query, key, scale, ratio)


def _least_attended(query: Tensor, key: Tensor, scale: float, ratio: float) -> Tensor:
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    count = max(1, int(ratio * keys))
    mask = torch.zeros(batch, heads, queries, keys, dtype=torch.bool, device=query.device)
    step = max(1, CHUNK // (batch * heads * keys))
    for start in range(0, queries, step):
        attention = (query[:, :, start : start + step] @ key.transpose(-2, -1)) * scale
        chosen = (-attention.softmax(-1)).topk(count, dim=-1).indices
        mask[:, :, start : start + step].scatter_(3, chosen, True)
    return mask


torch.library.impl("visionattn::least_attended", "CompositeExplicitAutograd", _least_attended)


@torch.library.register_fake("visionattn::least_attended")
def _(query, key, scale, ratio):
    return query.new_empty(*query.shape[:3], key.shape[2], dtype=torch.bool)


def _soft_keep(query: Tensor, key: Tensor, scale: float, hard: Tensor) -> Tensor:
    """Return the mask `hard` with the gradient of a sigmoid of the margin to the largest kept probability."""
    attention = ((query @ key.transpose(-2, -1)) * scale).softmax(-1)
    threshold = attention.masked_fill(~hard, 0).amax(-1, keepdim=True).detach()
    soft = torch.sigmoid((threshold - attention) / (threshold + 1.0 / key.shape[2]))
    return hard.to(soft.dtype) + soft - soft.detach()


@register_notrace_function  # the control flow depends on the input size
def grouped_attention(q: Tensor, k: Tensor, v: Tensor, size: tuple, keys: tuple, reduction: int, rate: int) -> Tensor:
    if torch.compiler.is_exporting():
        return torch.ops.visionattn.grouped_attention(q, k, v, size, keys, reduction, rate)
    return _grouped_attention(q, k, v, size, keys, reduction, rate)


def _grouped_attention(q, k, v, size, keys, reduction, rate):
    pairs, back = _group_indices(tuple(size), tuple(keys), reduction, rate)
    parts = []
    for queries, chosen in pairs:
        queries, chosen = queries.to(q.device), chosen.to(q.device)
        parts.append(attend(q.index_select(2, queries), k.index_select(2, chosen), v.index_select(2, chosen)))
    return torch.cat(parts, 2).index_select(2, back.to(q.device))


torch.library.impl("visionattn::grouped_attention", "CompositeExplicitAutograd", _grouped_attention)


@torch.library.register_fake("visionattn::grouped_attention")
def _(q, k, v, size, keys, reduction, rate):
    return torch.empty_like(q, memory_format=torch.contiguous_format)


class SpatialReductionAttention(nn.Module):
    """Multi-head self-attention with keys and values that are spatially reduced by a factor of `sr_ratio` per axis.

    Parameter names are those of the published MiT and PVT models: ``q``, ``kv``, ``proj`` and, with `sr_ratio` above 1,
    ``sr`` and ``norm``.

    Args:
        dim: channels, a multiple of `num_heads`.
        num_heads: attention heads.
        sr_ratio: reduction factor; 1 for no reduction.
        qkv_bias: add biases to ``q`` and ``kv``.
        sparse_rate: groups per axis in fixed sparse attention.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, sr_ratio: int = 1, qkv_bias: bool = True, sparse_rate: int = 2
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"`dim` must be a multiple of `num_heads`={num_heads}, got {dim}")
        self.num_heads, self.sr_ratio, self.sparse_rate = num_heads, sr_ratio, sparse_rate
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(dim)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def key_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the key grid of a map."""
        return maximum(1, size[0] // self.sr_ratio), maximum(1, size[1] // self.sr_ratio)

    def project(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Project `x`, ``[B, N, dim]``, to queries ``[B, heads, N, d]``, keys and values ``[B, heads, M, d]``."""
        batch, count, dim = x.shape
        heads = self.num_heads
        query = self.q(x).reshape(batch, count, heads, dim // heads).transpose(1, 2)
        if self.sr_ratio > 1:
            grid = x.transpose(1, 2).reshape(batch, dim, *size)
            padded = [maximum(self.sr_ratio, side) for side in size]  # a map may be smaller than one cell
            if any_symbolic(padded):
                grid = pad_end(grid, [dim, *padded])
            elif padded != list(size):
                grid = F.pad(grid, (0, padded[1] - size[1], 0, padded[0] - size[0]))
            x = self.norm(self.sr(grid).flatten(2).transpose(1, 2))
        key, value = self.kv(x).reshape(batch, -1, 2, heads, dim // heads).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def merge(self, heads: Tensor) -> Tensor:
        """Merge heads ``[B, heads, N, d]`` and apply the output projection; returns ``[B, N, dim]``."""
        return self.proj(heads.transpose(1, 2).flatten(2))

    def forward(
        self, x: Tensor, size: tuple[int, int], keep: Tensor | None = None, fixed_sparse: bool = False
    ) -> Tensor:
        """Compute attention.

        Args:
            x: ``[B, H * W, dim]``.
            size: ``(H, W)``.
            keep: mask ``[B, heads or 1, H * W, M]``, nonzero where a query attends to a key; a query without such keys
                attends to all. A floating point mask that requires grad gets a gradient from each kept key.
            fixed_sparse: attend within the groups of `fixed_sparse_mask` only.

        Raises:
            ValueError: if `keep` has the wrong shape.
        """
        query, key, value = self.project(x, size)
        if fixed_sparse:
            out = grouped_attention(
                query, key, value, tuple(size), self.key_size(size), self.sr_ratio, self.sparse_rate
            )
        elif keep is None:
            out = attend(query, key, value)
        else:
            expected = (query.shape[2], key.shape[2])
            if keep.dim() != 4 or keep.shape[0] != x.shape[0] or tuple(keep.shape[2:]) != expected:
                raise ValueError(
                    f"`keep` must have shape [{x.shape[0]}, {self.num_heads} or 1, {expected[0]}, {expected[1]}] for a "
                    f"map of {size[0]}x{size[1]}, got {tuple(keep.shape)}"
                )
            keep = keep.to(query.device)
            kept = keep.detach() != 0
            hard = kept | ~kept.any(-1, keepdim=True)
            if keep.requires_grad:
                scores = (query @ key.transpose(-2, -1)) * self.scale
                weights = scores.masked_fill(~hard, torch.finfo(scores.dtype).min).softmax(-1)
                weights = weights * torch.where(kept, keep, 1.0).to(weights.dtype)
                out = (weights / weights.sum(-1, keepdim=True)) @ value
            else:
                out = attend(query, key, value, attn_mask=hard)
        return self.merge(out)

    def forward_with_mask(
        self, x: Tensor, size: tuple[int, int], ratio: float, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute dense attention, and the mask of the keys with the lowest attention probability.

        Args:
            x: ``[B, H * W, dim]``.
            size: ``(H, W)``.
            ratio: fraction of the keys in the mask.
            differentiable: return a floating point mask with the gradient of a soft threshold (straight-through).

        Returns:
            ``[B, H * W, dim]`` and ``[B, heads, H * W, M]``, bool unless `differentiable`.
        """
        query, key, value = self.project(x, size)
        mask = least_attended(query, key, self.scale, ratio)
        if differentiable:
            mask = _soft_keep(query, key, self.scale, mask)
        return self.merge(attend(query, key, value)), mask
