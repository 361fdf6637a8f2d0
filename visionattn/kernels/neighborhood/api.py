"""`na1d`, `na2d` and `na3d`: neighborhood attention on 1D, 2D and 3D maps."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from visionattn.errors import BackendError
from visionattn.kernels import backends, natten
from visionattn.kernels.neighborhood.gather import neighborhood_attention_gather
from visionattn.kernels.neighborhood.ops import neighborhood_attention
from visionattn.kernels.neighborhood.reference import neighborhood_attention_reference
from visionattn.kernels.transforms import full_precision, is_transformed

__all__ = ["na1d", "na2d", "na3d", "packed_attention"]

_ARGUMENTS = """
    Each query attends to a window of ``kernel_size`` positions per axis around it. Near a border the window is shifted
    inward, so that it always contains this many keys; with ``is_causal`` it ends at the query instead and is truncated
    at the border. With ``dilation`` a query attends only to positions congruent to its own, and window and stride are
    in steps of the dilation, which need not divide the axis. With ``stride``, this many neighboring queries share the
    window of the middle one (the last one if causal); a stride equal to the kernel size is blocked window attention.

    Args:
        query: ``[batch, {axes}, heads, head_dim]``.
        key: ``[batch, {axes}, heads_kv, head_dim]``; ``heads`` must be a multiple of ``heads_kv``, and query head
            ``h`` uses key head ``h // (heads // heads_kv)``.
        value: ``[batch, {axes}, heads_kv, value_dim]``.
        kernel_size: window length, one for all axes or one per axis; its product with the dilation must not exceed the
            length of the axis.
        stride: from 1 to the kernel size, one for all axes or one per axis.
        dilation: at least 1, one for all axes or one per axis.
        is_causal: one for all axes or one per axis.
        scale: factor on the attention scores; ``head_dim ** -0.5`` by default.
        rpb: relative position bias ``[heads, {table}]``, added to the scaled scores: a key at offset ``j`` from
            the query has entry ``j + kernel_size - 1`` of its axis. Requires odd kernel sizes and no causal axis.
        additional_keys: ``[batch, extra, heads_kv, head_dim]``, keys that all queries attend to in addition.
        additional_values: ``[batch, extra, heads_kv, value_dim]``, required with ``additional_keys``.
        return_lse: also return the log-sum-exp of the scores.
        backend: ``"triton"``, ``"torch"``, ``"reference"``, ``"natten"`` for the NATTEN library, or None or ``"auto"``
            for the best available one (see `kernels.backends.explain`). With the environment variable
            ``VISIONATTN_NATTEN=1``, that is NATTEN where it can run.

    Returns:
        ``[batch, {axes}, heads, value_dim]`` in the dtype of the query. With ``return_lse`` also
        ``[batch, {axes}, heads]``, the natural logarithm of the softmax denominator over all attended keys, in float32
        (float64 for float64). Sums are accumulated in at least float32. NaN or infinity in one key or value reaches
        only the queries that attend to it; with the Triton backend also other queries of the same tile.

    Raises:
        ValueError: invalid arguments.
        BackendError: the given backend cannot run.
    """


class _Spec(NamedTuple):
    """The properties of a tensor that are checked; hashable, so that the result of the checks can be cached."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _per_axis(name: str, value, rank: int, kind: type) -> tuple:
    if type(value) is kind:
        return (value,) * rank
    values = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    if len(values) != rank:
        raise ValueError(f"`{name}` must be one value or one for each of {rank} axes, got {value!r}")
    for entry in values:
        if isinstance(entry, bool) != (kind is bool) or not isinstance(entry, (kind, torch.SymInt)):
            raise ValueError(f"`{name}` must contain only {kind.__name__} values, got {value!r}")
    return values


def _check_tensors(query: _Spec, key: _Spec, value: _Spec, rank: int) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        if len(x.shape) != rank + 3:
            raise ValueError(
                f"`{name}` must have {rank + 3} dimensions (batch, {rank} spatial, heads, head_dim), "
                f"got shape {list(x.shape)}"
            )
        if x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"`{name}` must have the dtype and device of `query`, {query.dtype} on {query.device}, "
                f"got {x.dtype} on {x.device}"
            )
        if x.shape[:-2] != query.shape[:-2]:
            raise ValueError(
                f"`{name}` must have the batch and spatial shape of `query`, {list(query.shape[:-2])}, "
                f"got {list(x.shape[:-2])}"
            )
        if 0 in x.shape[1:]:
            raise ValueError(f"`{name}` must not be empty except for the batch, got shape {list(x.shape)}")
    if query.dtype not in backends.DTYPES:
        raise ValueError(f"`query` must have a dtype of {', '.join(map(str, backends.DTYPES))}, got {query.dtype}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"`key` must have the head_dim of `query`, {query.shape[-1]}, got {key.shape[-1]}")
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"`value` must have as many heads as `key`, {key.shape[-2]}, got {value.shape[-2]}")
    if query.shape[-2] % key.shape[-2]:
        raise ValueError(f"the heads of `key` must divide the {query.shape[-2]} heads of `query`, got {key.shape[-2]}")


