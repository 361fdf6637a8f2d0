"""Global attention with relative position bias over a map of fixed size, as in ViT-rpb.

Hassani and Shi, "Dilated Neighborhood Attention Transformer" (arXiv 2209.15001), section 4. It is equal to neighborhood
attention whose kernel covers the map, and its bias table has the same layout.
"""

import torch
from timm.layers import register_notrace_module, trunc_normal_
from torch import Tensor, nn

from visionattn.layers._sdpa import attend

__all__ = ["GlobalAttentionRpb"]


@register_notrace_module
class GlobalAttentionRpb(nn.Module):
    """Multi-head self-attention over all positions of ``[batch, height, width, dim]``; returns the same shape.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        size: height and width of the map. The bias of query (y, x) and key (y', x') is
            ``rpb[head, y' - y + height - 1, x' - x + width - 1]``.
        qkv_bias: add a bias to the query, key and value projection.
        qk_scale: scale of the logits; None for ``(dim / num_heads) ** -0.5``.
        attn_drop: dropout rate of the attention probabilities.
        proj_drop: dropout rate after the output projection.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if `dim` is not a multiple of `num_heads` or the input has another size.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        size: tuple[int, int],
        *,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"`dim` must be a multiple of `num_heads`={num_heads}, got {dim}")
        height, width = size
        self.size = (height, width)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = float(qk_scale) if qk_scale is not None else self.head_dim**-0.5
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.rpb = nn.Parameter(torch.empty(num_heads, 2 * height - 1, 2 * width - 1, device=device, dtype=dtype))
        trunc_normal_(self.rpb, std=0.02)
        # Persistent, because the published checkpoints contain it.
        y, x = torch.arange(height, device=device), torch.arange(width, device=device)
        offset_y = y - y[:, None] + height - 1
        offset_x = x - x[:, None] + width - 1
        index = offset_y[:, None, :, None] * (2 * width - 1) + offset_x[None, :, None, :]
        self.register_buffer("relative_position_index", index.reshape(height * width, height * width))
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        if (height, width) != self.size:
            raise ValueError(f"`x` must have the height and width {self.size}, got {(height, width)}")
        qkv = self.qkv(x).view(batch, height * width, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        positions = height * width
        bias = self.rpb.flatten(1)[:, self.relative_position_index.flatten()].view(1, -1, positions, positions)
        dropout = self.attn_drop if self.training else 0.0
        out = attend(q, k, v, bias.to(q.dtype), dropout, scale=self.scale)
        out = out.transpose(1, 2).reshape(batch, height, width, dim)
        return self.proj_drop(self.proj(out))
