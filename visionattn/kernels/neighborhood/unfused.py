"""Neighborhood attention in two steps with the probabilities in between, as tensors of one number per neighbor.

`na1d`, `na2d` and `na3d` never store probabilities; this module is for callers that need them, such as models with
dropout of the probabilities, or models written for the separate operators of NATTEN (see `visionattn.compat.natten`).
All tensors are ``[batch, heads, *spatial, ...]``. The neighbors of a query are in row-major order of their positions. A
causal axis has its missing neighbors at the end.

The map is divided into the tiles of the PyTorch backend: the scores of a tile are one product, of which the neighbors
of each query are selected. Three operators, which are linear in both arguments, are the gradients of one another:

    scores   s[i, m] = a[i] . b[n(i, m)]         n(i, m): the m-th neighbor of query i
    values   y[i] = sum over m of s[i, m] b[n(i, m)]
    spread   z[j] = sum over (i, m) with n(i, m) = j of s[i, m] a[i]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from visionattn.kernels.neighborhood.gather import axis_neighbors
from visionattn.kernels.neighborhood.geometry import axis_tiles
from visionattn.kernels.neighborhood.tiles import choose_tile
from visionattn.kernels.transforms import full_precision

__all__ = ["bias_of_neighbors", "neighborhood_scores", "neighborhood_values"]

CHUNK_NUMBERS = 1 << 23
"""Numbers in the scores and gathered rows of one chunk of tiles."""

_GEOMETRY = "int[] spatial, int[] kernel_size, int[] stride, int[] dilation, bool[] is_causal"
_NAMES = {name: f"visionattn::neighborhood_{name}" for name in ("scores", "values", "spread")}
torch.library.define(_NAMES["scores"], f"(Tensor a, Tensor b, {_GEOMETRY}) -> Tensor")
torch.library.define(_NAMES["values"], f"(Tensor s, Tensor b, {_GEOMETRY}) -> Tensor")
torch.library.define(_NAMES["spread"], f"(Tensor s, Tensor a, {_GEOMETRY}) -> Tensor")


@dataclass(frozen=True, eq=False)
class _Tiles:
    """Index tables of a map in tiles.

    Attributes:
        queries: tokens of the queries of each tile, ``[tiles, queries]``; partial tiles repeat their last query.
        first: False for such repetitions, ``[tiles, queries]``.
        keys: tokens of the halo of each tile, ``[tiles, halo]``.
        patterns: pattern of each tile, ``[tiles]``.
        place: position in the halo of each neighbor, ``[patterns, queries, neighbors]``.
        attended: False for the missing neighbors of causal axes, ``[patterns, queries, neighbors]``; None if there are
            none.
    """

    queries: Tensor
    first: Tensor
    keys: Tensor
    patterns: Tensor
    place: Tensor
    attended: Tensor | None


def _outer(tables: list[np.ndarray], combine) -> np.ndarray:
    """Combine a table per axis, each ``[n, *m]``, over the products of all dimensions: ``[prod n, *prod m]``."""
    result = tables[0]
    for table in tables[1:]:
        shape = [n * m for n, m in zip(result.shape, table.shape, strict=True)]
        left = result.reshape([x for n in result.shape for x in (n, 1)])
        right = table.reshape([x for n in table.shape for x in (1, n)])
        result = combine(left, right).reshape(shape)
    return result


@lru_cache(maxsize=64)
def _tiles_of(spatial: tuple, kernel: tuple, stride: tuple, dilation: tuple, causal: tuple, device) -> _Tiles:
    tile, _ = choose_tile(spatial, kernel, stride, dilation, causal, 64, 32, False)
    axes = [axis_tiles(*axis) for axis in zip(spatial, kernel, stride, dilation, causal, tile, strict=True)]
    queries, keys, filled, place, attended, patterns = [], [], [], [], [], np.zeros(1, np.int64)
    for axis, cut in enumerate(axes):
        step = prod(spatial[axis + 1 :])
        queries.append(cut.positions(cut.query, cut.tile) * step)
        keys.append(cut.positions(cut.key, cut.halo) * step)
        filled.append(cut.filled)
        bounds = cut.patterns[:, 1:].reshape(-1, cut.tile, 2)
        neighbor = bounds[..., :1] + np.arange(kernel[axis])
        attended.append(neighbor < bounds[..., 1:])
        inside = np.minimum(neighbor, cut.halo - 1)  # of a missing neighbor: any position, it is masked
        place.append(inside * prod(later.halo for later in axes[axis + 1 :]))
        patterns = (patterns[:, None] * len(cut.patterns) + cut.pattern_ids.reshape(-1)).flatten()
    tables = (_outer(queries, np.add), _outer(filled, np.logical_and), _outer(keys, np.add), patterns)
    mask = _outer(attended, np.logical_and)
    return _Tiles(
        *(torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in tables),
        torch.from_numpy(_outer(place, np.add)).to(device),
        None if mask.all() else torch.from_numpy(mask).to(device),
    )


def _chunks(tables: _Tiles, groups: int, width: int):
    """Yield ranges of images and heads, and of tiles, whose scores and rows do not exceed `CHUNK_NUMBERS`."""
    tiles, queries = tables.queries.shape
    one = queries * tables.keys.shape[1] + (queries + tables.keys.shape[1]) * width
    tile_step = min(tiles, max(CHUNK_NUMBERS // one, 1))
    group_step = min(groups, max(CHUNK_NUMBERS // (one * tile_step), 1))
    for group in range(0, groups, group_step):
        for tile in range(0, tiles, tile_step):
            yield slice(group, group + group_step), slice(tile, tile + tile_step)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Gather ``x [groups, tokens, d]`` at ``index [tiles, n]``: ``[groups * tiles, n, d]``."""
    return x.index_select(1, index.flatten()).view(-1, index.shape[1], x.shape[-1])