def _check_geometry(shape: Sequence[int], kernel_size: tuple, stride: tuple, dilation: tuple) -> None:
    for axis, (length, k, s, d) in enumerate(zip(shape, kernel_size, stride, dilation, strict=True)):
        if k < 1:
            raise ValueError(f"`kernel_size` must be at least 1 on every axis, got {kernel_size}")
        if d < 1:
            raise ValueError(f"`dilation` must be at least 1 on every axis, got {dilation}")
        if not 1 <= s <= k:
            raise ValueError(f"`stride` must be from 1 to `kernel_size` {kernel_size} on every axis, got {stride}")
        if k * d > length:
            raise ValueError(
                f"`kernel_size` times `dilation` must be at most the length of axis {axis}, {length}, "
                f"got kernel_size={kernel_size} and dilation={dilation}"
            )


def _check_bias(rpb: _Spec, query: _Spec, kernel_size: tuple, is_causal: tuple) -> None:
    expected = (query.shape[-2], *(2 * k - 1 for k in kernel_size))
    if any(is_causal):
        raise ValueError("`rpb` cannot be used with `is_causal`")
    if any(k % 2 == 0 for k in kernel_size):
        raise ValueError(f"`rpb` requires odd values of `kernel_size`, got {kernel_size}")
    if tuple(rpb.shape) != expected:
        raise ValueError(f"`rpb` must have shape {list(expected)} for kernel_size={kernel_size}, got {list(rpb.shape)}")
    if rpb.device != query.device:
        raise ValueError(f"`rpb` must be on the device of `query`, {query.device}, got {rpb.device}")


def _check_additional(keys: _Spec | None, values: _Spec | None, query: _Spec, key: _Spec, value: _Spec) -> None:
    if keys is None or values is None:
        raise ValueError("`additional_keys` and `additional_values` must be given together")
    for name, x, like in (("additional_keys", keys, key), ("additional_values", values, value)):
        expected = (query.shape[0], keys.shape[1] if len(keys.shape) > 1 else 0, *like.shape[-2:])
        if tuple(x.shape) != expected or not expected[1]:
            raise ValueError(
                f"`{name}` must have shape [{query.shape[0]}, extra, {like.shape[-2]}, {like.shape[-1]}] with the same "
                f"extra >= 1 for keys and values, got {list(x.shape)}"
            )
        if x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"`{name}` must have the dtype and device of `query`, {query.dtype} on {query.device}, "
                f"got {x.dtype} on {x.device}"
            )


