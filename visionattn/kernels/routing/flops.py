"""FLOP counts of bi-level routing attention for `torch.utils.flop_counter.FlopCounterMode`.

As in `kernels.neighborhood`, only matrix products count, a multiplication and an addition are two operations, and the
backward pass recomputes the scores. Regions that extend past the map count in full, because they are computed in full.
"""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

from visionattn.kernels.routing import ops  # noqa: F401  (defines the operators)
from visionattn.kernels.routing.regions import region_size

__all__ = ["routed_pairs"]


def routed_pairs(q: Sequence[int], topk: int, rows: int, columns: int) -> int:
    """Number of pairs of query and key over all images and heads; ``q`` is ``[B, H, W, heads, d]``."""
    height, width = region_size(q[1], q[2], (rows, columns))
    return q[0] * q[3] * rows * columns * topk * (height * width) ** 2


@register_flop_formula([torch.ops.visionattn.routing_attention, torch.ops.visionattn.routing_attention_triton])
def _forward(q, k, v, key_regions, padding_mask, rows, columns, scale, *args, out_shape=None, **kwargs) -> int:
    return 2 * routed_pairs(q, key_regions[-1], rows, columns) * (q[-1] + v[-1])


@register_flop_formula(torch.ops.visionattn.routing_attention_backward)
def _backward(grad_out, q, k, v, key_regions, padding_mask, rows, columns, scale, *args, **kwargs) -> int:
    return 2 * routed_pairs(q, key_regions[-1], rows, columns) * (3 * q[-1] + 2 * v[-1])


@register_flop_formula(torch.ops.visionattn.routing_attention_triton_backward)
def _triton_backward(
    grad_out, q, k, v, key_regions, padding_mask, out, lse, rows, columns, scale, *args, **kwargs
) -> int:
    return 2 * routed_pairs(q, key_regions[-1], rows, columns) * (3 * q[-1] + 2 * v[-1])
