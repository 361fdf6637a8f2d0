"""FLOP counts of scattered linear attention for `torch.utils.flop_counter.FlopCounterMode`.

As in `kernels.neighborhood`, only matrix products count, and a multiplication and an addition are two operations. The
count does not depend on the windows: each token is added to the sums of its window once and reads them once. The
backward pass recomputes the sums.
"""

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

from visionattn.kernels.scattered import ops  # noqa: F401  (defines the operators)

__all__ = ["linear_products"]


def linear_products(q: Sequence[int], v: Sequence[int]) -> int:
    """Operations to multiply a ``head_dim x value_dim`` matrix with a vector, for each token and head."""
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
