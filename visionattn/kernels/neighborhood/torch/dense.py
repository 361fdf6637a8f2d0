"""Dense masked attention over the whole map, for small maps on a CPU.

For small maps, which take a tenth of a millisecond, gathering tiles costs more than the scores it saves, and the whole
map is a single strided view. A single image uses two matrix products and a softmax; several images use PyTorch's fused
attention, which processes images and heads in one call.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.neighborhood.tiles import dense_is_better
from visionattn.kernels.neighborhood.torch.plan import Plan, Rows, make_plan
from visionattn.kernels.workspace import Key, scratch

__all__ = ["Whole", "choose", "forward"]

View = tuple[tuple[int, ...], tuple[int, ...]]  # sizes and strides


@dataclass(frozen=True, eq=False)
class Whole:
    """The whole map as one tile; ``views`` of query, key and value are ``[images, heads, positions, d]``."""

    plan: Plan
    exact: torch.dtype
    views: tuple[View, View, View]

    @property
    def shape(self) -> tuple[int, ...]:
        """``[images, heads, queries, keys]``."""
        return (*self.views[0][0][:3], self.plan.tokens)

    @cached_property
    def mask(self) -> Tensor | None:
        """Additive mask ``[images, heads, queries, keys]``; None if all queries attend to the whole map."""
        if not self.plan.masked:
            return None
        return self.plan.mask(self.exact).view(1, 1, *self.shape[2:]).expand(self.shape)

    @cached_property
    def single_mask(self) -> Tensor | None:
        """`mask` for a single image, ``[heads, queries, keys]``."""
        return None if self.mask is None else self.mask[0]

    def bias(self, rpb: Tensor) -> Tensor:
        """Position bias and mask, ``[heads, queries, keys]``."""
        table = F.pad(rpb.to(self.exact).flatten(1), (0, 1), value=-torch.inf)
        return table.index_select(1, self.plan.bias_index).view(self.shape[1:])

    @cached_property
    def operands(self) -> tuple[View, View, View]:
        """`views` for the products of a single image: ``[heads, positions, d]``, with keys transposed."""
        q, k, v = ((sizes[1:], strides[1:]) for sizes, strides in self.views)
        return q, tuple((x[0], x[2], x[1]) for x in k), v

    @cached_property
    def buffer(self) -> Key:
        """Scratch memory for the scores of a single image."""
        return "neighborhood scores", self.shape[1:], self.exact


def choose(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, problem: tuple) -> Whole | None:
    """The whole map as one tile, or None if tiles are faster or dense attention is not supported."""
    if q.device.type != "cpu" or q.shape != k.shape or q.shape != v.shape or max(problem[2]) > 1:
        return None
    return _choose(problem, q.shape, q.stride(), k.stride(), v.stride(), q.dtype, rpb is not None)


@lru_cache(maxsize=256)
def _choose(problem: tuple, shape: tuple[int, ...], *rest) -> Whole | None:
    *strides, dtype, bias = rest
    kernel, stride, _, causal = problem
    batch, *spatial, heads, dim = shape
    if not dense_is_better(tuple(spatial), kernel, stride, causal, batch, heads, dim, bias):
        return None
    if not all(Rows.from_strides(tuple(shape), s) for s in strides):
        return None
    plan = make_plan(problem, tuple(spatial), tuple(spatial), torch.device("cpu"))
    views = tuple(((batch, heads, plan.tokens, dim), (s[0], s[-2], s[-3], 1)) for s in strides)
    return Whole(plan, torch.promote_types(dtype, torch.float32), views)


def forward(
    q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, whole: Whole, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor]:
    """Same as `torch.tiles.forward`, for a result of `choose`."""
    if q.shape[0] > 1 or return_lse or q.dtype != whole.exact:
        return _fused(q, k, v, rpb, whole, scale, return_lse)
    q_view, k_view, v_view = whole.operands
    queries, keys = q.as_strided(*q_view), k.as_strided(*k_view)
    scores = scratch(q.device).take(whole.buffer)
    bias = whole.single_mask if rpb is None else whole.bias(rpb)
    if bias is None:
        torch.baddbmm(scores, queries, keys, beta=0, alpha=scale, out=scores)
    else:
        torch.baddbmm(bias, queries, keys, alpha=scale, out=scores)
    torch.softmax(scores, -1, out=scores)  # works row by row, so in-place is safe
    # Transposing by a copy is faster than writing the product to a strided output.
    values = torch.bmm(scores, v.as_strided(*v_view))
    return values.transpose(0, 1).contiguous().view(q.shape), q.new_empty(0)


def _fused(q, k, v, rpb, whole, scale, return_lse):
    bias = whole.mask if rpb is None else whole.bias(rpb).expand(whole.shape)
    views = [x.as_strided(*view) for x, view in zip((q, k, v), whole.views, strict=True)]
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *views, 0.0, False, attn_mask=bias, scale=scale
    )
    lse = lse.transpose(1, 2).reshape(q.shape[:-1]) if return_lse else lse.new_empty(0)
    return out.transpose(1, 2).reshape(q.shape), lse