def _dense(s: Tensor, tables: _Tiles, tiles: slice, once: bool) -> Tensor:
    """Weights of a chunk over its halos, ``[groups * tiles, queries, halo]``, from ``s [groups, tokens, neighbors]``.

    With `once`, repeated queries have no weights.
    """
    pattern = tables.patterns[tiles]
    index = tables.queries[tiles]
    weights = s.index_select(1, index.flatten()).unflatten(1, index.shape)
    if tables.attended is not None:
        weights = weights.masked_fill(~tables.attended[pattern], 0)
    if once:
        weights = weights.masked_fill(~tables.first[tiles][..., None], 0)
    place = tables.place[pattern].expand(weights.shape)
    dense = weights.new_zeros(*weights.shape[:-1], tables.keys.shape[1])
    # Missing neighbors have the weight 0, and the same place as another neighbor.
    return dense.scatter_add_(-1, place, weights).flatten(0, 1)


def _setup(x: Tensor, *geometry) -> tuple[_Tiles, torch.dtype]:
    tables = _tiles_of(*(tuple(values) for values in geometry), x.device)
    return tables, torch.promote_types(x.dtype, torch.float32)


def _flat(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``[batch, heads, *spatial, n]`` as ``[batch * heads, tokens, n]``."""
    return x.reshape(x.shape[0] * x.shape[1], -1, x.shape[-1]).to(dtype)


@torch.library.impl(_NAMES["scores"], "CompositeExplicitAutograd")
def _scores(a, b, *geometry):
    tables, exact = _setup(a, *geometry)
    query, key = _flat(a, exact), _flat(b, exact)
    out = query.new_empty(*query.shape[:2], tables.place.shape[-1])
    for groups, tiles in _chunks(tables, query.shape[0], a.shape[-1]):
        products = _rows(query[groups], tables.queries[tiles]) @ _rows(key[groups], tables.keys[tiles]).mT
        products = products.unflatten(0, (-1, tables.queries[tiles].shape[0]))
        place = tables.place[tables.patterns[tiles]]
        found = products.gather(-1, place.expand(*products.shape[:-1], -1))
        if tables.attended is not None:
            found.masked_fill_(~tables.attended[tables.patterns[tiles]], -torch.inf)
        out[groups].index_copy_(1, tables.queries[tiles].flatten(), found.flatten(1, 2))
    return out.to(a.dtype).view(*a.shape[:-1], -1)


@torch.library.impl(_NAMES["values"], "CompositeExplicitAutograd")
def _values(s, b, *geometry):
    tables, exact = _setup(b, *geometry)
    weights, value = _flat(s, exact), _flat(b, exact)
    out = torch.empty_like(value)
    for groups, tiles in _chunks(tables, value.shape[0], b.shape[-1]):
        dense = _dense(weights[groups], tables, tiles, once=False)
        results = dense @ _rows(value[groups], tables.keys[tiles])
        index = tables.queries[tiles].flatten()
        out[groups].index_copy_(1, index, results.view(-1, len(index), b.shape[-1]))
    return out.to(b.dtype).view(b.shape)


@torch.library.impl(_NAMES["spread"], "CompositeExplicitAutograd")
def _spread(s, a, *geometry):
    tables, exact = _setup(a, *geometry)
    weights, query = _flat(s, exact), _flat(a, exact)
    out = torch.zeros_like(query)
    for groups, tiles in _chunks(tables, query.shape[0], a.shape[-1]):
        dense = _dense(weights[groups], tables, tiles, once=True)
        results = dense.mT @ _rows(query[groups], tables.queries[tiles])
        index = tables.keys[tiles].flatten()
        out[groups].index_add_(1, index, results.view(-1, len(index), a.shape[-1]))
    return out.to(a.dtype).view(a.shape)


@torch.library.register_fake(_NAMES["scores"])
def _(a, b, spatial, kernel_size, *_):
    return a.new_empty(*a.shape[:-1], prod(kernel_size))


@torch.library.register_fake(_NAMES["values"])
def _(s, b, *_):
    return b.new_empty(b.shape)


@torch.library.register_fake(_NAMES["spread"])
def _(s, a, *_):
    return a.new_empty(a.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.geometry = inputs[2:]


def _scores_backward(ctx, grad):
    a, b = ctx.saved_tensors
    ops, geometry = torch.ops.visionattn, ctx.geometry
    return ops.neighborhood_values(grad, b, *geometry), ops.neighborhood_spread(grad, a, *geometry), *[None] * 5


def _values_backward(ctx, grad):
    s, b = ctx.saved_tensors
    return _finite_scores(grad, b, ctx.geometry), torch.ops.visionattn.neighborhood_spread(
        s, grad, *ctx.geometry
    ), *[None] * 5  # fmt: skip


def _spread_backward(ctx, grad):
    s, a = ctx.saved_tensors
    return _finite_scores(a, grad, ctx.geometry), torch.ops.visionattn.neighborhood_values(
        s, grad, *ctx.geometry
    ), *[None] * 5  # fmt: skip


def _finite_scores(a: Tensor, b: Tensor, geometry: Sequence) -> Tensor:
    """Scores as a gradient: 0 for missing neighbors, whose weights are not used."""
    scores = torch.ops.visionattn.neighborhood_scores(a, b, *geometry)
    return scores.masked_fill(scores == -torch.inf, 0) if any(geometry[-1]) else scores


torch.library.register_autograd(_NAMES["scores"], _scores_backward, setup_context=_setup_context)
torch.library.register_autograd(_NAMES["values"], _values_backward, setup_context=_setup_context)
torch.library.register_autograd(_NAMES["spread"], _spread_backward, setup_context=_setup_context)


def _call(operator, a: Tensor, b: Tensor, *geometry: Sequence) -> Tensor:
    """Call an operator; with autocast, in its dtype, but with the accumulation in float32 that the operators have."""
    device, arguments = b.device.type, [list(b.shape[2:-1]), *map(list, geometry)]
    if device != "meta" and torch.is_autocast_enabled(device) and b.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        with full_precision(device):
            return operator(a.to(dtype), b.to(dtype), *arguments)
    return operator(a, b, *arguments)


def neighborhood_scores(
    query: Tensor,
    key: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
) -> Tensor:
    """Products of each query with the keys of its neighborhood, without a scale.

    Args:
        query, key: ``[batch, heads, *spatial, head_dim]`` of one dtype.
        kernel_size, stride, dilation, is_causal: one value per axis, see `visionattn.kernels.na2d`.

    Returns:
        ``[batch, heads, *spatial, prod(kernel_size)]`` in the dtype of the query, -inf for missing neighbors.
    """
    return _call(torch.ops.visionattn.neighborhood_scores, query, key, kernel_size, stride, dilation, is_causal)


def neighborhood_values(
    weights: Tensor,
    value: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
) -> Tensor:
    """Sums over the values of each neighborhood with the given weights, in the order of `neighborhood_scores`.

    Args:
        weights: ``[batch, heads, *spatial, prod(kernel_size)]``; those of missing neighbors are not used.
        value: ``[batch, heads, *spatial, head_dim]`` of the same dtype.
        kernel_size, stride, dilation, is_causal: one value per axis, see `visionattn.kernels.na2d`.

    Returns:
        A tensor of the shape and dtype of the value.
    """
    return _call(torch.ops.visionattn.neighborhood_values, weights, value, kernel_size, stride, dilation, is_causal)


def bias_of_neighbors(
    rpb: Tensor, spatial: Sequence[int], kernel_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Entries of a relative position bias for the scores of `neighborhood_scores`; no causal axes.

    Args:
        rpb: ``[heads, 2 * kernel_size - 1, ...]``, see `visionattn.kernels.na2d`.

    Returns:
        ``[heads, *spatial, prod(kernel_size)]``.
    """
    # torch.compile ignores caches, with a warning.
    make = _bias_index.__wrapped__ if torch.compiler.is_compiling() else _bias_index
    index = make(tuple(spatial), tuple(kernel_size), tuple(stride), tuple(dilation), rpb.device)
    return rpb.flatten(1).index_select(1, index.flatten()).view(rpb.shape[0], *index.shape)


@lru_cache(maxsize=64)
def _bias_index(spatial: tuple, kernel: tuple, stride: tuple, dilation: tuple, device: torch.device) -> Tensor:
    """Entry in the flat bias table of each neighbor, ``[*spatial, neighbors]``; torch.compile can trace it."""
    index = torch.zeros((1, 1), dtype=torch.long, device=device)
    for length, k, s, d in zip(spatial, kernel, stride, dilation, strict=True):
        _, offset, _ = axis_neighbors(length, k, s, d, False, device)
        index = index[:, None, :, None] * (2 * k - 1) + offset[None, :, None, :]
        index = index.flatten(2).flatten(0, 1)
    return index.view(*spatial, -1)
