"""The operators inside compiled and exported programs."""

import pytest
import torch
from torch.export import Dim

from visionattn.kernels import na1d, na2d, na3d

OPS = {1: na1d, 2: na2d, 3: na3d}


def make_inputs(rank, batch=2, dtype=torch.float32):
    torch.manual_seed(0)
    q, k, v = (x.requires_grad_() for x in torch.randn(3, batch, *[6] * rank, 2, 8, dtype=dtype).unbind())
    return q, k, v, torch.randn(2, *[5] * rank, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_under_autocast(rank, backend):
    """Values and gradients are the eager ones, to the rounding of bfloat16."""
    if backend == "inductor" and rank != 2:
        pytest.skip("one build of generated code is enough")

    def block(q, k, v, rpb):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return OPS[rank](q * 2, k, v, 3, dilation=2, rpb=rpb) + 1

    inputs = make_inputs(rank)
    eager = block(*inputs)
    out = torch.compile(block, fullgraph=True, backend=backend)(*inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, eager, rtol=0, atol=0.05)
    pairs = zip(
        torch.autograd.grad(out.float().square().sum(), inputs),
        torch.autograd.grad(eager.float().square().sum(), inputs),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * theirs.abs().max().item())


def test_compiled_once_for_every_batch_size():
    compiled = torch.compile(lambda q, k, v, rpb: na2d(q, k, v, 3, rpb=rpb), fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters["stats"]
    counter.clear()
    for batch in (2, 3, 5, 8):
        q, k, v, rpb = make_inputs(2, batch)
        torch.testing.assert_close(compiled(q, k, v, rpb), na2d(q, k, v, 3, rpb=rpb))
    assert counter["unique_graphs"] <= 2  # the first size, then any


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_export_with_any_batch_size(rank):
    class Block(torch.nn.Module):
        def forward(self, q, k, v, rpb):
            return OPS[rank](q, k, v, 3, dilation=2, rpb=rpb)

    batch = Dim("batch", min=1, max=64)
    dynamic = {"q": {0: batch}, "k": {0: batch}, "v": {0: batch}, "rpb": None}
    program = torch.export.export(Block(), make_inputs(rank), dynamic_shapes=dynamic).module()
    for size in (1, 2, 7):
        inputs = make_inputs(rank, size)
        torch.testing.assert_close(program(*inputs), Block()(*inputs))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shapes_without_memory(rank):
    """On the meta device, forward and backward, as models are inspected before they are built."""
    inputs = [x.detach().to("meta").requires_grad_() for x in make_inputs(rank)]
    q, k, v, rpb = inputs
    out, lse = OPS[rank](q, k, v, 3, rpb=rpb, return_lse=True)
    assert (out.shape, lse.shape) == (q.shape, q.shape[:-1])
    for x, gradient in zip(inputs, torch.autograd.grad(out.sum() + lse.sum(), inputs), strict=True):
        assert (gradient.device.type, gradient.shape) == ("meta", x.shape)
