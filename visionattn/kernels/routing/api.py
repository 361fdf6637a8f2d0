"""`bilevel_routing_attention`: each region of a map attends to the regions that match it best."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import backends
from visionattn.kernels.routing.gather import attend_gather
from visionattn.kernels.routing.ops import region_means_triton, routing_attention_torch, routing_attention_triton
from visionattn.kernels.routing.reference import attend_reference, route_reference
from visionattn.kernels.routing.regions import region_size
from visionattn.kernels.transforms import autocast_dtype, full_precision, is_transformed

__all__ = ["bilevel_routing_attention", "route_regions"]

OPERATOR = "bilevel_routing_attention"


def _pair(num_regions: int | Sequence[int]) -> tuple[int, int]:
    regions = tuple(num_regions) if isinstance(num_regions, Sequence) else (num_regions,) * 2
    whole = all(isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool) for n in regions)
    if len(regions) != 2 or not whole or min(regions) < 1:
        raise ValueError(f"`num_regions` must be at least 1, or a pair (rows, columns), got {num_regions!r}")
    return regions


def _check_topk(topk: int, regions: tuple[int, int]) -> None:
    count = regions[0] * regions[1]
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= count:
        raise ValueError(
            f"`topk` must be an integer from 1 to the number of regions, {count} for num_regions={regions}, "
            f"got {topk!r}"
        )


def _check_map(name: str, x: Tensor, query: Tensor) -> None:
    if x.dim() != 5:
        raise ValueError(
            f"`{name}` must have 5 dimensions (batch, height, width, heads, head_dim), got shape {list(x.shape)}"
        )
    if x.dtype != query.dtype or x.device != query.device:
        raise ValueError(
            f"`{name}` must have the dtype and device of `query`, {query.dtype} on {query.device}, "
            f"got {x.dtype} on {x.device}"
        )
    if x.shape[0] != query.shape[0] or x.shape[-2] != query.shape[-2]:
        raise ValueError(
            f"`{name}` must have the batch and heads of `query`, {query.shape[0]} and {query.shape[-2]}, "
            f"got {x.shape[0]} and {x.shape[-2]}"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"`{name}` must not be empty except for the batch, got shape {list(x.shape)}")
    if x.dtype not in backends.DTYPES:
        raise ValueError(f"`{name}` must have a dtype of {', '.join(map(str, backends.DTYPES))}, got {x.dtype}")


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_map(name, x, query)
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"`key` must have the head_dim of `query`, {query.shape[-1]}, got {key.shape[-1]}")
    if value.shape[1:3] != key.shape[1:3]:
        sizes = f"{list(key.shape[1:3])}, got {list(value.shape[1:3])}"
        raise ValueError(f"`value` must have the height and width of `key`, {sizes}")


def _check_mask(padding_mask: Tensor, key: Tensor) -> Tensor:
    """The mask as ``[B or 1, H, W]``."""
    shape = tuple(key.shape[:3])
    if padding_mask.dtype != torch.bool or padding_mask.device != key.device:
        raise ValueError(
            f"`padding_mask` must be torch.bool on {key.device}, got {padding_mask.dtype} on {padding_mask.device}"
        )
    if tuple(padding_mask.shape) not in (shape, (1, *shape[1:]), shape[1:]):
        raise ValueError(
            f"`padding_mask` must have shape {list(shape)} or {list(shape[1:])}, got {list(padding_mask.shape)}"
        )
    return padding_mask if padding_mask.dim() == 3 else padding_mask[None]


def _check_key_regions(key_regions: Tensor, batch: int, regions: tuple[int, int], topk: int, device) -> None:
    count = regions[0] * regions[1]
    if tuple(key_regions.shape) != (batch, count, topk):
        raise ValueError(
            f"`key_regions` must have shape {[batch, count, topk]} (batch, regions, k), got {list(key_regions.shape)}"
        )
    if key_regions.dtype != torch.long or key_regions.device != device:
        raise ValueError(f"`key_regions` must be int64 on {device}, got {key_regions.dtype} on {key_regions.device}")


def _means(x: Tensor, regions: tuple[int, int], padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Mean of each region without padding, ``[B, regions, heads * d]``, and a mask of empty regions or None.

    Average pooling of a channels-last view with the size of a region as window is the fastest implementation on CPU; it
    excludes positions outside the map.
    """
    height, width = x.shape[1:3]
    size = region_size(height, width, regions)
    x = x.flatten(3).permute(0, 3, 1, 2)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if padding_mask is not None:
        real = (~padding_mask[:, None]).to(x.dtype)
        x = x.masked_fill(padding_mask[:, None], 0)  # not a product, as padding may be NaN
    pooled = F.avg_pool2d(x, size, size, ceil_mode=True, count_include_pad=False)
    share = None
    if padding_mask is not None:
        share = F.avg_pool2d(real, size, size, ceil_mode=True, count_include_pad=False)
        pooled = pooled / share.where(share > 0, 1)
    rows, columns = pooled.shape[2:]
    missing = (0, regions[1] - columns, 0, regions[0] - rows)
    if any(missing):  # some regions have no tokens
        if share is None:
            share = pooled.new_ones(1, 1, rows, columns)
        pooled, share = F.pad(pooled, missing), F.pad(share, missing)
    return pooled.flatten(2).transpose(1, 2), None if share is None else (share == 0).flatten(2)


