"""Dense attention and the merging of results, operators of NATTEN since 0.20."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visionattn.compat.natten.functional import ignore_tuning

__all__ = ["attention", "merge_attentions"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    return_lse: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Dense attention, since NATTEN 0.20.

    Args:
        query: ``[batch, length, heads, head_dim]``.
        key, value: ``[batch, length_kv, heads_kv, ...]``; ``heads`` is a multiple of ``heads_kv``.
        is_causal: attend to earlier positions and the query's own only.
        scale: ``head_dim ** -0.5`` by default.
        return_lse: also return the log-sum-exp ``[batch, length, heads]`` in at least float32.

    Raises:
        NotImplementedError: sequences of different lengths packed into one.
    """
    packed = [name for name in options if "seqlen" in name]
    if any(options.pop(name) is not None for name in packed):
        raise NotImplementedError("packed sequences of different lengths are not supported; use one call for each")
    ignore_tuning("attention", options)
    repeat, scale = query.shape[2] // key.shape[2], scale or query.shape[-1] ** -0.5
    q, k, v = query.transpose(1, 2), *(x.repeat_interleave(repeat, 2).transpose(1, 2) for x in (key, value))
    if not return_lse:
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)
        return out.transpose(1, 2)
    exact = torch.promote_types(query.dtype, torch.float32)
    scores = (q.to(exact) * scale) @ k.to(exact).mT
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
    out = (scores.softmax(-1) @ v.to(exact)).to(query.dtype)
    return out.transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)


def merge_attentions(
    outputs: Sequence[Tensor], lse_tensors: Sequence[Tensor], *args: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """Merge results of attention of the same queries to several disjoint sets of keys.

    Args:
        outputs: two or more tensors ``[..., head_dim]`` of one shape.
        lse_tensors: their log-sum-exps ``[...]``.

    Returns:
        The result of attention to all keys, in the dtype of the outputs, and its log-sum-exp in at least float32.

    Raises:
        ValueError: fewer than two outputs, or shapes that differ.
    """
    if len(outputs) < 2 or len(outputs) != len(lse_tensors):
        raise ValueError(
            f"`outputs` and `lse_tensors` must have the same length of 2 or more, got {len(outputs)} and "
            f"{len(lse_tensors)}"
        )
    for out, lse in zip(outputs, lse_tensors, strict=True):
        if out.shape != outputs[0].shape or lse.shape != out.shape[:-1]:
            raise ValueError(f"outputs and lse must have one shape, got {[*out.shape]} and {[*lse.shape]}")
    exact = torch.promote_types(outputs[0].dtype, torch.float32)
    sums = torch.stack([lse.to(exact) for lse in lse_tensors])
    total = sums.logsumexp(0)
    weights = (sums - total).exp()[..., None]
    merged = sum(weight * out.to(exact) for weight, out in zip(weights, outputs, strict=True))
    return merged.to(outputs[0].dtype), total
