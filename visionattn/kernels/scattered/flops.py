"""How many operations scattered linear attention takes, for `torch.utils.flop_counter.FlopCounterMode`.

As for `kernels.neighborhood`: products of matrices only, a multiplication and an addition are two. They do not depend
on the windows: each token adds to the sum of its window once, and reads it once. The backward pass computes the sums
again.
"""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

from visionattn.kernels.scattered import ops  # noqa: F401  (defines the operators)

__all__ = ["linear_products"]


def linear_products(q: Sequence[int], v: Sequence[int]) -> int:
    """Operations to multiply a matrix of each window, ``head_dim x value_dim``, with a vector of each token."""
    return 2 * q[0] * q[1] * q[2] * v[2]


@register_flop_formula(
    [torch.ops.visionattn.scattered_linear_attention, torch.ops.visionattn.scattered_linear_attention_triton]
)
def _forward(q, k, v, offsets, eps, *args, out_shape=None, **kwargs) -> int:
    return 2 * linear_products(q, v)


@register_flop_formula(
    [
        torch.ops.visionattn.scattered_linear_attention_backward,
        torch.ops.visionattn.scattered_linear_attention_triton_backward,
    ]
)
def _backward(grad_out, q, k, v, offsets, eps, *args, **kwargs) -> int:
    return 5 * linear_products(q, v)
