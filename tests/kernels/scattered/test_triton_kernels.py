"""The Triton kernels against the definition: on a GPU, or in Triton's interpreter with ``TRITON_INTERPRET=1``.

Without either these tests skip; `test_triton_interpreter` runs them in a process that has the interpreter on.
"""

import os

import pytest
import torch
from fixtures.interpreter import INTERPRETED, needs_kernels
from scattered_cases import assert_agree, make_inputs, offsets_of, random_case, run

from visionattn.kernels import scattered_linear_attention

triton = pytest.importorskip("triton")
DEVICE = "cpu" if INTERPRETED else "cuda"
CASES = int(os.environ.get("VISIONATTN_TRITON_CASES", 10 if INTERPRETED else 500))
# The interpreter computes products of bfloat16 on their bits as integers, so it cannot check that type.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
pytestmark = needs_kernels()


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 32 tokens and sums in steps of two chunks, so that small problems have windows of many."""
    from visionattn.kernels.scattered.triton import launch as triton_launch

    for tables in (triton_launch._HALF, triton_launch._SINGLE):
        for direction, ways in tables.items():
            small = {width: (16, 32, *rest) for width, (_, _, *rest) in ways.items()}
            monkeypatch.setitem(tables, direction, small)
    monkeypatch.setattr(triton_launch, "BLOCK_CHUNKS", 2)


@pytest.mark.parametrize("block", range(5))
def test_random_sweep(block, small_chunks, poisoned_memory):
    for seed in range(block, CASES, 5):
        dtype = DTYPES[seed % len(DTYPES)]
        assert_agree(random_case(seed, longest=9 if INTERPRETED else 60), dtype, "triton", DEVICE)


@pytest.mark.parametrize(
    "lengths",
    [
        [64, 32, 33, 0, 31, 96, 1],  # borders of windows on borders of bins of 32 tokens, and one token beside them
        [5, 90, 0, 0, 40],  # a window that ends, and a long one that begins, in one bin
        [33] * 6,
        [3, 200, 3],
        [32, 32],
        [40],
        [1],
    ],
)
def test_chunks_of_windows(lengths, small_chunks, poisoned_memory):
    case = random_case(0) | dict(lengths=lengths, dim=8, value_dim=8, heads=1)
    assert_agree(case, torch.float32, "triton", DEVICE)


@pytest.mark.parametrize(
    "changes", [dict(dim=100, value_dim=33), dict(dim=16, value_dim=128), dict(dim=1, value_dim=1)]
)
def test_default_chunks(changes, poisoned_memory):
    case = random_case(0) | dict(lengths=[40, 600, 3], heads=1) | changes
    assert_agree(case, torch.float32, "triton", DEVICE)


@pytest.mark.skipif(INTERPRETED, reason="takes too long in the interpreter")
def test_crowded_window():
    case = random_case(1) | dict(lengths=[37] * 500 + [50_000] + [37] * 500, heads=4, dim=32, value_dim=32)
    for dtype in DTYPES:
        assert_agree(case, dtype, "triton", DEVICE)


def test_layouts_are_read_in_place(small_chunks):
    qkv = torch.rand(2, 70, 3, 8, 6, device=DEVICE).permute(2, 1, 4, 0, 3).flatten(3).requires_grad_()
    weight = torch.randn(70, 1, 16, device=DEVICE).expand(70, 6, 16)  # a gradient with strides of 0
    offsets = offsets_of([10, 60]).to(DEVICE)
    got, want = (
        torch.autograd.grad(scattered_linear_attention(*qkv, offsets, backend=backend), qkv, weight)[0]
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("lengths", [[], [0, 0], [0, 1, 0]])
def test_no_tokens_and_one(lengths):
    tensors, others = make_inputs(random_case(0) | dict(lengths=lengths), torch.float32, DEVICE)
    result = run(tensors, others, "triton")
    torch.testing.assert_close(result["out"].sum(), tensors["value"].sum(), atol=0.1, rtol=0)  # eps is 0.1 or less


def test_offsets_that_lie_stay_in_memory(small_chunks):
    """Their values are not known on the host when they are on a GPU: the kernels keep within the tensors."""
    from visionattn.kernels.scattered.triton import launch as triton_launch

    q = torch.rand(50, 1, 4, device=DEVICE)
    guarded = torch.full((150, 1, 4), 7.0, device=DEVICE)
    empty = torch.empty

    def guarded_empty(shape, **options):
        return guarded[50:100] if tuple(shape) == (50, 1, 4) else empty(shape, **options)

    for offsets in ([-40, 20, 90], [10, 5, 70, 60], [0, 1000], [60, 80]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton_launch.torch, "empty", guarded_empty)
            triton_launch.forward(q, q, q, torch.tensor(offsets, device=DEVICE), 1e-6)
    assert guarded[:50].eq(7).all()
    assert not guarded[50:100].eq(7).any()
    assert guarded[100:].eq(7).all()


def test_same_bits_twice(small_chunks):
    tensors, others = make_inputs(random_case(5) | dict(lengths=[9, 150]), torch.float32, DEVICE)
    first, second = run(tensors, others, "triton"), run(tensors, others, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_operator_registration():
    tensors, others = make_inputs(random_case(0) | dict(lengths=[3, 0, 8]), torch.float32, DEVICE)
    arguments = *(x.requires_grad_() for x in tensors.values()), others["offsets"], 1e-6
    torch.library.opcheck(torch.ops.visionattn.scattered_linear_attention_triton.default, arguments)


def test_compile_and_autocast():
    q, k, v = (x.requires_grad_() for x in torch.rand(3, 30, 2, 8, device=DEVICE).unbind())
    offsets = offsets_of([3, 0, 27]).to(DEVICE)

    def block(q, k, v):
        return scattered_linear_attention(q * 2, k, v, offsets, backend="triton") + 1

    eager = torch.autograd.grad(block(q, k, v).square().sum(), (q, k, v))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, torch.autograd.grad(compiled(q, k, v).square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast(DEVICE, dtype=torch.float16):
        out = block(q, k, v)
    torch.testing.assert_close(out.float(), block(q, k, v), atol=1e-2, rtol=0)


@pytest.mark.skipif(not INTERPRETED, reason="looked at on a CPU only")
def test_values_of_offsets_are_checked_on_a_cpu():
    q = torch.rand(6, 1, 4)
    with pytest.raises(ValueError, match="got 0 and 5"):
        scattered_linear_attention(q, q, q, torch.tensor([0, 5]), backend="triton")