def _route(query, key, regions, topk, padding_mask) -> tuple[Tensor, Tensor]:
    """The selected regions ``[B, regions, topk]``, and the affinities of all ``[B, regions, regions]``."""
    q, _ = _means(query, regions, padding_mask)
    k, empty = _means(key, regions, padding_mask)
    return _select(q, k, empty, topk)


def _route_triton(query, key, regions, topk, padding_mask) -> tuple[Tensor, Tensor]:
    """As `_route`, without float32 copies of queries and keys; not differentiable."""
    height, width = query.shape[1:3]
    size = region_size(height, width, regions)
    q, k, count = region_means_triton(query, key, padding_mask, regions)
    all_filled = (regions[0] - 1) * size[0] < height and (regions[1] - 1) * size[1] < width
    return _select(q, k, None if all_filled and padding_mask is None else (count == 0)[:, None], topk)


def _select(q: Tensor, k: Tensor, empty: Tensor | None, topk: int) -> tuple[Tensor, Tensor]:
    """The routing from the means, and a mask of regions without tokens or None."""
    logits = q @ k.transpose(1, 2)
    if empty is not None:
        logits = logits.masked_fill(empty, -torch.inf)
    # NaN would be the largest, so that all regions would attend to a region with NaN in one key.
    return logits.nan_to_num(-torch.inf, -torch.inf, -torch.inf).topk(topk, dim=-1).indices, logits


