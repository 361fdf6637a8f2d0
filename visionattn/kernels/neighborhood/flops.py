"""FLOP counts of neighborhood attention for `torch.utils.flop_counter.FlopCounterMode`.

The conventions are those of PyTorch for dense attention: a multiplication and an addition are two operations; only
matrix products count, over the attended pairs of query and key; the backward pass recomputes the scores.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch.utils.flop_counter import register_flop_formula

from visionattn.kernels.neighborhood import ops  # noqa: F401  (defines the operators)
from visionattn.kernels.neighborhood.geometry import axis_groups, axis_windows

__all__ = ["attended_pairs"]


def attended_pairs(
    shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
) -> int:
    """Number of attended pairs of query and key on one map of size `shape`, for one head."""
    axes = zip(shape, kernel_size, stride, dilation, is_causal, strict=True)
    return prod(
        sum(
            group.count * int(np.diff(axis_windows(group.length, k, s, causal)).sum())
            for group in axis_groups(length, d)
        )
        for length, k, s, d, causal in axes
    )


def _pairs(q: Sequence[int], kernel_size, stride, dilation, is_causal) -> int:
    return q[0] * q[-2] * attended_pairs(q[1:-2], kernel_size, stride, dilation, is_causal)


@register_flop_formula(torch.ops.visionattn.neighborhood_attention)
def _forward(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale, *args, out_shape=None, **kwargs) -> int:
    return 2 * _pairs(q, kernel_size, stride, dilation, is_causal) * (q[-1] + v[-1])


@register_flop_formula(torch.ops.visionattn.neighborhood_attention_backward)
def _backward(grad_out, grad_lse, q, k, v, rpb, kernel_size, stride, dilation, is_causal, *args, **kwargs) -> int:
    return 2 * _pairs(q, kernel_size, stride, dilation, is_causal) * (3 * q[-1] + 2 * v[-1])
