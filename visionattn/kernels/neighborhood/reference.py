"""Reference implementation of neighborhood attention: dense attention with a mask, slow, on any device.

It shares no code with the other backends, which are tested against it, except for the handling of NaN.
"""

import itertools

import torch
from torch import Tensor

from visionattn.kernels.nonfinite import masked_product
from visionattn.kernels.transforms import is_symbolic

__all__ = ["neighborhood_attention_reference"]


def _attended(length: int, kernel: int, stride: int, dilation: int, causal: bool) -> list[list[int]]:
    """For each position of an axis, the list of positions it attends to."""
    table = []
    for x in range(length):
        group, p = x % dilation, x // dilation
        n = len(range(group, length, dilation))
        if causal:
            leader = min(p // stride * stride + stride - 1, n - 1)
            inside = [j for j in range(n) if j <= p and leader - j < kernel]
        else:
            leader = min(p // stride * stride + stride // 2, n - 1)
            left = kernel // 2
            right = kernel - 1 - left
            centre = min(max(leader, left), n - 1 - right)
            inside = list(range(centre - left, centre + right + 1))
        table.append([group + j * dilation for j in inside])
    return table


def _mask(shape: tuple[int, ...], tables: list[list[list[int]]]) -> Tensor:
    """Boolean mask ``[queries, keys]`` over the flattened map, an outer product over the axes."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for length, table in zip(shape, tables, strict=True):
        axis = torch.zeros(length, length, dtype=torch.bool)
        for x, attended in enumerate(table):
            axis[x, attended] = True
        mask = torch.kron(mask.to(torch.uint8), axis.to(torch.uint8)).bool()
    return mask


def _bias(rpb: Tensor, shape: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """``[heads, queries, keys]`` with ``rpb[h, (j - p) + K - 1]``; masked entries are arbitrary."""
    coords = torch.tensor(list(itertools.product(*(range(n) for n in shape))))
    index = []
    for axis, (k, d) in enumerate(zip(kernel, dilation, strict=True)):
        p = coords[:, axis] // d
        index.append((p[None, :] - p[:, None] + k - 1).clamp(0, 2 * k - 2).to(rpb.device))
    return rpb[(slice(None), *index)]


def neighborhood_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    is_causal: tuple[bool, ...],
    scale: float,
    rpb: Tensor | None,
    additional_keys: Tensor | None,
    additional_values: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Dense masked attention. Arguments as in `api.na2d`, per axis; computed in float32 (float64 for float64 input).

    Returns:
        Output ``[B, *spatial, heads, dim_v]`` in the dtype of the query, and the natural logarithm of the softmax
        denominator ``[B, *spatial, heads]``.
    """
    batch, *spatial, heads, _ = query.shape
    shape = tuple(spatial)
    exact = torch.promote_types(query.dtype, torch.float32)

    def flat(x: Tensor) -> Tensor:  # [B, tokens, heads_kv, d] to [B, heads, tokens, d]
        x = x.to(exact).flatten(1, -3).transpose(1, 2)
        return x.repeat_interleave(heads // x.shape[1], dim=1)

    q, k, v = flat(query), flat(key), flat(value)
    logits = (q * scale) @ k.transpose(-1, -2)
    if rpb is not None:
        logits = logits + _bias(rpb.to(exact), shape, kernel_size, dilation)
    tables = [_attended(*axis) for axis in zip(shape, kernel_size, stride, dilation, is_causal, strict=True)]
    allowed = _mask(shape, tables).to(logits.device)
    logits = logits.masked_fill(~allowed, -torch.inf)
    if additional_keys is not None:
        extra = (q * scale) @ flat(additional_keys).transpose(-1, -2)
        logits = torch.cat([logits, extra], dim=-1)
        v = torch.cat([v, flat(additional_values)], dim=-2)
        allowed = torch.cat([allowed, allowed.new_ones(len(allowed), extra.shape[-1])], dim=-1)
    lse = torch.logsumexp(logits, dim=-1)
    probability = torch.softmax(logits, dim=-1).masked_fill(~allowed, 0)
    out = probability @ v if is_symbolic(v) else masked_product(probability, v, allowed)
    out = out.transpose(1, 2).reshape(batch, *spatial, heads, v.shape[-1])
    return out.to(query.dtype), lse.transpose(1, 2).reshape(batch, *spatial, heads)
