"""Counted operations of scattered linear attention."""

import torch
from scattered_cases import offsets_of
from torch.utils.flop_counter import FlopCounterMode

from visionattn.kernels import scattered_linear_attention
from visionattn.kernels.scattered.flops import linear_products


def test_operations_do_not_depend_on_the_windows():
    q, k = torch.rand(2, 60, 3, 8).unbind()
    v = torch.rand(60, 3, 5, requires_grad=True)
    assert linear_products(q.shape, v.shape) == 2 * 60 * 3 * 8 * 5
    for lengths in ([60], [1] * 60, [10, 50]):
        with FlopCounterMode(display=False) as counter:
            scattered_linear_attention(q, k, v, offsets_of(lengths)).sum().backward()
        counts = counter.get_flop_counts()["Global"]
        assert counts[torch.ops.visionattn.scattered_linear_attention] == 2 * 2 * 60 * 3 * 8 * 5
        assert counts[torch.ops.visionattn.scattered_linear_attention_backward] == 5 * 2 * 60 * 3 * 8 * 5
