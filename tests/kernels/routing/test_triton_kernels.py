"""The Triton kernels against the definition: on a GPU, or in Triton's interpreter with ``TRITON_INTERPRET=1``.

Without either these tests skip; `test_triton_interpreter` runs them in a process that has the interpreter on.
"""

import os

import pytest
import torch
from fixtures.interpreter import INTERPRETED, needs_kernels
from routing_cases import assert_agree, make_inputs, random_case, run

from visionattn.kernels import bilevel_routing_attention
from visionattn.kernels.routing.api import _route_triton
from visionattn.kernels.routing.reference import route_reference

pytest.importorskip("triton")
DEVICE = "cpu" if INTERPRETED else "cuda"
CASES = int(os.environ.get("VISIONATTN_TRITON_CASES", 10 if INTERPRETED else 500))
# The interpreter computes products of bfloat16 on their bits as integers, so it cannot check that type.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
pytestmark = needs_kernels()


@pytest.mark.parametrize("block", range(5))
def test_random_sweep(block, poisoned_memory):
    for seed in range(block, CASES, 5):
        dtype = DTYPES[seed % len(DTYPES)]
        assert_agree(random_case(seed, longest=7 if INTERPRETED else 40), dtype, "triton", DEVICE)


@pytest.mark.parametrize(
    "changes",
    [
        dict(map=(18, 10), regions=(2, 1), topk=2, batch=1, heads=1),  # more tokens than a block, and no multiple of it
        dict(map=(9, 9), regions=(3, 3), topk=9),
        dict(map=(4, 5), regions=(2, 2), topk=1, dim=100, value_dim=33),
        dict(map=(3, 3), regions=(2, 1), topk=2, dim=256, value_dim=256),
        dict(map=(2, 3), regions=(5, 5), topk=25, mask="nearly all"),
        # Maps that are processed as a whole: aligned blocks, regions in two blocks, regions past the map, few queries.
        dict(map=(14, 14), regions=(7, 7), topk=16, batch=1, heads=1),
        dict(map=(9, 9), regions=(3, 3), topk=8, mask="own"),
        dict(map=(10, 7), regions=(4, 3), topk=12),
        dict(map=(3, 2), regions=(2, 2), topk=3, key_map=(9, 8)),
        dict(map=(4, 4), regions=(2, 2), topk=2, scale=-0.4),
        dict(map=(18, 2), regions=(2, 1), topk=1, scale=0.0),
    ],
)
def test_particular_problem(changes, poisoned_memory):
    case = random_case(0) | dict(batch=2, heads=2, dim=8, value_dim=8, mask=None, key_map=None) | changes
    assert_agree(case, torch.float32, "triton", DEVICE)


@pytest.mark.parametrize(
    ("shape", "regions", "masked"),
    [((8, 6), (4, 3), False), ((9, 7), (4, 3), True), ((3, 4), (5, 2), False), ((20, 20), (2, 1), True)],
)
def test_routing_follows_the_definition(shape, regions, masked, poisoned_memory):
    """Small differences of means could select other regions, so the affinities are compared."""
    torch.manual_seed(0)
    q, k, _ = torch.randn(2, *shape, 2, 3, 24, device=DEVICE).unbind(-2)
    mask = (torch.rand(2, *shape, device=DEVICE) < 0.6) if masked else None
    if masked:
        mask[0, :5, :4] = True  # a region of padding only
        q, k = (x.masked_fill(mask[..., None, None], torch.nan) for x in (q, k))
    topk = regions[0] * regions[1]
    given, logits = _route_triton(q, k, regions, topk, mask)
    expected, affinities = route_reference(q, k, regions, topk, mask)
    torch.testing.assert_close(logits.gather(-1, expected), affinities, rtol=1e-4, atol=1e-5)
    assert torch.equal(given.sort(-1).values, expected.sort(-1).values)
    out = _route_triton(q.half(), k.half(), regions, 1, mask)[1]
    torch.testing.assert_close(out, logits, rtol=1e-2, atol=1e-2)


def test_layouts():
    qkv = torch.randn(2, 5, 3, 2, 8, 6, device=DEVICE).permute(2, 0, 1, 5, 3, 4).requires_grad_()
    weight = torch.randn(2, 1, 6, 1, 8, device=DEVICE).expand(2, 5, 6, 2, 8)  # a gradient with strides of 0
    got, want = (
        torch.autograd.grad(bilevel_routing_attention(*qkv, (2, 3), 2, backend=backend), qkv, weight)[0]
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_inverted_index():
    from visionattn.kernels.routing.triton.backward import index_kernel

    key_regions = torch.tensor([[[2, 0], [2, 1], [0, 2]], [[1, 0], [1, 0], [1, 0]]], device=DEVICE)
    for block in (2, 8):  # lists longer and shorter than a block
        selecting = torch.full((2, 3, 3), -1, dtype=torch.int32, device=DEVICE)
        counts = torch.empty(2, 3, dtype=torch.int32, device=DEVICE)
        index_kernel[(6,)](key_regions, selecting, counts, 2, COUNT=3, BLOCK=block)
        assert counts.tolist() == [[2, 1, 3], [3, 3, 0]]
        assert selecting.tolist() == [[[0, 2, -1], [1, -1, -1], [0, 1, 2]], [[0, 1, 2], [0, 1, 2], [-1, -1, -1]]]


def test_same_bits_twice():
    tensors, others = make_inputs(random_case(5, longest=9), torch.float32, DEVICE)
    first, second = run(tensors, others, "triton"), run(tensors, others, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_operator_registration():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 4, 5, 2, 4, device=DEVICE).unbind())
    mask = torch.rand(1, 4, 5, device=DEVICE) < 0.3
    index = torch.rand(1, 6, 6, device=DEVICE).argsort(-1)[..., :2].contiguous()
    torch.library.opcheck(torch.ops.visionattn.routing_attention_triton.default, (q, k, v, index, mask, 2, 3, 0.5))


def test_compile_and_autocast():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 4, 6, 2, 8, device=DEVICE).unbind())

    def block(q, k, v):
        return bilevel_routing_attention(q * 2, k, v, 2, 3, backend="triton") + 1

    eager = torch.autograd.grad(block(q, k, v).square().sum(), (q, k, v))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, torch.autograd.grad(compiled(q, k, v).square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast(DEVICE, dtype=torch.float16):
        out = block(q, k, v)
    torch.testing.assert_close(out.float(), block(q, k, v), atol=2e-2, rtol=0)
