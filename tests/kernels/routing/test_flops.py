"""Counted operations of routing attention."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import bilevel_routing_attention
from visionattn.kernels.routing.flops import routed_pairs


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_flop_counts()["Global"]


@pytest.mark.parametrize("topk", [1, 4])
def test_all_regions_selected_are_dense_attention(topk):
    """With every region selected the pairs are those of dense attention; with a quarter, a quarter of them."""
    q = torch.randn(2, 8, 12, 3, 16, requires_grad=True)
    counts = count(lambda: bilevel_routing_attention(q, q, q, (2, 2), topk).sum().backward())
    dense = 2 * 3 * 96 * 96
    assert routed_pairs(q.shape, topk, 2, 2) == dense * topk // 4
    assert counts[torch.ops.visionattn.routing_attention] == 4 * 16 * dense * topk // 4
    assert counts[torch.ops.visionattn.routing_attention_backward] == 10 * 16 * dense * topk // 4
