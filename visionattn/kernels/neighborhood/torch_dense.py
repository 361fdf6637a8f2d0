"""Small maps on a CPU: PyTorch's fused attention over the whole map, or over two bands of it, with a mask.

Where a map takes a tenth of a millisecond, gathering tiles costs more than the scores they save. A band of full rows
and the rows around it lie next to one another in memory, so no number is copied.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.neighborhood.tiles import choose_bands
from visionattn.kernels.neighborhood.torch_plan import Plan, Rows, make_plan

__all__ = ["Bands", "choose", "forward"]


@dataclass(frozen=True, eq=False)
class Bands:
    """A map in one or two bands; ``views`` are sizes and strides of query, key and value as
    ``[images or bands, heads, positions, d]``."""

    plan: Plan
    exact: torch.dtype
    views: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """``[images or bands, heads, queries, keys]``."""
        return (*self.views[0][0][:3], self.views[1][0][2])

    @cached_property
    def mask(self) -> Tensor | None:
        """Additive, of `shape`; None if every query sees its whole band."""
        if not self.plan.masked:
            return None
        return self.plan.mask(self.exact)[self.plan.kinds].view(-1, 1, *self.shape[2:]).expand(self.shape)

    def bias(self, rpb: Tensor) -> Tensor:
        """Position bias and mask, of `shape`."""
        table = F.pad(rpb.to(self.exact).flatten(1), (0, 1), value=-torch.inf)
        looks = table.index_select(1, self.plan.bias_index).view(-1, self.plan.looks, *self.shape[2:])
        return looks[:, self.plan.kinds].transpose(0, 1).expand(self.shape)


def choose(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, problem: tuple) -> Bands | None:
    """The cut into bands, or None where tiles are faster or the fused attention does not fit the problem."""
    if q.device.type != "cpu" or q.shape != k.shape or q.shape != v.shape or max(problem[2]) > 1:
        return None
    return _choose(problem, q.shape, q.stride(), k.stride(), v.stride(), q.dtype, rpb is not None)


@lru_cache(maxsize=256)
def _choose(problem: tuple, shape: tuple[int, ...], *rest) -> Bands | None:
    *strides, dtype, bias = rest
    kernel, stride, _, causal = problem
    batch, *spatial, heads, dim = shape
    bands = choose_bands(tuple(spatial), kernel, stride, causal, batch, heads, dim, bias)
    if not bands or not all(Rows.from_strides(tuple(shape), s) for s in strides):
        return None
    plan = make_plan(problem, tuple(spatial), (spatial[0] // bands, *spatial[1:]), torch.device("cpu"))
    nq, nk = plan.queries.shape[1], plan.keys.shape[1]
    views = []
    for s, step, length in zip(strides, (nq, plan.tokens - nk, plan.tokens - nk), (nq, nk, nk), strict=True):
        token = s[-3]
        lead = s[0] if bands == 1 else step * token  # the second band ends where the map does
        views.append(((max(batch, bands), heads, length, dim), (lead, s[-2], token, 1)))
    return Bands(plan, torch.promote_types(dtype, torch.float32), tuple(views))


def forward(
    q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, bands: Bands, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor]:
    """As `torch_tiles.forward`, for what `choose` gives."""
    bias = bands.mask if rpb is None else bands.bias(rpb)
    views = [x.as_strided(*view) for x, view in zip((q, k, v), bands.views, strict=True)]
    out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *views, 0.0, False, attn_mask=bias, scale=scale
    )
    lse = lse.transpose(1, 2).reshape(q.shape[:-1]) if return_lse else lse.new_empty(0)
    return out.transpose(1, 2).reshape(q.shape), lse
