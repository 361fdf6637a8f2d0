"""The operators of NATTEN.

Fused operators have the layout ``[batch, *spatial, heads, head_dim]``, separate ones ``[batch, heads, *spatial,
head_dim]``. Up to version 0.17, the arguments of fused operators after the kernel size are in the order dilation,
causality, bias, scale; since 0.20 in the order stride, dilation, causality, scale. Both accept all of them by name.
A scale of 0 means the default, as in NATTEN.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from visionattn.compat.natten.context import warn_once
from visionattn.kernels import na1d as _na1d
from visionattn.kernels import na2d as _na2d
from visionattn.kernels import na3d as _na3d
from visionattn.kernels.neighborhood.unfused import bias_of_neighbors, neighborhood_scores, neighborhood_values

__all__ = [
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "neighborhood_attention_generic",
]

_OPS = {1: _na1d, 2: _na2d, 3: _na3d}
PER_AXIS = int | Sequence[int]
CAUSAL = bool | Sequence[bool] | None
TUNING = (
    "attention_kwargs", "backend", "q_tile_shape", "kv_tile_shape", "backward_q_tile_shape", "backward_kv_tile_shape",
    "backward_kv_splits", "backward_use_pt_reduction", "run_persistent_kernel", "kernel_schedule", "torch_compile",
    "try_fuse_additional_kv", "use_kv_parallelism", "q_tile_size", "kv_tile_size", "backward_q_tile_size",
    "backward_kv_tile_size",
)  # fmt: skip
"""Arguments that select or tune a kernel of NATTEN. They have no effect."""


def ignore_tuning(function: str, options: dict[str, Any]) -> None:
    """Accept the arguments of `TUNING`, with one warning for those that are set.

    Raises:
        TypeError: another argument.
    """
    for name, value in options.items():
        if name not in TUNING:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        if value:
            warn_once(name, "it selects or tunes a kernel of NATTEN")


def _fused(rank: int, *tensors: Tensor, **options: Any) -> Any:
    """Call the kernel, with the default values of NATTEN."""
    causal = options.pop("is_causal")
    scale = options.pop("scale")
    return _OPS[rank](*tensors, is_causal=False if causal is None else causal, scale=scale or None, **options)


def fused_until_017(rank: int) -> Callable[..., Any]:
    """Return `na1d`, `na2d` or `na3d` with the order of arguments of NATTEN up to 0.17."""
    name = f"na{rank}d"

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: PER_AXIS,
        dilation: PER_AXIS = 1,
        is_causal: CAUSAL = False,
        rpb: Tensor | None = None,
        scale: float | None = None,
        *,
        stride: PER_AXIS = 1,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        return_lse: bool = False,
        **tuning: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        ignore_tuning(name, tuning)
        return _fused(
            rank, query, key, value, kernel_size=kernel_size, stride=stride, dilation=dilation, is_causal=is_causal,
            scale=scale, rpb=rpb, additional_keys=additional_keys, additional_values=additional_values,
            return_lse=return_lse,
        )  # fmt: skip

    return _named(attention, name, f"{rank}D neighborhood attention in one step, see `visionattn.kernels.{name}`.")


def fused_since_020(rank: int) -> Callable[..., Any]:
    """Return `na1d`, `na2d` or `na3d` with the order of arguments of NATTEN since 0.20."""
    name = f"na{rank}d"

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: PER_AXIS,
        stride: PER_AXIS = 1,
        dilation: PER_AXIS = 1,
        is_causal: CAUSAL = False,
        scale: float | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        *,
        rpb: Tensor | None = None,
        return_lse: bool = False,
        **tuning: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        ignore_tuning(name, tuning)
        return _fused(
            rank, query, key, value, kernel_size=kernel_size, stride=stride, dilation=dilation, is_causal=is_causal,
            scale=scale, rpb=rpb, additional_keys=additional_keys, additional_values=additional_values,
            return_lse=return_lse,
        )  # fmt: skip

    return _named(attention, name, f"{rank}D neighborhood attention in one step, see `visionattn.kernels.{name}`.")


def _named(function: Callable[..., Any], name: str, doc: str) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return function


def neighborhood_attention_generic(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: PER_AXIS, *args: Any, **kwargs: Any
) -> Any:
    """Neighborhood attention of 1 to 3 axes, with the order of arguments of NATTEN since 0.20."""
    rank = query.dim() - 3
    if rank not in _OPS:
        raise ValueError(f"`query` must have 4 to 6 dimensions, got {query.dim()}")
    return fused_since_020(rank)(query, key, value, kernel_size, *args, **kwargs)


def _axes(values: Any, rank: int, name: str) -> tuple:
    values = tuple(values) if isinstance(values, Sequence) else (values,) * rank
    if len(values) != rank:
        raise ValueError(f"`{name}` must be one value or one for each of {rank} axes, got {values}")
    return values


def _geometry(rank: int, x: Tensor, kernel_size: PER_AXIS, dilation: PER_AXIS, is_causal: CAUSAL) -> tuple[tuple, ...]:
    """Return kernel size, stride, dilation and causality per axis."""
    kernel, dilation = _axes(kernel_size, rank, "kernel_size"), _axes(dilation, rank, "dilation")
    causal = _axes(bool(is_causal) if is_causal is None else is_causal, rank, "is_causal")
    if x.dim() != rank + 3:
        raise ValueError(
            f"tensors must have {rank + 3} dimensions (batch, heads, {rank} spatial, channels), got shape {[*x.shape]}"
        )
    for length, k, d in zip(x.shape[2:-1], kernel, dilation, strict=True):
        if k < 1 or d < 1 or k * d > length:
            raise ValueError(
                f"`kernel_size` times `dilation` must be at most the size of the map, {[*x.shape[2:-1]]}, got "
                f"kernel_size={kernel} and dilation={dilation}"
            )
    return kernel, (1,) * rank, dilation, causal


def _cast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast to the dtype of autocast, if it is enabled on the device of the first one."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device) or tensors[0].dtype == torch.float64:
        return tensors
    return tuple(x if x is None else x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _check_alike(rank: int, **tensors: Tensor) -> None:
    (first, x), *others = tensors.items()
    for name, y in others:
        if y.shape[: rank + 2] != x.shape[: rank + 2] or y.dtype != x.dtype or y.device != x.device:
            raise ValueError(
                f"`{name}` must have the batch, heads, map, dtype and device of `{first}`, {[*x.shape[: rank + 2]]} "
                f"{x.dtype} on {x.device}, got {[*y.shape]} {y.dtype} on {y.device}"
            )


def _qk(rank: int) -> Callable[..., Tensor]:
    def scores(
        query: Tensor,
        key: Tensor,
        kernel_size: PER_AXIS,
        dilation: PER_AXIS = 1,
        additional_keys: Tensor | None = None,
        is_causal: CAUSAL = False,
        rpb: Tensor | None = None,
    ) -> Tensor:
        geometry = _geometry(rank, query, kernel_size, dilation, is_causal)
        query, key, additional_keys = _cast(query, key, additional_keys)
        _check_alike(rank, query=query, key=key)
        if rpb is not None and any(geometry[3]):
            raise NotImplementedError("a relative position bias is not defined with causal axes")
        result = neighborhood_scores(query, key, *geometry)
        if rpb is not None:
            table = (query.shape[1], *(2 * k - 1 for k in geometry[0]))
            if tuple(rpb.shape) != table:
                raise ValueError(f"`rpb` must have shape {[*table]}, got {[*rpb.shape]}")
            result = result + bias_of_neighbors(rpb, query.shape[2:-1], *geometry[:3]).to(result.dtype)
        if additional_keys is not None:
            extra = query.flatten(2, -2) @ additional_keys.mT
            result = torch.cat([result, extra.view(*result.shape[:-1], -1)], -1)
        return result

    doc = f"""{rank}D attention scores: products of queries and the keys of their neighborhoods, without a scale.

    Args:
        query, key: ``[batch, heads, *spatial, head_dim]``, {rank} spatial axes.
        kernel_size, dilation, is_causal: one value, or one per axis.
        additional_keys: ``[batch, heads, extra, head_dim]``, whose scores are appended.
        rpb: relative position bias ``[heads, 2K-1, ...]`` to add; no causal axes.

    Returns:
        ``[batch, heads, *spatial, prod(kernel_size) (+ extra)]``, with -inf for missing neighbors on causal axes.
    """
    return _named(scores, f"na{rank}d_qk", doc)


def _av(rank: int) -> Callable[..., Tensor]:
    def values(
        attn: Tensor,
        value: Tensor,
        kernel_size: PER_AXIS,
        dilation: PER_AXIS = 1,
        additional_values: Tensor | None = None,
        is_causal: CAUSAL = False,
    ) -> Tensor:
        geometry = _geometry(rank, value, kernel_size, dilation, is_causal)
        attn, value, additional_values = _cast(attn, value, additional_values)
        _check_alike(rank, value=value, attn=attn)
        extra = 0 if additional_values is None else additional_values.shape[-2]
        neighbors = prod(geometry[0])
        if attn.shape[-1] != neighbors + extra:
            raise ValueError(f"`attn` must have {neighbors + extra} weights per query, got {attn.shape[-1]}")
        result = neighborhood_values(attn[..., :neighbors], value, *geometry)
        if additional_values is not None:
            result = result + (attn[..., neighbors:].flatten(2, -2) @ additional_values).view(result.shape)
        return result

    doc = f"""{rank}D sums over the values of neighborhoods with the weights ``attn``, in the order of `na{rank}d_qk`.

    Args:
        attn: ``[batch, heads, *spatial, prod(kernel_size) (+ extra)]``, {rank} spatial axes.
        value: ``[batch, heads, *spatial, head_dim]``.
        kernel_size, dilation, is_causal: one value, or one per axis.
        additional_values: ``[batch, heads, extra, head_dim]``.

    Returns:
        A tensor of the shape of the value.
    """
    return _named(values, f"na{rank}d_av", doc)


na1d, na2d, na3d = (fused_until_017(rank) for rank in (1, 2, 3))
na1d_qk, na2d_qk, na3d_qk = (_qk(rank) for rank in (1, 2, 3))
na1d_av, na2d_av, na3d_av = (_av(rank) for rank in (1, 2, 3))
