"""`bilevel_routing_attention`: each region of a map attends to the few regions that match it best."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import backends
from visionattn.kernels.routing.ops import routing_attention_torch, routing_attention_triton
from visionattn.kernels.routing.reference import attend_reference, route_reference
from visionattn.kernels.routing.regions import region_size

__all__ = ["bilevel_routing_attention", "route_regions"]

OPERATOR = "bilevel_routing_attention"


def _pair(num_regions: int | Sequence[int]) -> tuple[int, int]:
    regions = tuple(num_regions) if isinstance(num_regions, Sequence) else (num_regions,) * 2
    whole = all(isinstance(n, (int, torch.SymInt)) and not isinstance(n, bool) for n in regions)
    if len(regions) != 2 or not whole or min(regions) < 1:
        raise ValueError(f"num_regions={num_regions!r} must be an integer >= 1, or two of them: (rows, columns)")
    return regions


def _check_topk(topk: int, regions: tuple[int, int]) -> None:
    count = regions[0] * regions[1]
    if isinstance(topk, bool) or not isinstance(topk, int) or not 1 <= topk <= count:
        raise ValueError(
            f"topk={topk!r} must be an integer from 1 to the number of regions, which is {count} for "
            f"num_regions={regions}"
        )


def _check_map(name: str, x: Tensor, query: Tensor) -> None:
    if x.dim() != 5:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; it must have 5 dimensions: batch, height, width, heads, head_dim"
        )
    if x.dtype != query.dtype or x.device != query.device:
        raise ValueError(
            f"{name} is {x.dtype} on {x.device}, but query is {query.dtype} on {query.device}; they must agree"
        )
    if x.shape[0] != query.shape[0] or x.shape[-2] != query.shape[-2]:
        raise ValueError(
            f"{name} has batch {x.shape[0]} and {x.shape[-2]} heads, but query has batch {query.shape[0]} and "
            f"{query.shape[-2]} heads; they must be equal"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; only the batch may be empty")
    if x.dtype not in backends.DTYPES:
        raise ValueError(f"{name} is {x.dtype}; use one of {', '.join(map(str, backends.DTYPES))}")


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_map(name, x, query)
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key has head_dim {key.shape[-1]}, but query has {query.shape[-1]}; they must be equal")
    if value.shape[1:3] != key.shape[1:3]:
        raise ValueError(f"value has map {tuple(value.shape[1:3])}, but key has {tuple(key.shape[1:3])}")


def _check_mask(padding_mask: Tensor, key: Tensor) -> Tensor:
    """The mask as ``[B or 1, H, W]``."""
    shape = tuple(key.shape[:3])
    if padding_mask.dtype != torch.bool or padding_mask.device != key.device:
        raise ValueError(
            f"padding_mask is {padding_mask.dtype} on {padding_mask.device}; it must be torch.bool on {key.device}"
        )
    if tuple(padding_mask.shape) not in (shape, (1, *shape[1:]), shape[1:]):
        raise ValueError(
            f"padding_mask has shape {tuple(padding_mask.shape)}; it must be {shape} or {shape[1:]}, as the map of keys"
        )
    return padding_mask if padding_mask.dim() == 3 else padding_mask[None]


def _check_key_regions(key_regions: Tensor, batch: int, regions: tuple[int, int], topk: int, device) -> None:
    count = regions[0] * regions[1]
    if tuple(key_regions.shape) != (batch, count, topk):
        raise ValueError(
            f"key_regions has shape {tuple(key_regions.shape)}; it must be {(batch, count, topk)}: batch, regions, topk"
        )
    if key_regions.dtype != torch.long or key_regions.device != device:
        raise ValueError(f"key_regions is {key_regions.dtype} on {key_regions.device}; it must be int64 on {device}")


def _means(x: Tensor, regions: tuple[int, int], padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Mean of each region without padding ``[B, regions, heads * d]``, and which regions are empty (None: none).

    Pooling with a window that is a region, on a view that is channels-last, is the fastest such sum on CPU; it
    leaves out what lies beyond the map by itself.
    """
    height, width = x.shape[1:3]
    size = region_size(height, width, regions)
    x = x.flatten(3).permute(0, 3, 1, 2)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if padding_mask is not None:
        real = (~padding_mask[:, None]).to(x.dtype)
        x = x * real
    pooled = F.avg_pool2d(x, size, size, ceil_mode=True, count_include_pad=False)
    share = None
    if padding_mask is not None:
        share = F.avg_pool2d(real, size, size, ceil_mode=True, count_include_pad=False)
        pooled = pooled / share.where(share > 0, 1)
    rows, columns = pooled.shape[2:]
    missing = (0, regions[1] - columns, 0, regions[0] - rows)
    if any(missing):  # fewer regions have tokens than were asked for
        if share is None:
            share = pooled.new_ones(1, 1, rows, columns)
        pooled, share = F.pad(pooled, missing), F.pad(share, missing)
    return pooled.flatten(2).transpose(1, 2), None if share is None else (share == 0).flatten(2)


