"""Counted operations of neighborhood attention."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import na1d, na2d
from visionattn.kernels.neighborhood.flops import attended_pairs


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "dilation", "causal"),
    [(10, 3, 1, 1, False), (11, 3, 2, 3, False), (9, 4, 1, 2, True), (9, 4, 4, 1, True)],
)
def test_pairs_are_those_of_the_reference(length, kernel, stride, dilation, causal):
    """Uniform attention over one-hot values: an output is non-zero exactly where a query attends."""
    zero = torch.zeros(1, length, 1, 1)
    value = torch.eye(length)[None, :, None, :]
    out = na1d(zero, zero, value, kernel, stride, dilation, causal, backend="reference")
    assert attended_pairs([length], [kernel], [stride], [dilation], [causal]) == out.count_nonzero()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_window_as_large_as_the_map_is_dense_attention(device):
    """Both passes, against PyTorch's own count of the matrix products written out."""
    q, k, v = torch.randn(3, 2, 5, 7, 3, 8, device=device).unbind()
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]

    def dense():
        a, b, c = (x.flatten(1, 2).transpose(1, 2) for x in inputs)
        return (a @ b.transpose(-1, -2)).softmax(-1) @ c

    forward = count(dense)
    assert count(lambda: na2d(*inputs, (5, 7))) == forward == 4 * 2 * 3 * 35 * 35 * 8
    both = count(lambda: na2d(*inputs, (5, 7)).sum().backward())
    assert both - forward == count(lambda: dense().sum().backward()) - forward + forward // 2  # scores once more


def test_a_window_is_linear_in_the_map():
    for side in (14, 28):
        x = torch.empty(1, side, side, 2, 16, device="meta")
        assert count(lambda x=x: na2d(x, x, x, 7, dilation=2)) == 4 * side**2 * 49 * 2 * 16
