"""Neighborhood attention as a module: projections, relative position bias, padding of small maps.

Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143) and "Dilated Neighborhood Attention
Transformer" (arXiv 2209.15001).
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module, trunc_normal_
from torch import Tensor, nn

from visionattn.kernels import na1d, na2d, na3d

__all__ = ["NeighborhoodAttention1d", "NeighborhoodAttention2d", "NeighborhoodAttention3d"]

_OPS = {1: na1d, 2: na2d, 3: na3d}


class NeighborhoodAttentionBase(nn.Module):
    """Multi-head neighborhood attention on channels-last maps, ``[batch, *spatial, dim]`` to the same shape.

    The state dict holds ``qkv`` (rows in the order query, key, value), ``proj`` and, with a position bias,
    ``rpb`` of shape ``[num_heads, 2*K-1, ...]``, as the published models have it.

    A TorchScript program cannot call the kernels. There, a plain gather takes their place: same numbers, but
    it holds ``prod(kernel_size)`` copies of the keys and values.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        kernel_size: width of the neighborhood, one value or one per axis, at least 2; odd for a bias.
        dilation: step between neighbors, one value or one per axis. ``"auto"`` takes the largest that fits,
            for each axis of the input at hand: ``max(1, length // kernel_size)``.
        rel_pos_bias: learn a bias per head and relative position.
        qkv_bias: whether the query, key and value projection has a bias.
        qk_scale: factor on the logits; None means ``(dim / num_heads) ** -0.5``.
        attn_drop: must be 0. The fused kernels never form the attention probabilities, so there is nothing to
            drop from, and ignoring the value would train another model than the one asked for.
        proj_drop: dropout rate after the output projection.
        pad_small: pad maps smaller than ``kernel_size * dilation`` with zeros at the end of each axis, before
            `qkv`, and crop before `proj`. The padded places take part as keys; the published models do this.
            When False, such maps are a ValueError.
        backend: backend of the kernel; None picks the best that runs.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument is out of its range, or the input has the wrong rank or is too small.
    """

    AXES: int  # spatial axes, set by the subclasses

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] | Literal["auto"] = 1,
        *,
        rel_pos_bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        pad_small: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, but dim={dim} and num_heads={num_heads}")
        if attn_drop:
            raise ValueError(
                f"attn_drop={attn_drop} is not supported, because the kernels never form the attention "
                "probabilities; use proj_drop or drop_path instead"
            )
        rank = self.AXES
        self.rank = rank
        self.dim = dim
        self.num_heads = num_heads
        self.kernel_size = _per_axis(kernel_size, rank, "kernel_size", least=2)
        self.auto_dilation = dilation == "auto"
        self.dilation = [1] * rank if dilation == "auto" else _per_axis(dilation, rank, "dilation", least=1)
        self.scale = float(qk_scale) if qk_scale is not None else (dim // num_heads) ** -0.5
        self.pad_small = pad_small
        self.backend = backend

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        if rel_pos_bias:
            if any(k % 2 == 0 for k in self.kernel_size):
                raise ValueError(f"a position bias needs odd kernel sizes, but kernel_size={kernel_size}")
            table = [2 * k - 1 for k in self.kernel_size]
            self.rpb = nn.Parameter(torch.empty(num_heads, *table, device=device, dtype=dtype))
            trunc_normal_(self.rpb, std=0.02)
        else:
            self.register_parameter("rpb", None)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, *spatial, dim]`` to ``[batch, *spatial, dim]``."""
        if x.dim() != self.rank + 2:
            raise ValueError(f"the input must have {self.rank + 2} axes (batch, spatial, channels), got {x.dim()}")
        # All integer work is on plain lists, so that the same lines run eagerly, compiled and scripted.
        size = [x.shape[axis + 1] for axis in range(self.rank)]
        dilation = self.dilation
        if self.auto_dilation:
            dilation = [max(1, size[axis] // self.kernel_size[axis]) for axis in range(self.rank)]
        short = [max(0, self.kernel_size[axis] * dilation[axis] - size[axis]) for axis in range(self.rank)]
        padded = max(short) > 0
        if padded:
            if not self.pad_small:
                raise ValueError(
                    f"the map of size {size} is smaller than kernel_size {self.kernel_size} times dilation "
                    f"{dilation}; use a larger input, a smaller dilation, or pad_small=True"
                )
            pads = [0, 0]
            for axis in range(self.rank):
                pads += [0, short[self.rank - 1 - axis]]
            x = F.pad(x, pads)

        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.dim // self.num_heads))
        q, k, v = qkv.unbind(-3)
        if torch.jit.is_scripting():
            x = _gather_attention(q, k, v, self.kernel_size, dilation, self.scale, self.rpb)
        else:
            x = _OPS[self.rank](
                q,
                k,
                v,
                tuple(self.kernel_size),
                dilation=tuple(dilation),
                scale=self.scale,
                rpb=self.rpb,
                backend=self.backend,
            )
        x = x.flatten(-2)
        if padded:
            for axis in range(self.rank):
                x = x.narrow(axis + 1, 0, size[axis])
        return self.proj_drop(self.proj(x))

    def extra_repr(self) -> str:
        dilation = "auto" if self.auto_dilation else self.dilation
        return f"dim={self.dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={dilation}"


@register_notrace_module  # fx cannot trace decisions that depend on the size of the map
class NeighborhoodAttention1d(NeighborhoodAttentionBase):
    """Neighborhood attention over sequences, ``[batch, length, dim]``.

    Arguments and behaviour: see `NeighborhoodAttentionBase`.
    """

    AXES = 1


@register_notrace_module
class NeighborhoodAttention2d(NeighborhoodAttentionBase):
    """Neighborhood attention over images, ``[batch, height, width, dim]``.

    Arguments and behaviour: see `NeighborhoodAttentionBase`.
    """

    AXES = 2


@register_notrace_module
class NeighborhoodAttention3d(NeighborhoodAttentionBase):
    """Neighborhood attention over volumes or videos, ``[batch, depth, height, width, dim]``.

    Arguments and behaviour: see `NeighborhoodAttentionBase`.
    """

    AXES = 3


def _per_axis(value: int | Sequence[int], rank: int, name: str, least: int) -> list[int]:
    """One integer for each of `rank` axes."""
    values = [value] * rank if isinstance(value, int) else list(value)
    if len(values) != rank or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"{name} must be an integer >= {least}, or {rank} of them, got {value!r}")
    return values


def _axis_neighbors(length: int, kernel: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the neighbors along one axis and their places in a bias axis, both ``[length, kernel]``.

    A query sees keys of its own dilation group; near a border its window shifts and keeps its width.
    """
    x = torch.arange(length, device=device)
    group = x % dilation
    inner = x // dilation
    group_length = (length - group + dilation - 1) // dilation
    start = torch.minimum(torch.clamp(inner - kernel // 2, min=0), group_length - kernel)
    neighbor = start.unsqueeze(1) + torch.arange(kernel, device=device)
    position = group.unsqueeze(1) + neighbor * dilation
    return position, neighbor - inner.unsqueeze(1) + (kernel - 1)


def _gather_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: list[int],
    dilation: list[int],
    scale: float,
    rpb: Tensor | None,
) -> Tensor:
    """Neighborhood attention in operations that TorchScript knows; shapes as in `visionattn.kernels.na2d`."""
    rank = len(kernel_size)
    device = q.device
    position, offset = _axis_neighbors(q.shape[1], kernel_size[0], dilation[0], device)
    for axis in range(1, rank):
        length = q.shape[axis + 1]
        position_n, offset_n = _axis_neighbors(length, kernel_size[axis], dilation[axis], device)
        position = position[:, None, :, None] * length + position_n[None, :, None, :]
        position = position.flatten(2).flatten(0, 1)
        offset = offset[:, None, :, None] * (2 * kernel_size[axis] - 1) + offset_n[None, :, None, :]
        offset = offset.flatten(2).flatten(0, 1)
    queries, neighbors = position.shape[0], position.shape[1]

    q_BNHD = q.flatten(1, rank) * scale
    index = position.flatten()
    k_BNKHD = k.flatten(1, rank).index_select(1, index).unflatten(1, (queries, neighbors))
    v_BNKHD = v.flatten(1, rank).index_select(1, index).unflatten(1, (queries, neighbors))
    logits_BNHK = torch.einsum("bnhd,bnkhd->bnhk", q_BNHD, k_BNKHD)
    if rpb is not None:
        bias_HNK = rpb.flatten(1).index_select(1, offset.flatten()).unflatten(1, (queries, neighbors))
        logits_BNHK = logits_BNHK + bias_HNK.transpose(0, 1)
    out_BNHD = torch.einsum("bnhk,bnkhd->bnhd", logits_BNHK.softmax(-1), v_BNKHD)
    return out_BNHD.reshape(q.shape)
