"""Neighborhood attention modules for one, two and three spatial axes.

Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143), "Dilated Neighborhood Attention
Transformer" (arXiv 2209.15001) and "Generalized Neighborhood Attention" (arXiv 2504.16922).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat, get_norm_layer, register_notrace_module, trunc_normal_
from torch import Tensor, nn

from visionattn.kernels import na1d, na2d, na3d
from visionattn.kernels.exporting import any_symbolic, crop_end, maximum, pad_end
from visionattn.kernels.neighborhood.api import packed_attention
from visionattn.kernels.neighborhood.gather import gather_attention
from visionattn.layers.rope import AxialRope

__all__ = ["NeighborhoodAttention1d", "NeighborhoodAttention2d", "NeighborhoodAttention3d"]

_OPS = {1: na1d, 2: na2d, 3: na3d}


class NeighborhoodAttentionBase(nn.Module):
    """Multi-head neighborhood attention on channels-last maps ``[batch, *spatial, dim]``; returns the same shape.

    Parameters are ``qkv`` (rows in the order query, key, value), ``proj`` and, with a position bias, ``rpb`` of shape
    ``[num_heads, 2*K-1, ...]``, as in the published models; with `qk_norm` also ``q_norm`` and ``k_norm``, as in timm's
    `Attention`.

    TorchScript cannot call the kernels. Scripted modules use a gather with the same result, which stores
    ``prod(kernel_size)`` copies of the keys and values.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        kernel_size: size of the neighborhood, one value or one per axis, at least 2; odd with a position bias.
        dilation: step between neighbors, one value or one per axis. ``"auto"`` selects the largest that fits each axis
            of the input: ``max(1, length // kernel_size)``.
        stride: number of consecutive queries that share the window of the middle one, one value or one per axis, at
            most the kernel size. A stride equal to it is blocked window attention.
        is_causal: attend to the query's own and earlier positions only, for all axes or one value per axis. Not
            supported with a position bias.
        rel_pos_bias: learn a bias per head and relative position.
        qkv_bias: add a bias to the query, key and value projection.
        qk_scale: scale of the logits; None for ``(dim / num_heads) ** -0.5``.
        qk_norm: normalize queries and keys over the channels of each head, before any rotation.
        norm_layer: norm of `qk_norm`: a class such as `timm.layers.RmsNorm`, or timm's name of one.
        rope: rotary position embedding of queries and keys. True, or a dict of arguments of `AxialRope`.
        rotate_half: layout of rotations, those of `rope` and those passed to `forward`, as in timm's `AttentionRope`.
        attn_drop: must be 0, because the kernels do not compute attention probabilities.
        proj_drop: dropout rate after the output projection.
        pad_small: zero-pad maps smaller than ``kernel_size * dilation`` at the end of each axis before `qkv`, and crop
            before `proj`. As in the published models, padding takes part as keys; it is not rotated. If False, such
            maps raise a ValueError.
        backend: backend of the kernel; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range, or the input has the wrong rank or is too small.
    """

    AXES: int  # number of spatial axes

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: int | Sequence[int] = 7,
        dilation: int | Sequence[int] | Literal["auto"] = 1,
        *,
        stride: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        rel_pos_bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        qk_norm: bool = False,
        norm_layer: str | Callable[..., nn.Module] = nn.LayerNorm,
        rope: bool | Mapping[str, Any] = False,
        rotate_half: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        pad_small: bool = True,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"`dim` must be a multiple of `num_heads`={num_heads}, got {dim}")
        if attn_drop:
            raise ValueError(
                "`attn_drop` must be 0, because the kernels do not compute attention probabilities, "
                f"got {attn_drop}; use `proj_drop` or `drop_path`"
            )
        rank = self.AXES
        self.rank = rank
        self.dim = dim
        self.num_heads = num_heads
        self.kernel_size = _per_axis(kernel_size, rank, "kernel_size", least=2)
        self.auto_dilation = dilation == "auto"
        self.dilation = [1] * rank if dilation == "auto" else _per_axis(dilation, rank, "dilation", least=1)
        self.stride = _per_axis(stride, rank, "stride", least=1)
        if any(s > k for s, k in zip(self.stride, self.kernel_size, strict=True)):
            raise ValueError(f"`stride` must be at most `kernel_size`={kernel_size}, got {stride!r}")
        self.is_causal = [is_causal] * rank if isinstance(is_causal, bool) else list(is_causal)
        if len(self.is_causal) != rank or not all(isinstance(c, bool) for c in self.is_causal):
            raise ValueError(f"`is_causal` must be a bool, or {rank} of them, got {is_causal!r}")
        if any(self.is_causal) and rel_pos_bias:
            raise ValueError(f"`rel_pos_bias` must be False with `is_causal`={is_causal}, got {rel_pos_bias}")
        head_dim = dim // num_heads
        self.scale = float(qk_scale) if qk_scale is not None else head_dim**-0.5
        self.rotate_half = rotate_half
        self.pad_small = pad_small
        self.backend = backend

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        if rel_pos_bias:
            if any(k % 2 == 0 for k in self.kernel_size):
                raise ValueError(f"`kernel_size` must be odd with `rel_pos_bias`, got {kernel_size}")
            table = [2 * k - 1 for k in self.kernel_size]
            self.rpb = nn.Parameter(torch.empty(num_heads, *table, device=device, dtype=dtype))
            trunc_normal_(self.rpb, std=0.02)
        else:
            self.register_parameter("rpb", None)
        norm = get_norm_layer(norm_layer) if qk_norm else nn.Identity
        dd = {"device": device, "dtype": dtype} if qk_norm else {}
        self.q_norm = norm(head_dim, **dd)
        self.k_norm = norm(head_dim, **dd)
        options = {} if rope is True else dict(rope or {})
        if rope is False:
            self.rope = None
        else:
            self.rope = AxialRope(head_dim, rank, rotate_half=rotate_half, device=device, **options)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        registers: Tensor | None = None,
        additional_keys: Tensor | None = None,
        additional_values: Tensor | None = None,
    ) -> Tensor:
        """Compute attention.

        Args:
            x: ``[batch, *spatial, dim]``.
            rope: rotations that replace the layer's own, from one of timm's embeddings for the map size:
                ``[positions, 2 * head_dim]``, or ``[..., num_heads, positions, 2 * head_dim]`` for separate ones per
                head.
            registers: ``[batch, count, dim]``, tokens that every query attends to in addition to its neighborhood. They
                are projected and normalized like `x`, but have no position and no output.
            additional_keys, additional_values: ``[batch, count, num_heads, head_dim]``, projected keys and values that
                every query attends to in addition.

        Returns:
            ``[batch, *spatial, dim]``.
        """
        if x.dim() != self.rank + 2:
            raise ValueError(f"`x` must have {self.rank + 2} axes (batch, spatial, channels), got {x.dim()}")
        # Integer arithmetic on lists works in eager mode, torch.compile and TorchScript.
        size = [x.shape[axis + 1] for axis in range(self.rank)]
        dilation = self.dilation
        if self.auto_dilation:
            dilation = [maximum(1, size[axis] // self.kernel_size[axis]) for axis in range(self.rank)]
        needed = [maximum(self.kernel_size[axis] * dilation[axis], size[axis]) for axis in range(self.rank)]
        short = [needed[axis] - size[axis] for axis in range(self.rank)]
        symbolic = False
        if not torch.jit.is_scripting():
            symbolic = any_symbolic(needed)
        if symbolic:
            # Whether a map is too small is not known while a program for any size is traced.
            x = pad_end(x, needed)
        elif max(short) > 0:
            if not self.pad_small:
                raise ValueError(
                    f"`x` must be at least as large as `kernel_size`={self.kernel_size} times `dilation`={dilation} "
                    f"without `pad_small`, got {size}"
                )
            pads = [0, 0]
            for axis in range(self.rank):
                pads += [0, short[self.rank - 1 - axis]]
            x = F.pad(x, pads)

        if rope is None and self.rope is not None:
            rope = self.rope.get_embed(size)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.dim // self.num_heads))
        q, k, v = qkv.unbind(-3)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            rotation = self._pad_rotation(rope, size, short)
            q = self._rotate(q, rotation)
            k = self._rotate(k, rotation)
        if registers is not None:
            register_k, register_v = self._project_registers(registers)
            if additional_keys is None or additional_values is None:
                additional_keys, additional_values = register_k, register_v
            else:
                additional_keys = torch.cat([additional_keys, register_k], 1)
                additional_values = torch.cat([additional_values, register_v], 1)
        if torch.jit.is_scripting():
            x, _ = gather_attention(
                q,
                k,
                v,
                self.kernel_size,
                self.stride,
                dilation,
                self.is_causal,
                self.scale,
                self.rpb,
                additional_keys,
                additional_values,
            )
        else:
            plain = rope is None and additional_keys is None and isinstance(self.q_norm, nn.Identity)
            x = self._attend(qkv if plain else None, q, k, v, dilation, additional_keys, additional_values)
        x = x.flatten(-2)
        if symbolic:
            x = crop_end(x, size)
        elif max(short) > 0:
            for axis in range(self.rank):
                x = x.narrow(axis + 1, 0, size[axis])
        return self.proj_drop(self.proj(x))

    @torch.jit.unused
    def _attend(
        self,
        qkv: Tensor | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dilation: list[int],
        additional_keys: Tensor | None,
        additional_values: Tensor | None,
    ) -> Tensor:
        """Call the kernel, with the packed projection if `q`, `k` and `v` are views of it."""
        geometry = (tuple(self.kernel_size), tuple(self.stride), tuple(dilation), tuple(self.is_causal))
        options = dict(scale=self.scale, rpb=self.rpb, backend=self.backend)
        attention = _OPS[self.rank]  # replaced while predictions are explained
        if qkv is not None and attention in (na1d, na2d, na3d):
            return packed_attention(qkv, *geometry, **options)
        options |= dict(additional_keys=additional_keys, additional_values=additional_values)
        return attention(q, k, v, *geometry, **options)

    def _pad_rotation(self, rope: Tensor, size: list[int], short: list[int]) -> Tensor:
        """Return rotations ``[..., positions, heads or 1, 2 * head_dim]`` of the padded map; padding has angle 0."""
        positions = 1
        for length in size:
            positions *= length
        if rope.dim() < 2 or rope.shape[-2] != positions or rope.shape[-1] != 2 * (self.dim // self.num_heads):
            raise ValueError(
                f"`rope` must have shape [..., {positions}, {2 * (self.dim // self.num_heads)}] for a map of size "
                f"{size}, got {list(rope.shape)}"
            )
        rope = rope.transpose(-3, -2) if rope.dim() > 2 else rope.unsqueeze(-2)
        if max(short) > 0:
            rope = rope.unflatten(-3, size)
            pads = [0, 0, 0, 0]
            for axis in range(self.rank):
                pads += [0, short[self.rank - 1 - axis]]
            sin, cos = rope.chunk(2, -1)
            rope = torch.cat([F.pad(sin, pads), F.pad(cos, pads, value=1.0)], -1)
            rope = rope.flatten(-self.rank - 2, -3)
        return rope

    def _rotate(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Rotate queries or keys ``[batch, *spatial, heads, head_dim]``; the dtype is kept."""
        flat = x.flatten(1, self.rank)
        return apply_rot_embed_cat(flat, rotation, half=self.rotate_half).to(x.dtype).reshape(x.shape)

    def _project_registers(self, registers: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``[batch, count, heads, head_dim]`` of register tokens."""
        bias = self.qkv.bias
        if bias is not None:
            bias = bias[self.dim :]
        kv = F.linear(registers, self.qkv.weight[self.dim :], bias)
        k, v = kv.unflatten(-1, (2, self.num_heads, self.dim // self.num_heads)).unbind(-3)
        return self.k_norm(k), v

    def extra_repr(self) -> str:
        dilation = "auto" if self.auto_dilation else self.dilation
        return f"dim={self.dim}, num_heads={self.num_heads}, kernel_size={self.kernel_size}, dilation={dilation}"


@register_notrace_module  # the control flow depends on the input size
class NeighborhoodAttention1d(NeighborhoodAttentionBase):
    """Neighborhood attention over sequences, ``[batch, length, dim]``.

    See `NeighborhoodAttentionBase` for the arguments.
    """

    AXES = 1


@register_notrace_module
class NeighborhoodAttention2d(NeighborhoodAttentionBase):
    """Neighborhood attention over images, ``[batch, height, width, dim]``.

    See `NeighborhoodAttentionBase` for the arguments.
    """

    AXES = 2


@register_notrace_module
class NeighborhoodAttention3d(NeighborhoodAttentionBase):
    """Neighborhood attention over volumes or videos, ``[batch, depth, height, width, dim]``.

    See `NeighborhoodAttentionBase` for the arguments.
    """

    AXES = 3


def _per_axis(value: int | Sequence[int], rank: int, name: str, least: int) -> list[int]:
    """Return one integer for each of `rank` axes."""
    values = [value] * rank if isinstance(value, int) else list(value)
    if len(values) != rank or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"`{name}` must be an integer >= {least}, or {rank} of them, got {value!r}")
    return values
