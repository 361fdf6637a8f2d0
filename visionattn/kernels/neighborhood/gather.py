"""Neighborhood attention with differentiable operators that TorchScript and ONNX support.

For scripted layers, ONNX, and transforms (see `kernels.transforms`). It stores ``prod(kernel_size)`` copies of the keys
and values; everywhere else the backends are used.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["axis_neighbors", "gather_attention", "neighborhood_attention_gather"]


def axis_neighbors(
    length: int, kernel: int, stride: int, dilation: int, causal: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return key positions, indices into the position bias and a validity mask for one axis, each ``[length, kernel]``.

    A query attends to keys of its own dilation group. `stride` consecutive queries share the window of the middle one
    (causal: of the last one). At a border the window is shifted and keeps its size; if causal, it ends at the query.
    """
    x = torch.arange(length, device=device)
    group = x % dilation
    inner = x // dilation
    group_length = (length - group + dilation - 1) // dilation
    block = inner // stride * stride
    if causal:
        start = torch.minimum(block + stride - 1, group_length - 1) - (kernel - 1)
    else:
        leader = torch.minimum(block + stride // 2, group_length - 1)
        start = torch.minimum(torch.clamp(leader - kernel // 2, min=0), group_length - kernel)
    neighbor = start.unsqueeze(1) + torch.arange(kernel, device=device)
    offset = neighbor - inner.unsqueeze(1) + (kernel - 1)
    valid = torch.ones_like(neighbor, dtype=torch.bool)
    if causal:
        valid = (neighbor >= 0) & (neighbor <= inner.unsqueeze(1))
        neighbor = torch.where(valid, neighbor, inner.unsqueeze(1))  # a key that the query attends to
    return group.unsqueeze(1) + neighbor * dilation, offset, valid


def gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: list[int],
    stride: list[int],
    dilation: list[int],
    is_causal: list[bool],
    scale: float,
    rpb: Tensor | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute neighborhood attention for any number of axes; arguments as for `visionattn.kernels.na2d`.

    Queries, keys and values have the same number of heads. The result has the dtype of the query.

    Returns:
        Output ``[B, *spatial, heads, dim_v]`` and log-sum-exp ``[B, *spatial, heads]``.
    """
    rank = len(kernel_size)
    device = q.device
    position, offset, valid = axis_neighbors(q.shape[1], kernel_size[0], stride[0], dilation[0], is_causal[0], device)
    for axis in range(1, rank):
        length = q.shape[axis + 1]
        position_n, offset_n, valid_n = axis_neighbors(
            length, kernel_size[axis], stride[axis], dilation[axis], is_causal[axis], device
        )
        position = position[:, None, :, None] * length + position_n[None, :, None, :]
        position = position.flatten(2).flatten(0, 1)
        offset = offset[:, None, :, None] * (2 * kernel_size[axis] - 1) + offset_n[None, :, None, :]
        offset = offset.flatten(2).flatten(0, 1)
        valid = (valid[:, None, :, None] & valid_n[None, :, None, :]).flatten(2).flatten(0, 1)
    queries, neighbors = position.shape[0], position.shape[1]

    q_BNHD = q.flatten(1, rank) * scale
    index = position.flatten()
    k_BNKHD = k.flatten(1, rank).index_select(1, index).unflatten(1, (queries, neighbors))
    v_BNKHD = v.flatten(1, rank).index_select(1, index).unflatten(1, (queries, neighbors))
    logits_BNHK = torch.einsum("bnhd,bnkhd->bnhk", q_BNHD, k_BNKHD)
    if rpb is not None:
        bias_HNK = rpb.flatten(1).index_select(1, offset.flatten()).unflatten(1, (queries, neighbors))
        logits_BNHK = logits_BNHK + bias_HNK.transpose(0, 1)
    logits_BNHK = logits_BNHK.masked_fill(~valid.unsqueeze(1), -float("inf"))
    if extra_k is None or extra_v is None:
        lse_BNH = logits_BNHK.logsumexp(-1)
        out_BNHD = torch.einsum("bnhk,bnkhd->bnhd", logits_BNHK.softmax(-1), v_BNKHD)
    else:
        extra_BNHE = torch.einsum("bnhd,behd->bnhe", q_BNHD, extra_k)
        logits_BNHK = torch.cat([logits_BNHK, extra_BNHE], -1)
        lse_BNH = logits_BNHK.logsumexp(-1)
        attn = logits_BNHK.softmax(-1)
        out_BNHD = torch.einsum("bnhk,bnkhd->bnhd", attn[..., :neighbors], v_BNKHD)
        out_BNHD = out_BNHD + torch.einsum("bnhe,behd->bnhd", attn[..., neighbors:], extra_v)
    lse_BNH = lse_BNH.reshape(list(q.shape[:-1]))
    return out_BNHD.unflatten(1, list(q.shape[1:-2])), lse_BNH


def neighborhood_attention_gather(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Same as the operators of the backends, with their argument order: shared key heads, at least float32."""
    exact = torch.promote_types(q.dtype, torch.float32)
    repeat = q.shape[-2] // k.shape[-2]
    tables = [x if x is None or repeat == 1 else x.repeat_interleave(repeat, -2) for x in (k, v, extra_k, extra_v)]
    k, v, extra_k, extra_v = (x if x is None else x.to(exact) for x in tables)
    bias = None if rpb is None else rpb.to(exact)
    geometry = [list(x) for x in (kernel_size, stride, dilation, is_causal)]
    out, lse = gather_attention(q.to(exact), k, v, *geometry, scale, bias, extra_k, extra_v)
    return out.to(q.dtype), lse
