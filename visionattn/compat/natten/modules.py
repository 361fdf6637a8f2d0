"""The modules of NATTEN, with the parameters ``qkv``, ``proj`` and, with a bias, ``rpb``.

The names and the order of arguments depend on the version:

| version | arguments after the kernel size |
|---|---|
| up to 0.15 | dilation, bias (True by default), qkv_bias, qk_scale, attn_drop, proj_drop |
| 0.17 | dilation, is_causal, rel_pos_bias (False by default), qkv_bias, qk_scale, attn_drop, proj_drop |
| since 0.20 | stride, dilation, is_causal, qkv_bias, qk_scale, proj_drop |

Maps smaller than the window are padded, as up to 0.15; later versions raise an error.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.kernels.neighborhood.unfused import bias_of_neighbors, neighborhood_scores, neighborhood_values
from visionattn.layers.neighborhood import NeighborhoodAttentionBase

__all__ = ["NeighborhoodAttention1D", "NeighborhoodAttention2D", "NeighborhoodAttention3D", "modules_of"]

PER_AXIS = int | Sequence[int]


class _Attention(NeighborhoodAttentionBase):
    """Neighborhood attention on ``[batch, *spatial, dim]``, with dropout of the probabilities while training."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: PER_AXIS,
        dilation: PER_AXIS | None,
        attn_drop: float,
        **kwargs: Any,
    ) -> None:
        # NATTEN uses the default scale for 0.
        kwargs["qk_scale"] = kwargs["qk_scale"] or None
        super().__init__(dim, num_heads, kernel_size, 1 if dilation is None else dilation, **kwargs)
        self.head_dim = dim // num_heads
        self.attn_drop = nn.Dropout(attn_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Compute attention; the kernels do not store probabilities, so dropout uses the separate operators."""
        if not (self.training and self.attn_drop.p):
            return super().forward(x)
        size = x.shape[1:-1]
        needed = [max(n, k * d) for n, k, d in zip(size, self.kernel_size, self.dilation, strict=True)]
        x = F.pad(
            x, [0, 0, *(pad for n, m in zip(reversed(size), reversed(needed), strict=True) for pad in (0, m - n))]
        )
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).movedim(-2, 1).unbind(-2)
        geometry = (self.kernel_size, self.stride, self.dilation, self.is_causal)
        scores = neighborhood_scores(q * self.scale, k, *geometry)
        if self.rpb is not None:
            scores = scores + bias_of_neighbors(self.rpb, needed, *geometry[:3]).to(scores.dtype)
        x = neighborhood_values(self.attn_drop(scores.softmax(-1)), v, *geometry).movedim(1, -2).flatten(-2)
        for axis, n in enumerate(size, 1):
            x = x.narrow(axis, 0, n)
        return self.proj_drop(self.proj(x))


class _Until015(_Attention):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: PER_AXIS,
        dilation: PER_AXIS | None = 1,
        bias: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim, num_heads, kernel_size, dilation, attn_drop, rel_pos_bias=bias, qkv_bias=qkv_bias, qk_scale=qk_scale,
            proj_drop=proj_drop,
        )  # fmt: skip


class _In017(_Attention):
    def __init__(
        self,
        dim: int,
        num_heads: int,
        kernel_size: PER_AXIS,
        dilation: PER_AXIS | None = 1,
        is_causal: bool | Sequence[bool] = False,
        rel_pos_bias: bool = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        bias: bool | None = None,
    ) -> None:
        """Create the module; ``bias`` is the name of ``rel_pos_bias`` up to 0.15."""
        super().__init__(
            dim, num_heads, kernel_size, dilation, attn_drop, is_causal=is_causal,
            rel_pos_bias=rel_pos_bias if bias is None else bias, qkv_bias=qkv_bias, qk_scale=qk_scale,
            proj_drop=proj_drop,
        )  # fmt: skip


class _Since020(_Attention):
    def __init__(
        self,
        embed_dim: int | None = None,
        num_heads: int = 1,
        kernel_size: PER_AXIS = 7,
        stride: PER_AXIS = 1,
        dilation: PER_AXIS = 1,
        is_causal: bool | Sequence[bool] = False,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        *,
        dim: int | None = None,
    ) -> None:
        """Create the module; ``dim`` is the name of ``embed_dim`` in 0.20."""
        width = dim if embed_dim is None else embed_dim
        if width is None:
            raise TypeError("`embed_dim` is required")
        super().__init__(
            width, num_heads, kernel_size, dilation, 0.0, stride=stride, is_causal=is_causal, rel_pos_bias=False,
            qkv_bias=qkv_bias, qk_scale=qk_scale, proj_drop=proj_drop,
        )  # fmt: skip
        self.embed_dim = width


def modules_of(version: tuple[int, int]) -> dict[str, type[nn.Module]]:
    """Return `NeighborhoodAttention1D`, `2D` and `3D` with the arguments of a version of NATTEN."""
    base = _Until015 if version < (0, 17) else _In017 if version < (0, 20) else _Since020
    found = {}
    for rank in (1, 2, 3):
        name = f"NeighborhoodAttention{rank}D"
        doc = f"Neighborhood attention on ``[batch, *spatial, dim]`` with {rank} spatial axes."
        made = type(name, (base,), {"AXES": rank, "__doc__": doc, "__module__": __name__})
        found[name] = register_notrace_module(made)
    return found


NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D = modules_of((0, 17)).values()
