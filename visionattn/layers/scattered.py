"""Modules of ScatterFormer: attention within windows of voxels, cross-window convolutions and pillar pooling.

He et al., "ScatterFormer: Efficient Voxel Transformer with Scattered Linear Attention" (arXiv 2401.00912). Parameter
names are the official ones.
"""

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.kernels import scattered_linear_attention
from visionattn.layers.sparse_conv import RowNorm, SparseTensor, SubMDepthwiseConv3d

__all__ = ["AttentivePillarPool", "CrossWindowFFN", "ScatterFormerStage", "ScatteredLinearAttention", "window_order"]


def window_order(coords: Tensor, window_size: int) -> tuple[Tensor, Tensor]:
    """Return the order that sorts voxels by window, and the offsets of the windows.

    Windows have `window_size` cells along y and x, and the full height.

    Args:
        coords: int64 ``[N, 4]``, (batch, z, y, x).
        window_size: window size in cells.

    Returns:
        Indices ``[N]`` that sort (stably) by batch, window row and window column, and offsets ``[windows + 1]``.
    """
    batch, _, y, x = coords.unbind(1)
    row = torch.div(y, window_size, rounding_mode="floor")
    column = torch.div(x, window_size, rounding_mode="floor")
    rows_of, columns_of = (int(v.max()) + 1 if len(coords) else 1 for v in (row, column))
    keys, order = ((batch * rows_of + row) * columns_of + column).sort(stable=True)
    _, counts = torch.unique_consecutive(keys, return_counts=True)
    return order, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


class ScatteredLinearAttention(nn.Module):
    """Linear attention among the voxels of each window, with ReLU as feature map (section 3.2).

    Args:
        dim: channels.
        num_heads: attention heads; a divisor of `dim`.
        backend: backend of `visionattn.kernels.scattered_linear_attention`; None selects the best available one.

    Raises:
        ValueError: if `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        backend: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"`num_heads` must divide `dim`={dim}, got {num_heads}")
        self.num_heads, self.backend = num_heads, backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        """Compute attention of ``[N, dim]``, sorted by window, with offsets ``[windows + 1]``; returns ``[N, dim]``."""
        q, k, v = self.qkv(x).unflatten(1, (3, self.num_heads, x.shape[1] // self.num_heads)).unbind(1)
        y = scattered_linear_attention(q.relu(), k.relu(), v, offsets, backend=self.backend)
        return self.proj(y.flatten(1))


class CrossWindowFFN(nn.Module):
    """Convolutions across window borders, then an MLP (section 3.3).

    One quarter of the channels is convolved with a 3x3x3 kernel, one along x and one along y with ``window_size + 1``
    taps, and one is unchanged. As in the official code, ``conv_h`` is along x and ``conv_w`` along y.

    Args:
        dim: channels, a multiple of 4.
        window_size: window size in cells; even, so that kernels are centered.

    Raises:
        ValueError: if `dim` or `window_size` is out of range.
    """

    def __init__(
        self, dim: int, window_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"`dim` must be a multiple of 4, got {dim}")
        if window_size < 2 or window_size % 2:
            raise ValueError(f"`window_size` must be even and at least 2, got {window_size}")
        dd = {"device": device, "dtype": dtype}
        group, taps = dim // 4, window_size + 1
        self.group = group
        self.bn = RowNorm(dim, **dd)
        self.conv_k = SubMDepthwiseConv3d(group, 3, **dd)
        self.conv_h = SubMDepthwiseConv3d(group, (1, 1, taps), **dd)
        self.conv_w = SubMDepthwiseConv3d(group, (1, taps, 1), **dd)
        self.bn2 = RowNorm(dim, **dd)
        self.fc1 = nn.Linear(dim, 2 * dim, **dd)
        self.fc2 = nn.Linear(2 * dim, dim, **dd)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Update the features of the voxels."""
        features = self.bn(x.features)
        k, h, w, rest = (part.contiguous() for part in features.split(self.group, 1))
        parts = [conv(part, x.neighbors) for conv, part in ((self.conv_k, k), (self.conv_h, h), (self.conv_w, w))]
        features = features + torch.cat([*(part.to(features.dtype) for part in parts), rest], 1)
        return x.with_features(features + self.fc2(self.fc1(self.bn2(features)).relu()))