def _route(query, key, regions, topk, padding_mask) -> tuple[Tensor, Tensor]:
    q, _ = _means(query, regions, padding_mask)
    k, empty = _means(key, regions, padding_mask)
    logits = q @ k.transpose(1, 2)
    if empty is not None:
        logits = logits.masked_fill(empty, -torch.inf)
    logits, index = logits.topk(topk, dim=-1)
    return index, logits


def route_regions(
    query: Tensor,
    key: Tensor,
    num_regions: int | Sequence[int],
    topk: int,
    *,
    padding_mask: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The routing step of `bilevel_routing_attention` alone: which regions each region attends to.

    The mean query of a region, over all heads together, is multiplied with the mean key of every region; the `topk`
    largest products win. Computed in float32 at least. Differentiable in the products, unlike in the attention.

    Args:
        query: ``[batch, height, width, heads, head_dim]``.
        key: of the same shape.
        num_regions: regions per axis, one value or (rows, columns).
        topk: regions to select, from 1 to all.
        padding_mask: as in `bilevel_routing_attention`.
        backend: ``"reference"`` computes by the definition; every other one the same way.

    Returns:
        Indices of the selected regions, counted row by row, int64, best first; and their products without a scale,
        in float32 (float64 for float64); both ``[batch, rows * columns, topk]``.

    Raises:
        ValueError: for arguments that do not fit together; the message names the argument.
    """
    regions = _pair(num_regions)
    for name, x in (("query", query), ("key", key)):
        _check_map(name, x, query)
    if query.shape != key.shape:
        raise ValueError(f"key has shape {tuple(key.shape)}, but query has {tuple(query.shape)}; they must be equal")
    _check_topk(topk, regions)
    if padding_mask is not None:
        padding_mask = _check_mask(padding_mask, key)
    step = route_reference if backends.select(OPERATOR, query.device, query.dtype, backend) == "reference" else _route
    device = query.device.type
    with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
        return step(query, key, regions, topk, padding_mask)


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

    The map is cut into regions. A region selects, by the product of its mean query with the mean keys, the `topk`
    regions that match it best, the same ones for all heads; its tokens then attend to all tokens of those. No
    gradient flows through the selection.

    Where the regions do not divide the map, those at the bottom and right are cut short (the size of a region is the
    length over the number of regions, rounded up), and there may be empty ones. What is cut off takes part in
    nothing: no mean, no attention. For the behaviour of the published models, which attend to their zero padding,
    pad the map before the call.

    Args:
        query: ``[batch, height, width, heads, head_dim]``.
        key: ``[batch, height, width, heads, head_dim]``. With `key_regions`, its map may have another size, which is
            cut into as many regions: pooled keys.
        value: ``[batch, height, width, heads, value_dim]``, its map as that of the key.
        num_regions: regions per axis, one value or (rows, columns). Not their size.
        topk: regions that each region attends to, from 1 to all. An empty region is selected last.
        scale: factor on the products of tokens; ``head_dim ** -0.5`` by default. The published models use
            ``(heads * head_dim) ** -0.5``.
        key_regions: int64 ``[batch, rows * columns, topk]``, the regions to attend to, counted row by row and each
            once, in place of the routing. Values outside of the range are not looked for on a GPU.
        padding_mask: boolean ``[batch, height, width]`` or ``[height, width]`` of the map of keys, True where it is
            padding: such tokens are not attended to and enter no mean. None: all tokens are alike.
        return_routing: also return the indices of the regions attended to.
        backend: ``"triton"``, ``"torch"``, ``"reference"``, or None for the best that can run (see
            `kernels.backends.explain`).

    Returns:
        ``[batch, height, width, heads, value_dim]`` in the type of the query; with `return_routing` a pair with
        int64 ``[batch, rows * columns, topk]``, best first. Where all keys selected are padding, it is zero. Sums are
        accumulated in float32 at least; the routing is computed in float32 also under autocast.

    Raises:
        ValueError: for arguments that do not fit together; the message names the argument.
        BackendError: when the backend named cannot run here.
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
            f"key has shape {tuple(key.shape)}, but query has {tuple(query.shape)}; without key_regions they must be "
            "equal"
        )
    device = query.device.type
    dtype = query.dtype
    autocast = torch.amp.is_autocast_available(device)  # not for tensors without memory
    if dtype != torch.float64 and autocast and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    head_dim = max(query.shape[-1], value.shape[-1])
    chosen = backends.select(OPERATOR, query.device, dtype, backend, head_dim=head_dim)
    with torch.autocast(device if autocast else "cpu", enabled=False):
        if key_regions is None:
            with torch.no_grad():
                step = route_reference if chosen == "reference" else _route
                key_regions = step(query.detach(), key.detach(), regions, topk, padding_mask)[0]
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        if chosen == "reference":
            out = attend_reference(query, key, value, key_regions, padding_mask, regions, scale)
        else:
            run = routing_attention_triton if chosen == "triton" else routing_attention_torch
            out = run(query, key, value, key_regions, padding_mask, regions, scale)
    return (out, key_regions) if return_routing else out