def route_regions(
    query: Tensor,
    key: Tensor,
    num_regions: int | Sequence[int],
    topk: int,
    *,
    padding_mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The routing step of `bilevel_routing_attention`: the regions that each region attends to.

    The affinity of two regions is the product of the mean query of one with the mean key of the other, over all heads
    together; the `topk` regions with the largest affinities are selected. Computed in at least float32. The affinities
    are differentiable here, unlike in the attention.

    Args:
        query: ``[batch, height, width, heads, head_dim]``.
        key: same shape as the query.
        num_regions: number of regions per axis, one value or (rows, columns).
        topk: number of regions to select, from 1 to all.
        padding_mask: as in `bilevel_routing_attention`.
        backend: ``"reference"``, or any other value for the same fast implementation.

    Returns:
        Indices of the selected regions in row-major order, int64, in descending order of affinity; and their unscaled
        affinities in float32 (float64 for float64); both ``[batch, rows * columns, topk]``.

    Raises:
        ValueError: invalid arguments.
    """
    regions = _pair(num_regions)
    for name, x in (("query", query), ("key", key)):
        _check_map(name, x, query)
    if query.shape != key.shape:
        raise ValueError(f"`key` must have the shape of `query`, {list(query.shape)}, got {list(key.shape)}")
    _check_topk(topk, regions)
    if padding_mask is not None:
        padding_mask = _check_mask(padding_mask, key)
    reference = backends.select(OPERATOR, query.device, query.dtype, backend) == "reference"
    with full_precision(query.device.type):
        if reference:
            return route_reference(query, key, regions, topk, padding_mask)
        index, logits = _route(query, key, regions, topk, padding_mask)
        return index, logits.gather(-1, index)


def bilevel_routing_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_regions: int | Sequence[int],
    topk: int,
    *,
    scale: float | None = None,
    key_regions: Tensor | None = None,
    padding_mask: Tensor | None = None,
    return_routing: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Bi-level routing attention (Zhu et al., arXiv 2303.08810, section 3.2).

    The map is divided into regions. Each region selects the `topk` regions with the largest products of its mean query
    with their mean keys, the same ones for all heads; its tokens then attend to all tokens of these regions. The
    selection is not differentiable.

    If the regions do not divide the map, those at the bottom and right are smaller (the size of a region is the length
    divided by the number of regions, rounded up) or empty. Positions outside the map are excluded from means and
    attention. The published models attend to zero padding; for the same behavior, pad the map before the call.

    Args:
        query: ``[batch, height, width, heads, head_dim]``.
        key: ``[batch, height, width, heads, head_dim]``. With `key_regions`, its map may have another size, such as
            pooled keys, and is divided into the same number of regions.
        value: ``[batch, height, width, heads, value_dim]``, with the height and width of the key.
        num_regions: number of regions per axis (not their size), one value or (rows, columns).
        topk: number of regions that each region attends to, from 1 to all. Empty regions, and regions whose mean key is
            not finite, are selected last.
        scale: factor on the attention scores; ``head_dim ** -0.5`` by default. The published models use
            ``(heads * head_dim) ** -0.5``.
        key_regions: int64 ``[batch, rows * columns, topk]``, the regions to attend to in row-major order, without
            duplicates, instead of the routing. On a GPU, values out of range are not detected.
        padding_mask: boolean ``[batch, height, width]`` or ``[height, width]`` of the map of keys, True for
            padding, which is excluded from attention and means. None: no padding.
        return_routing: also return the indices of the selected regions.
        backend: ``"triton"``, ``"torch"``, ``"reference"``, or None for the best available one (see
            `kernels.backends.explain`).

    Returns:
        ``[batch, height, width, heads, value_dim]`` in the dtype of the query, zero where all selected keys are
        padding. With `return_routing` also int64 ``[batch, rows * columns, topk]``, in descending order of affinity.
        Sums are accumulated in at least float32; the routing is computed in float32 also under autocast.

    Raises:
        ValueError: invalid arguments.
        BackendError: the given backend cannot run.
    """
    regions = _pair(num_regions)
    _check_tensors(query, key, value)
    _check_topk(topk, regions)
    if padding_mask is not None:
        padding_mask = _check_mask(padding_mask, key)
    if key_regions is not None:
        _check_key_regions(key_regions, query.shape[0], regions, topk, query.device)
    elif key.shape != query.shape:
        raise ValueError(
            f"`key` must have the shape of `query`, {list(query.shape)}, unless `key_regions` is given, "
            f"got {list(key.shape)}"
        )
    device = query.device.type
    dtype = autocast_dtype(device, query.dtype)
    head_dim = max(query.shape[-1], value.shape[-1])
    chosen = backends.select(OPERATOR, query.device, dtype, backend, head_dim=head_dim)
    with full_precision(device):
        if key_regions is None:
            with torch.no_grad():
                step = _route_triton if chosen == "triton" and not is_transformed(query, key) else _route
                step = route_reference if chosen == "reference" else step
                key_regions = step(query.detach(), key.detach(), regions, topk, padding_mask)[0]
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        if chosen == "reference":
            out = attend_reference(query, key, value, key_regions, padding_mask, regions, scale)
        elif is_transformed(query, key, value):
            out = attend_gather(query, key, value, key_regions, padding_mask, regions, scale)
        else:
            run = routing_attention_triton if chosen == "triton" else routing_attention_torch
            out = run(query, key, value, key_regions, padding_mask, regions, scale)
    return (out, key_regions) if return_routing else out
