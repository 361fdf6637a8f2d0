"""Stem, MLP, attention over whole maps and block of BiFormer (Zhu et al., arXiv 2303.08810).

Parameter names are those of the published channels-last models.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, register_notrace_module
from timm.models import checkpoint_seq
from torch import Tensor, nn

from visionattn.layers._sdpa import attend

__all__ = ["BiFormerBlock", "BlockStage", "ChannelsLast", "GlobalAttention", "PatchConv", "Stage", "conv_mixer", "mlp"]


class ChannelsLast(nn.Module):
    """Permute ``[B, C, H, W]`` to channels last, or back if `back`; returns a view."""

    def __init__(self, back: bool = False) -> None:
        super().__init__()
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2) if self.back else x.permute(0, 2, 3, 1)


class GlobalAttention(nn.Module):
    """Multi-head self-attention over all tokens of a ``[B, H, W, dim]`` map, with local position encoding (LePE).

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        side_dwconv: kernel size of the depthwise convolution that is added to the attention output; 0 for none.
        lepe_of: input of that convolution: ``"input"`` (published channels-last models) or ``"value"`` (NCHW model).
    """

    def __init__(self, dim: int, num_heads: int = 8, side_dwconv: int = 0, lepe_of: str = "input", **dd: Any) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"the channels of global attention must be a multiple of {num_heads} heads, got {dim}")
        self.num_heads = num_heads
        self.lepe_of = lepe_of
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.lepe = None
        if side_dwconv:
            self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim, **dd)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        q, k, v = qkv.flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v).transpose(1, 2).reshape(x.shape)
        if self.lepe is not None:
            source = x if self.lepe_of == "input" else qkv[..., 2 * x.shape[-1] :]
            out = out + self.lepe(source.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj(out)


@register_notrace_module  # the control flow depends on the input size
class PatchConv(nn.Conv2d):
    """Convolution with stride equal to its kernel size, ``[B, C, H, W]`` to ``[B, C', H / size, W / size]``.

    If the size does not divide the map, it is zero-padded at the bottom and right with `pad_partial`, which rounds the
    output size up. Otherwise the remainder is ignored, which rounds it down, but to at least 1.
    """

    def __init__(self, in_chans: int, out_chans: int, size: int, **dd: Any) -> None:
        super().__init__(in_chans, out_chans, size, stride=size, **dd)
        self.pad_partial = True

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0]
        bottom, right = -x.shape[2] % size, -x.shape[3] % size
        if not self.pad_partial:
            bottom = bottom if x.shape[2] < size else 0
            right = right if x.shape[3] < size else 0
        if bottom > 0 or right > 0:
            x = F.pad(x, [0, right, 0, bottom])
        return self._conv_forward(x, self.weight, self.bias)


def conv_mixer(dim: int, **dd: Any) -> nn.Module:
    """Return the convolutions that replace attention (pointwise, depthwise 5x5, pointwise) on ``[B, H, W, dim]``."""
    return nn.Sequential(
        ChannelsLast(back=True),
        nn.Conv2d(dim, dim, 1, **dd),
        nn.Conv2d(dim, dim, 5, padding=2, groups=dim, **dd),
        nn.Conv2d(dim, dim, 1, **dd),
        ChannelsLast(),
    )


class _DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution of a channels-last map. A separate module to match the published parameter name."""

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def mlp(dim: int, ratio: float, middle: str, **dd: Any) -> nn.Sequential:
    """Return an MLP with GELU.

    `middle` is the module after the first linear layer, which determines the indices in parameter names:
    ``"dwconv"``, ``"identity"``, or ``"none"`` for no module.
    """
    hidden = int(ratio * dim)
    layers: list[nn.Module] = [nn.Linear(dim, hidden, **dd)]
    if middle != "none":
        layers.append(_DepthwiseConv(hidden, **dd) if middle == "dwconv" else nn.Identity())
    return nn.Sequential(*layers, nn.GELU(), nn.Linear(hidden, dim, **dd))


class BiFormerBlock(nn.Module):
    """Transformer block on ``[B, H, W, dim]``: position convolution, attention and MLP.

    Args:
        attn: attention module, including its projections.
        mlp: MLP module.
        dim: channels.
        pos_conv: add a depthwise 3x3 convolution of the input.
        layer_scale: initial value of the layer scale parameters ``gamma1`` and ``gamma2``; None for no layer scale.
        pre_norm: pre-norm instead of post-norm.
        drop_path: stochastic depth rate of each branch.
    """

    def __init__(
        self,
        attn: nn.Module,
        mlp: nn.Module,
        dim: int,
        pos_conv: bool,
        layer_scale: float | None = None,
        pre_norm: bool = True,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.pre_norm = pre_norm
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd) if pos_conv else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = mlp
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        if layer_scale is None:
            self.register_parameter("gamma1", None)
            self.register_parameter("gamma2", None)
        else:
            self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale), **dd))
            self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale), **dd))

    def forward(self, x: Tensor) -> Tensor:
        if self.pos_embed is not None:
            x = x + self.pos_embed(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        attended = self.attn(self.norm1(x) if self.pre_norm else x)
        gamma = self.gamma1  # TorchScript narrows the type of local variables only
        if gamma is not None:
            attended = gamma * attended
        x = x + self.drop_path1(attended)
        if not self.pre_norm:
            x = self.norm1(x)
        hidden = self.mlp(self.norm2(x) if self.pre_norm else x)
        gamma = self.gamma2
        if gamma is not None:
            hidden = gamma * hidden
        x = x + self.drop_path2(hidden)
        return x if self.pre_norm else self.norm2(x)


class Stage(nn.Sequential):
    """The blocks of one resolution, as direct children."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(tuple(self), x)
        for block in self:
            x = block(x)
        return x


class BlockStage(nn.Module):
    """The blocks of one resolution in a child named ``blocks``, as in the published STL models."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(tuple(self.blocks), x)
        for block in self.blocks:
            x = block(x)
        return x
