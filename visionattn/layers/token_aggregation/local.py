"""Attention within overlapping windows."""

import torch
from torch import Tensor, nn

from visionattn.layers._sdpa import attend
from visionattn.layers.token_aggregation.parts import ConvFFN, Normed, Projections, check_heads, common_width

__all__ = ["LocalRegionAttention"]

SHARED = 2
"""Rows and columns that neighboring windows share."""
OVERLAPS = ("mean", "published")


class LocalRegionAttention(nn.Module):
    """Attention within overlapping square windows, averaged where they overlap, and a `ConvFFN` (section 3.3).

    Args:
        dim: channels, a multiple of `heads`.
        qk_dim: channels of queries and keys, a multiple of `heads`.
        mlp_dim: hidden channels of the feed-forward layer.
        heads: attention heads.
        window: side of a window, at least 3; neighbors share two rows or columns, and the last window is moved into the
            map.
        overlap: ``"mean"``, or ``"published"`` for the weights of the authors' code, with which the released models
            were trained: where three windows overlap, their sum is divided by 4 along that axis.

    Raises:
        ValueError: an argument is out of range, or the map is smaller than a window.
    """

    def __init__(
        self, dim: int, qk_dim: int, mlp_dim: int, heads: int = 4, window: int = 16, overlap: str = "mean"
    ) -> None:
        super().__init__()
        check_heads(dim, qk_dim, heads)
        if window <= SHARED:
            raise ValueError(f"`window` must be at least {SHARED + 1}, got {window}")
        if overlap not in OVERLAPS:
            raise ValueError(f"`overlap` must be one of {', '.join(map(repr, OVERLAPS))}, got {overlap!r}")
        self.heads, self.window, self.overlap, self.scale = heads, window, overlap, (qk_dim // heads) ** -0.5
        attention = Projections("to_q to_k to_v proj", dim, qk_dim)
        self.layer = nn.ModuleList([Normed(dim, attention), Normed(dim, ConvFFN(dim, mlp_dim))])

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the shape of ``x``, ``[B, C, H, W]``; both sides must be at least `window`."""
        x = x.permute(0, 2, 3, 1)
        batch, height, width, dim = x.shape
        if not torch.compiler.is_exporting() and min(height, width) < self.window:
            raise ValueError(f"`x` must have at least {self.window} x {self.window} pixels, got {height} x {width}")
        rows, row_weight, row_total = self._axis(height, x.device)
        columns, column_weight, column_total = self._axis(width, x.device)
        counts = (rows.shape[0] // self.window, columns.shape[0] // self.window)
        attention = self.layer[0].fn
        value_dim = dim // self.heads
        padded = common_width([attention.to_q.weight.shape[0] // self.heads, value_dim], x.device)
        # queries, keys and values of the map, not of the windows, which overlap
        qkv = torch.stack(attention.project(self.layer[0].norm(x), self.heads, padded), 3).flatten(3)
        qkv = qkv.index_select(1, rows).index_select(2, columns)
        qkv = qkv.view(batch, counts[0], self.window, counts[1], self.window, -1).transpose(2, 3)
        qkv = qkv.reshape(batch * counts[0] * counts[1], self.window**2, 3, self.heads, padded)
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        out = attend(q, k, v, scale=self.scale)[..., :value_dim].transpose(1, 2)
        out = out.reshape(batch, *counts, self.window, self.window, dim).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        out = out.new_zeros(batch, height, out.shape[2], dim).index_add(1, rows, out)
        out = out.new_zeros(batch, height, width, dim).index_add(2, columns, out)
        weight = (row_weight[:, None] * column_weight)[..., None].to(out.dtype)
        x = x * (row_total[:, None] * column_total)[..., None] + attention.proj(out * weight)
        return (x + self.layer[1].fn(self.layer[1].norm(x))).permute(0, 3, 1, 2)

    def _axis(self, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Describe the windows along one axis.

        Returns:
            The position of each element of each window, int64 ``[windows * window]``; the factor on the sum of the
            windows at each position, ``[length]``; and the number of windows there times this factor.
        """
        stride = self.window - SHARED
        regular = stride * torch.arange((length - self.window + 2 * stride - 1) // stride, device=device)
        starts = regular.clamp(max=length - self.window)
        place = torch.arange(length, device=device)
        count = ((place >= starts[:, None]) & (place < starts[:, None] + self.window)).sum(0)
        if self.overlap == "mean":
            weight = 1 / count
        else:
            halved = (place >= starts[:, None]) & (place < regular[:, None] + SHARED) & (regular[:, None] > 0)
            weight = 0.5 ** halved.sum(0)
        positions = (starts[:, None] + torch.arange(self.window, device=device)).flatten()
        return positions, weight, count * weight