class _Call(NamedTuple):
    """The validated arguments of a call."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    scale: float
    backend: str


def _resolve(
    rank: int, kernel_size, stride, dilation, is_causal, scale, return_lse, backend, default, prefer_natten, *specs
) -> _Call:
    query, key, value, rpb, extra_k, extra_v = (None if x is None else _Spec(*x) for x in specs)
    kernel_size = _per_axis("kernel_size", kernel_size, rank, int)
    stride = _per_axis("stride", stride, rank, int)
    dilation = _per_axis("dilation", dilation, rank, int)
    is_causal = _per_axis("is_causal", is_causal, rank, bool)
    _check_tensors(query, key, value, rank)
    _check_geometry(query.shape[1 : 1 + rank], kernel_size, stride, dilation)
    if rpb is not None:
        _check_bias(rpb, query, kernel_size, is_causal)
    if extra_k is not None or extra_v is not None:
        _check_additional(extra_k, extra_v, query, key, value)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    width = max(query.shape[-1], value.shape[-1])
    named = backend or default
    if named == "natten" or (named is None and prefer_natten):
        reason = natten.refused(rank, query.device, query.dtype, kernel_size, rpb is not None, return_lse)
        if named is None:
            named = None if reason else "natten"
        elif reason:
            raise BackendError(f"na{rank}d: backend 'natten' cannot run: {reason}")
    chosen = backends.select(f"na{rank}d", query.device, query.dtype, named, head_dim=width)
    return _Call(kernel_size, stride, dilation, is_causal, scale, chosen)


# Calls on small maps take a tenth of a millisecond, so the checks are cached. Errors are not cached.
_resolve_once = lru_cache(maxsize=512, typed=True)(_resolve)


def _join_additional(
    out: Tensor, lse: Tensor, query: Tensor, keys: Tensor, values: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Merge the attention over the additional keys, combining two softmaxes by their denominators."""
    batch, heads, exact = query.shape[0], query.shape[-2], lse.dtype
    q = (query.flatten(1, -3) * scale).transpose(1, 2)  # [B, heads, tokens, d]
    k, v = (x.transpose(1, 2).repeat_interleave(heads // x.shape[-2], dim=1) for x in (keys, values))
    scores = (q @ k.transpose(-1, -2)).to(exact)
    extra_lse = torch.logsumexp(scores, dim=-1)
    extra = torch.softmax(scores, dim=-1) @ v.to(exact)
    extra = extra.transpose(1, 2).reshape(*out.shape)
    extra_lse = extra_lse.transpose(1, 2).reshape(batch, *lse.shape[1:])
    share = torch.sigmoid(extra_lse - lse)[..., None]
    return torch.lerp(out.to(exact), extra, share).to(out.dtype), torch.logaddexp(lse, extra_lse)


def _attention(
    rank, query, key, value, kernel_size, stride, dilation, is_causal, scale, rpb, extra_k, extra_v, return_lse,
    backend, packed=None,
):  # fmt: skip
    device = query.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        extra_k, extra_v = (x if x is None else x.to(dtype) for x in (extra_k, extra_v))
        with full_precision(device):
            return _attention(
                rank,
                query,
                key,
                value,
                kernel_size,
                stride,
                dilation,
                is_causal,
                scale,
                rpb,
                extra_k,
                extra_v,
                return_lse,
                backend,
                packed if packed is None else packed.to(dtype),
            )
    if scale is not None:
        scale = float(scale)
    specs = [None if x is None else (x.shape, x.dtype, x.device) for x in (query, key, value, rpb, extra_k, extra_v)]
    backend = None if backend == "auto" else backend
    default, prefer_natten = os.environ.get("VISIONATTN_BACKEND") or None, natten.is_preferred()
    problem = (rank, kernel_size, stride, dilation, is_causal, scale, return_lse, backend, default, prefer_natten)
    # While compiling, sizes may be symbolic, and the availability of a given backend may change.
    if backend is None and not torch.compiler.is_compiling() and list not in map(type, problem):  # not hashable
        call = _resolve_once(*problem, *specs)
    else:
        call = _resolve(*problem, *specs)
    # Not a slice of the named tuple, which torch.compile of PyTorch 2.8 cannot trace.
    geometry = (call.kernel_size, call.stride, call.dilation, call.is_causal, call.scale)
    if call.backend == "reference":
        *axes, scale = geometry
        return neighborhood_attention_reference(query, key, value, *axes, scale, rpb, extra_k, extra_v)
    if call.backend == "natten":
        return natten.neighborhood_attention_natten(query, key, value, extra_k, extra_v, *geometry, return_lse)
    if is_transformed(query, key, value, rpb, extra_k, extra_v):
        return neighborhood_attention_gather(query, key, value, rpb, extra_k, extra_v, *geometry)
    if call.backend == "triton":
        from visionattn.kernels.neighborhood.triton.ops import (  # imports Triton
            neighborhood_attention_triton,
            neighborhood_attention_triton_packed,
        )

        if packed is not None and packed.requires_grad and torch.is_grad_enabled():
            return neighborhood_attention_triton_packed(packed, rpb, *geometry)
        return neighborhood_attention_triton(query, key, value, rpb, extra_k, extra_v, *geometry)
    out, lse = neighborhood_attention(query, key, value, rpb, *geometry, return_lse or extra_k is not None)
    if extra_k is not None:
        out, lse = _join_additional(out, lse, query, extra_k, extra_v, call.scale)
    return out, lse


def packed_attention(
    qkv: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    *,
    scale: float | None = None,
    rpb: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Neighborhood attention of ``qkv`` of shape ``[batch, *axes, 3, heads, head_dim]``: queries, keys and values.

    The same as `na1d`, `na2d` or `na3d` with ``*qkv.unbind(-3)``. With the Triton backend the backward pass writes the
    gradient of ``qkv`` directly, without concatenating three gradients. Other arguments and errors as there.
    """
    rank = qkv.dim() - 4
    return _attention(
        rank, *qkv.unbind(-3), kernel_size, stride, dilation, is_causal, scale, rpb, None, None, False, backend, qkv
    )[0]


def _define(rank: int, axes: str, table: str):
    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        *,
        scale: float | None = None,
        rpb: Tensor | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
        return_lse: bool = False,
        backend: str | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        out, lse = _attention(
            rank, query, key, value, kernel_size, stride, dilation, is_causal, scale, rpb,
            additional_keys, additional_values, return_lse, backend,
        )  # fmt: skip
        return (out, lse) if return_lse else out

    attention.__name__ = attention.__qualname__ = f"na{rank}d"
    attention.__doc__ = f"{rank}D neighborhood attention.\n" + _ARGUMENTS.format(axes=axes, table=table)
    return attention


na1d = _define(1, "length", "2K-1")
na2d = _define(2, "height, width", "2K-1, 2K-1")
na3d = _define(3, "depth, height, width", "2K-1, 2K-1, 2K-1")
