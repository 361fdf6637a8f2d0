"""Gated positional self-attention (GPSA): each head combines content and position attention with a learned gate.

d'Ascoli et al., "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases" (arXiv 2103.10697).
Parameter names are the published ones.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.layers._sdpa import attend
from visionattn.layers._tokens import TokenAttention

__all__ = ["GatedPositionalAttention"]


@register_notrace_module
class GatedPositionalAttention(TokenAttention):
    """Gated positional self-attention on maps of any size.

    Position logits are linear in ``(dx, dy, dx^2 + dy^2)`` and thus a sum of a term in dx and one in dy. Their softmax
    is the product of a softmax over a row and one over a column, which are applied separately; only content attention
    is computed for pairs of tokens.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads. The first ``k ** 2`` heads, with ``k = floor(sqrt(num_heads))``, initially attend to
            the k x k positions around a token.
        input_size: default height and width of the map; there are no position tables.
        num_prefix_tokens: number of tokens before those of the map; the published layers have none. They use content
            attention only.
        qkv_bias: add biases to the query, key and value projections.
        attn_drop: dropout rate of the attention probabilities. If not 0, training computes the full attention matrix.
        proj_drop: dropout rate after the output projection.
        locality_strength: initial sharpness of position attention.
        device, dtype: device and dtype of the parameters.

    Shapes: see `TokenAttention`.

    Raises:
        ValueError: if an argument is out of range or the input has the wrong shape.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        input_size: int | Sequence[int] = 14,
        num_prefix_tokens: int = 0,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        locality_strength: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, input_size, num_prefix_tokens)
        dd = {"device": device, "dtype": dtype}
        self.attn_drop = attn_drop
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.pos_proj = nn.Linear(3, num_heads, **dd)
        self.gating_param = nn.Parameter(torch.ones(num_heads, **dd))
        self.local_init(locality_strength)

    @torch.no_grad()
    def local_init(self, strength: float = 1.0) -> None:
        """Initialize as a convolution (section 3): identity values, each head at one position of a neighborhood."""
        nn.init.eye_(self.v.weight)
        side = math.isqrt(self.num_heads)
        center = (side - 1) / 2 if side % 2 == 0 else side // 2
        for column in range(side):
            for row in range(side):
                weight = torch.tensor([2 * (column - center), 2 * (row - center), -1.0])
                self.pos_proj.weight[column * side + row] = strength * weight.to(self.pos_proj.weight)

    def position(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return the factors of position attention along columns ``[heads, H, H]`` and rows ``[heads, W, W]``."""
        dx_weight, dy_weight, square = self.pos_proj.weight[:, :, None, None].unbind(1)

        def along(length: int, linear: Tensor, bias: Tensor | float) -> Tensor:
            place = torch.arange(length, device=linear.device)
            distance = (place - place[:, None]).to(linear.dtype)
            return (linear * distance + square * distance.square() + bias).softmax(-1)

        return along(height, dy_weight, self.pos_proj.bias[:, None, None]), along(width, dx_weight, 0.0)

    def attention(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the full attention matrix ``[B, heads, N, N]``."""
        x, height, width = self.tokens(x, size)
        prefix, places = self.num_prefix_tokens, height * width
        q, k = self.qk(x).chunk(2, -1)
        content = (self.heads(q) * self.scale @ self.heads(k).transpose(2, 3)).softmax(-1)
        columns, rows = self.position(height, width)
        position = columns[:, :, None, :, None] * rows[:, None, :, None, :]
        position = F.pad(position.reshape(-1, places, places), (prefix, 0, 0, 0))
        gate = self.gating_param.sigmoid()[:, None, None]
        blended = (1 - gate) * content[:, :, prefix:] + gate * position
        blended = blended / blended.sum(-1, keepdim=True)
        return torch.cat([content[:, :, :prefix], blended], 2)

    def attend(self, x: Tensor, height: int, width: int) -> Tensor:
        prefix = self.num_prefix_tokens
        value = self.v(x)
        if self.attn_drop and self.training:
            weights = F.dropout(self.attention(x, (height, width)), self.attn_drop)
            out = (weights @ self.heads(value)).transpose(1, 2).flatten(2)
            return self.proj_drop(self.proj(out))
        q, k = self.qk(x).chunk(2, -1)
        out = attend(self.heads(q), self.heads(k), self.heads(value), scale=self.scale)
        columns, rows = self.position(height, width)
        local = self.heads(value[:, prefix:]).unflatten(2, (height, width))  # [B, heads, H, W, d]
        local = rows[:, None].to(local.dtype) @ local
        local = (columns.to(local.dtype) @ local.flatten(3)).view(local.shape).flatten(2, 3)
        gate = self.gating_param.sigmoid()[:, None, None].to(out.dtype)
        mapped = torch.lerp(out[:, :, prefix:], local, gate)
        out = torch.cat([out[:, :, :prefix], mapped], 2) if prefix else mapped
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
