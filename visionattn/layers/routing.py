"""Bi-level routing attention module.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention" (arXiv 2303.08810).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.kernels import bilevel_routing_attention, route_regions

__all__ = ["BiLevelRoutingAttention"]

PADDINGS = ("masked", "input", "projected")
POOLS = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool")


class _QKV(nn.Module):
    """Query, key and value projection. A separate module to match the published parameter names."""

    def __init__(self, dim: int, qk_dim: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.qk_dim = qk_dim
        self.dim = dim
        self.qkv = nn.Linear(dim, 2 * qk_dim + dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).split([self.qk_dim, self.qk_dim, self.dim], dim=-1)
        return q, k, v


class _Router(nn.Module):
    """Learned projection for the routing. A separate module to match the published parameter names."""

    def __init__(self, qk_dim: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.emb = nn.Linear(qk_dim, qk_dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.emb(x)


@register_notrace_module  # the control flow depends on the input size
class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention on channels-last maps ``[batch, height, width, dim]``; returns the same shape.

    The map is divided into regions, each of which attends to the `topk` regions with the highest affinity. A depthwise
    convolution of the values (LePE) is added. See `visionattn.kernels.bilevel_routing_attention` for the attention.

    Parameters have the names of the published channels-last models: ``qkv.qkv`` (rows in the order query, key, value),
    ``wo``, ``lepe``, and ``router.emb`` with learned routing.

    TorchScript cannot call the kernels, and they do not support soft routing. Scripted modules and `soft_routing` use a
    gather instead, which stores `topk` copies of the keys and values.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        num_regions: number of regions per axis, one value or (rows, columns).
        topk: number of regions that each region attends to.
        qk_dim: channels of queries and keys, a multiple of `num_heads`; None for `dim`.
        qk_scale: scale of the attention logits and of the logits of soft routing. None for ``qk_dim ** -0.5``; as in
            the published models, all channels are counted, not those of a head.
        side_dwconv: kernel size of the depthwise convolution, odd; 0 for none.
        kv_pool: pooling of the keys and values of each region: ``"ada_avgpool"`` or ``"ada_maxpool"`` to `kv_pool_size`
            tokens per axis, ``"avgpool"`` or ``"maxpool"`` over windows of `kv_pool_size` by `kv_pool_size`, or
            ``"identity"``. Routing uses unpooled keys.
        kv_pool_size: see `kv_pool`.
        out_proj: add an output projection.
        soft_routing: multiply the keys and values of a selected region by its weight in the softmax over the selected
            regions, which gives the routing a gradient.
        learned_routing: apply a learned projection to queries and keys for the routing; requires `soft_routing`.
        padding: handling of maps that the regions do not divide. ``"masked"``: regions at the bottom and right are
            smaller, and padding is masked out. ``"input"``: the input is zero-padded, and padding takes part in
            attention and routing, as in the published channels-last models. ``"projected"``: the region size is rounded
            down, which can increase the number of regions; queries, keys and values are zero-padded, and padding takes
            part in attention but not in routing, as in the published NCHW model.
        backend: backend of the kernel; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range or the input has the wrong rank.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_regions: int | Sequence[int] = 7,
        topk: int = 4,
        *,
        qk_dim: int | None = None,
        qk_scale: float | None = None,
        side_dwconv: int = 3,
        kv_pool: str = "identity",
        kv_pool_size: int | None = None,
        out_proj: bool = True,
        soft_routing: bool = False,
        learned_routing: bool = False,
        padding: str = "masked",
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        qk_dim = qk_dim or dim
        if num_heads < 1 or dim % num_heads or qk_dim % num_heads:
            raise ValueError(f"`dim` and `qk_dim` must be multiples of `num_heads`={num_heads}, got {dim} and {qk_dim}")
        regions = [num_regions] * 2 if isinstance(num_regions, int) else list(num_regions)
        if len(regions) != 2 or not all(isinstance(n, int) and n >= 1 for n in regions):
            raise ValueError(f"`num_regions` must be an integer >= 1, or (rows, columns), got {num_regions!r}")
        if not 1 <= topk <= regions[0] * regions[1]:
            raise ValueError(f"`topk` must be in 1..{regions[0] * regions[1]}, the number of regions, got {topk}")
        if side_dwconv < 0 or (side_dwconv and side_dwconv % 2 == 0):
            raise ValueError(f"`side_dwconv` must be odd, or 0 for none, got {side_dwconv}")
        if kv_pool not in POOLS:
            raise ValueError(f"`kv_pool` must be one of {', '.join(map(repr, POOLS))}, got {kv_pool!r}")
        if kv_pool != "identity" and (kv_pool_size is None or kv_pool_size < 1):
            raise ValueError(f"`kv_pool_size` must be at least 1 with `kv_pool`={kv_pool!r}, got {kv_pool_size}")
        if learned_routing and not soft_routing:
            raise ValueError(
                "`soft_routing` must be True with `learned_routing`, which gets no gradient otherwise, got False"
            )
        self.dim = dim
        self.num_heads = num_heads
        self.num_regions = regions
        self.topk = topk
        self.scale = float(qk_scale) if qk_scale is not None else qk_dim**-0.5
        self.kv_pool = kv_pool
        self.kv_pool_size = 0 if kv_pool == "identity" else int(kv_pool_size or 0)
        self.soft_routing = soft_routing
        self.set_padding(padding)
        self.backend = backend
        dd = {"device": device, "dtype": dtype}
        self.lepe = None
        if side_dwconv:
            self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim, **dd)
        self.qkv = _QKV(dim, qk_dim, **dd)
        self.router = _Router(qk_dim, **dd) if learned_routing else None
        self.wo = nn.Linear(dim, dim, **dd) if out_proj else nn.Identity()

    @torch.jit.ignore
    def set_padding(self, padding: str) -> None:
        """Set `padding`, see the class."""
        if padding not in PADDINGS:
            raise ValueError(f"`padding` must be one of {', '.join(map(repr, PADDINGS))}, got {padding!r}")
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        """Compute attention of ``[batch, height, width, dim]``; returns the same shape."""
        if x.dim() != 4:
            raise ValueError(f"`x` must have 4 axes (batch, height, width, channels), got {x.dim()}")
        height, width = x.shape[1], x.shape[2]
        rows, columns = self.num_regions[0], self.num_regions[1]
        topk = self.topk
        if self.padding == "input":
            x = _pad(x, -(-height // rows) * rows, -(-width // columns) * columns)
        q, k, v = self.qkv(x)
        lepe = None if self.lepe is None else self.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.padding == "projected":
            down, right = max(1, height // rows), max(1, width // columns)
            rows, columns = -(-height // down), -(-width // right)
            topk = min(topk, rows * columns)
            down, right = rows * down, columns * right
            q, k, v = _pad(q, down, right), _pad(k, down, right), _pad(v, down, right)
        heads = self.num_heads
        q, k, v = q.unflatten(-1, (heads, -1)), k.unflatten(-1, (heads, -1)), v.unflatten(-1, (heads, -1))
        simple = self.kv_pool == "identity" and not (self.padding == "projected" and q.shape[1:3] != x.shape[1:3])
        if torch.jit.is_scripting() or self.soft_routing:
            out = self._gather(q, k, v, rows, columns, topk, height, width)
        elif simple:
            out = bilevel_routing_attention(q, k, v, (rows, columns), topk, scale=self.scale, backend=self.backend)
        else:
            out = self._routed(q, k, v, rows, columns, topk, height, width)
        out = out.flatten(3)
        if lepe is not None:
            out = _crop(out, height, width) + _crop(lepe, height, width)
        return self.wo(_crop(out, height, width))

    @torch.jit.unused
    def _routed(
        self, q: Tensor, k: Tensor, v: Tensor, rows: int, columns: int, topk: int, height: int, width: int
    ) -> Tensor:
        """Compute routing and attention separately, with different keys."""
        shape = (-(-q.shape[1] // rows) * rows, -(-q.shape[2] // columns) * columns)
        q, k, v = (_pad(t, *shape) for t in (q, k, v))
        real = torch.ones(shape, dtype=torch.bool, device=q.device)
        if self.padding != "input":
            real = _real(height, width, shape[0], shape[1], q.device)
        index, _ = route_regions(q, k, (rows, columns), topk, padding_mask=~real, backend=self.backend)
        if self.padding != "masked":
            real = torch.ones_like(real)
        if self.kv_pool != "identity":
            k, v, real = _pool_regions(k, v, real, rows, columns, self.kv_pool, self.kv_pool_size)
        mask = ~real if self.padding == "masked" else None
        return bilevel_routing_attention(
            q, k, v, (rows, columns), topk,
            scale=self.scale, key_regions=index, padding_mask=mask, backend=self.backend,
        )  # fmt: skip

    def _gather(
        self, q: Tensor, k: Tensor, v: Tensor, rows: int, columns: int, topk: int, height: int, width: int
    ) -> Tensor:
        """Compute routing and attention with operators that TorchScript supports, and with soft routing."""
        down, right = -(-q.shape[1] // rows) * rows, -(-q.shape[2] // columns) * columns
        q, k, v = _pad(q, down, right), _pad(k, down, right), _pad(v, down, right)
        router = self.router
        routed_q, routed_k = q, k
        if router is not None:
            routed_q, routed_k = router(q.flatten(3)), router(k.flatten(3))
        real = torch.ones(down, right, dtype=torch.bool, device=q.device)
        if self.padding != "input":
            real = _real(height, width, down, right, q.device)
        count = _split(real[None, :, :, None], rows, columns).sum(2)  # [1, regions, 1]
        q_BRC, k_BRC = _means(routed_q, real, count, rows, columns), _means(routed_k, real, count, rows, columns)
        if not self.soft_routing:
            q_BRC, k_BRC = q_BRC.detach(), k_BRC.detach()
        logits_BRR = (q_BRC @ k_BRC.transpose(1, 2)).masked_fill(count.transpose(1, 2) == 0, -float("inf"))
        inf = float("inf")
        ranked_BRR = torch.nan_to_num(logits_BRR, -inf, -inf, -inf)  # as in the kernel; NaN would be the largest
        index_BRK = torch.topk(ranked_BRR, topk, dim=-1)[1]
        logits_BRK = logits_BRR.gather(-1, index_BRK)
        if self.padding != "masked":
            real = torch.ones_like(real)
        if self.kv_pool != "identity":
            k, v, real = _pool_regions(k, v, real, rows, columns, self.kv_pool, self.kv_pool_size)
        k_BRTHD, v_BRTHD = _select(_split(k, rows, columns), index_BRK), _select(_split(v, rows, columns), index_BRK)
        if self.soft_routing:
            weight = (logits_BRK * self.scale).softmax(-1).to(q.dtype)
            weight = weight.repeat_interleave(k_BRTHD.shape[2] // topk, dim=2)[..., None, None]
            k_BRTHD, v_BRTHD = k_BRTHD * weight, v_BRTHD * weight
        real_BRT = _select(_split(real[None, :, :, None], rows, columns).expand(q.shape[0], -1, -1, -1), index_BRK)
        scores = torch.einsum("brqhd,brthd->brhqt", _split(q, rows, columns) * self.scale, k_BRTHD)
        scores = scores.masked_fill(~real_BRT.transpose(2, 3)[:, :, None], -float("inf"))
        out = torch.einsum("brhqt,brthd->brqhd", scores.softmax(-1), v_BRTHD)
        out = out.unflatten(2, (down // rows, right // columns)).unflatten(1, (rows, columns))
        return out.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, num_regions={tuple(self.num_regions)}, topk={self.topk}, "
            f"padding={self.padding!r}"
        )


def _pad(x: Tensor, height: int, width: int) -> Tensor:
    """Zero-pad ``[B, H, W, ...]`` at the bottom and right to this size."""
    bottom, right = height - x.shape[1], width - x.shape[2]
    if bottom > 0 or right > 0:
        x = F.pad(x, [0, 0] * (x.dim() - 3) + [0, right, 0, bottom])
    return x


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    return x[:, :height, :width]


def _real(height: int, width: int, down: int, right: int, device: torch.device) -> Tensor:
    """Return a bool mask ``[down, right]`` that is True in the upper left ``[height, width]``."""
    return (torch.arange(down, device=device) < height)[:, None] & (torch.arange(right, device=device) < width)


def _split(x: Tensor, rows: int, columns: int) -> Tensor:
    """Split ``[B, H, W, ...]`` into regions ``[B, regions, tokens, ...]``."""
    x = x.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)


def _select(x: Tensor, index_BRK: Tensor) -> Tensor:
    """Gather the selected regions of ``[B, regions, tokens, ...]``: ``[B, regions, topk * tokens, ...]``."""
    batch = torch.arange(x.shape[0], device=x.device)[:, None, None]
    return x[batch, index_BRK].flatten(2, 3)


def _means(x: Tensor, real: Tensor, count: Tensor, rows: int, columns: int) -> Tensor:
    """Return the mean of the tokens of each region without padding, ``[B, regions, C]``, at least float32."""
    exact = x if x.dtype == torch.float64 else x.float()
    x = exact.reshape(x.shape[0], x.shape[1], x.shape[2], -1) * real[None, :, :, None]
    return _split(x, rows, columns).sum(2) / count.clamp(min=1)


def _pool_regions(
    k: Tensor, v: Tensor, real: Tensor, rows: int, columns: int, mode: str, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pool the maps ``[B, H, W, heads, d]`` inside each region, without padding (`real`, bool ``[H, W]``, is False).

    Returns:
        Both pooled maps, and `real` for them: a pooled token is real if one of its inputs is.
    """
    share = _pool(real[None, :, :, None].to(k.dtype), rows, columns, mode.replace("max", "avg"), size)
    mask = share > 0
    pooled = []
    for x in (k, v):
        flat = x.flatten(3)
        if "max" in mode:
            flat = flat.masked_fill(~real[None, :, :, None], -float("inf"))
            flat = _pool(flat, rows, columns, mode, size)
        else:
            flat = _pool(flat * real[None, :, :, None], rows, columns, mode, size)
            flat = flat / share.masked_fill(~mask, 1)  # division by 0 would make the gradient NaN
        pooled.append(flat.masked_fill(~mask, 0).unflatten(-1, (x.shape[3], x.shape[4])))
    return pooled[0], pooled[1], mask[0, :, :, 0]


def _pool(x: Tensor, rows: int, columns: int, mode: str, size: int) -> Tensor:
    """Pool each region of ``[B, H, W, C]`` separately."""
    batch = x.shape[0]
    x = x.unflatten(2, (columns, -1)).unflatten(1, (rows, -1)).permute(0, 1, 3, 5, 2, 4)  # [B, R, S, C, h, w]
    x = x.flatten(0, 2)
    if mode == "ada_avgpool":
        x = F.adaptive_avg_pool2d(x, [size, size])
    elif mode == "ada_maxpool":
        x = F.adaptive_max_pool2d(x, [size, size])
    elif mode == "avgpool":
        x = F.avg_pool2d(x, [size, size])
    else:
        x = F.max_pool2d(x, [size, size])
    x = x.unflatten(0, (batch, rows, columns)).permute(0, 1, 4, 2, 5, 3)
    return x.flatten(3, 4).flatten(1, 2)