@register_notrace_module  # data-dependent shapes
class ScatterFormerStage(nn.Module):
    """Layers of norm, scattered linear attention and cross-window convolutions, which share one order of the voxels.

    Args:
        dim: channels.
        num_heads: attention heads.
        depth: number of layers.
        window_size: window size in cells of the stage's grid; even.
        backend: backend of the attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 4,
        depth: int = 3,
        window_size: int = 12,
        backend: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.window_size = window_size
        self.norm_layers = nn.ModuleList(RowNorm(dim, **dd) for _ in range(depth))
        self.attn_layers = nn.ModuleList(
            ScatteredLinearAttention(dim, num_heads, backend=backend, **dd) for _ in range(depth)
        )
        self.cffn_layers = nn.ModuleList(CrossWindowFFN(dim, window_size, **dd) for _ in range(depth))

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Update the features of the voxels, which are sorted by window in the output."""
        order, offsets = window_order(x.coords, self.window_size)
        x = x.ordered(order)
        for norm, attention, exchange in zip(self.norm_layers, self.attn_layers, self.cffn_layers, strict=True):
            x = exchange(x.with_features(x.features + attention(norm(x.features), offsets)))
        return x


@register_notrace_module  # data-dependent shapes
class AttentivePillarPool(nn.Module):
    """Attentive pillar pooling: the maximum over a pillar attends to its voxels (section 3.4).

    Args:
        dim: channels.
        pillar_size: number of voxels of a full pillar, the height D of the grid.
        num_heads: attention heads.
    """

    def __init__(
        self,
        dim: int,
        pillar_size: int,
        num_heads: int = 8,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.pillar_size = pillar_size
        self.norm = nn.LayerNorm(dim, **dd)
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True, **dd)
        self.pos_embedding = nn.Embedding(pillar_size, dim, **dd)
        nn.init.normal_(self.pos_embedding.weight, std=0.01)

    def forward(self, x: SparseTensor, norm: bool = True) -> SparseTensor:
        """Pool voxels to pillars with coordinates (batch, 0, y, x) in ascending order.

        Args:
            x: voxels.
            norm: apply the layer norm to the pillars.

        Raises:
            ValueError: if the grid is not `pillar_size` voxels high.
        """
        depth, height, width = x.spatial_shape
        if depth != self.pillar_size:
            raise ValueError(f"the grid must be `pillar_size`={self.pillar_size} voxels high, got {depth}")
        batch, z, row, column = x.coords.unbind(1)
        keys, pillar = torch.unique((batch * height + row) * width + column, sorted=True, return_inverse=True)
        line = torch.div(keys, width, rounding_mode="floor")
        sample = torch.div(line, height, rounding_mode="floor")
        coords = torch.stack([sample, torch.zeros_like(keys), line - sample * height, keys - line * width], 1)
        shape = (1, height, width)
        if not len(keys):
            return SparseTensor(self.norm(x.features) if norm else x.features, coords, shape, x.batch_size)
        absent = torch.ones(len(keys), depth, dtype=torch.bool, device=keys.device)
        absent[pillar, z] = False
        columns = x.features.new_zeros(len(keys), depth, x.features.shape[1]).index_put((pillar, z), x.features)
        query = columns.masked_fill(absent[..., None], float("-inf")).amax(1)
        attended, _ = self.self_attn(
            query[:, None], columns + self.pos_embedding.weight, columns, key_padding_mask=absent, need_weights=False
        )
        pooled = attended[:, 0] + query
        return SparseTensor(self.norm(pooled) if norm else pooled, coords, shape, x.batch_size)
