"""The Triton kernels against the dense definition: on a GPU, or in Triton's interpreter with ``TRITON_INTERPRET=1``.

Without either these tests skip; `test_triton_interpreter` runs them in a process that has the interpreter on.
``VISIONATTN_TRITON_CASES`` sets how many random problems to try.
"""

import os
import random
from unittest import mock

import pytest
import torch
from fixtures.interpreter import INTERPRETED, needs_kernels
from neighborhood_cases import FUNCTIONS, LENGTHS, SMALL_LENGTHS, assert_agree, make_inputs, random_case, run

from visionattn.errors import BackendError
from visionattn.kernels import backends, na1d, na2d
from visionattn.kernels.neighborhood.api import packed_attention
from visionattn.layers import NeighborhoodAttention2d, neighborhood

DEVICE = "cpu" if INTERPRETED else "cuda"
CASES = int(os.environ.get("VISIONATTN_TRITON_CASES", 10 if INTERPRETED else 500))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

pytest.importorskip("triton")
pytestmark = needs_kernels()


@pytest.fixture
def any_tile(monkeypatch):
    """Let every launch take a random one of its legal tiles, and programs take all images, so that each is tried."""
    from visionattn.kernels.neighborhood.triton import image_launch
    from visionattn.kernels.neighborhood.triton import launch as triton_launch
    from visionattn.kernels.triton_launch import clear_plans

    draw = random.Random(0)
    monkeypatch.setattr(triton_launch, "_first", lambda kernel, tiles, build: draw.choice(tiles))
    monkeypatch.setattr(image_launch, "WARPS_PER_PROCESSOR", 1)
    clear_plans()
    yield draw
    clear_plans()


@pytest.mark.parametrize("block", range(5))
def test_random_sweep(block, any_tile, poisoned_memory):
    for seed in range(block, CASES, 5):
        any_tile.seed(seed)
        case = random_case(seed, lengths=SMALL_LENGTHS if INTERPRETED else LENGTHS)
        assert_agree(case, DTYPES[seed % 3 if seed % 2 else 0], "triton", DEVICE)


def fixed_case(**changes) -> dict:
    case = dict(
        rank=2, shape=[9, 10], kernel=[3, 5], stride=[1, 1], dilation=[1, 1], causal=[False, False], batch=1,
        heads=1, heads_kv=1, dim=8, value_dim=None, rpb=True, extra=0, scale=None, seed=5,
    )  # fmt: skip
    return case | changes


@pytest.mark.parametrize(
    "changes",
    [
        dict(shape=[13, 14], kernel=[3, 3], batch=2),  # interior tiles, whose bias gradients add up in place
        dict(shape=[9, 11], kernel=[3, 3], dilation=[2, 3], heads=2),  # groups of uneven length
        dict(rank=1, shape=[300], kernel=[129], stride=[1], dilation=[1], causal=[False], rpb=False),  # steps unmasked
        dict(rank=1, shape=[256], kernel=[128], stride=[64], dilation=[1], causal=[True], rpb=False, extra=40),
        dict(shape=[24, 32], kernel=[16, 8], stride=[8, 8], rpb=False),  # inner axis blocked: steps unmasked
        dict(shape=[5, 6], dim=100, value_dim=33, extra=17),
        dict(shape=[5, 6], dim=256, value_dim=20),
        dict(shape=[20, 1], kernel=[3, 1]),  # an axis of length 1
        dict(shape=[1, 40], kernel=[1, 9]),
        dict(shape=[5, 6], kernel=[3, 3], scale=-0.3),  # not positive: cannot wait for the softmax
        dict(shape=[5, 6], kernel=[3, 3], scale=0.0, rpb=False, extra=2),
    ],
)
def test_particular_problem(changes, poisoned_memory):
    assert_agree(fixed_case(**changes), torch.float32, "triton", DEVICE)


@pytest.fixture
def image_loops(any_tile, monkeypatch):
    """Let the kernels that loop over images also take float32, in which they are compared more exactly."""
    from visionattn.kernels.neighborhood.triton import image_tiles

    monkeypatch.setattr(image_tiles, "ITEMSIZES", (2, 4))
    return any_tile


@pytest.mark.parametrize("block", range(5))
def test_random_sweep_over_images(block, image_loops, poisoned_memory):
    """Random problems that the kernels that loop over images take; those that they cannot take use the others."""
    for seed in range(block, CASES // 2, 5):
        image_loops.seed(seed)
        case = random_case(seed, rank=2, lengths=SMALL_LENGTHS if INTERPRETED else LENGTHS)
        simple = dict(stride=[1, 1], causal=[False, False], extra=0, heads=case["heads_kv"])
        simple["rpb"] = all(k % 2 for k in case["kernel"]) and seed % 3 > 0
        assert_agree(case | simple, DTYPES[seed % 3], "triton", DEVICE)


IMAGES = dict(shape=[5, 9], kernel=[3, 3], batch=3, heads=2, heads_kv=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes",
    [
        dict(),  # more images than a program takes on a GPU with few processors
        dict(rpb=False),  # programs loop over heads, too
        dict(batch=1),
        dict(shape=[9, 11], dilation=[2, 3], batch=2, heads=1, heads_kv=1),  # groups of uneven length
        dict(shape=[7, 7], kernel=[7, 7], batch=2, heads=1, heads_kv=1),  # a map smaller than the tile
        dict(kernel=[2, 4], rpb=False, dim=20, value_dim=17, batch=2),
        dict(kernel=[2, 4], rpb=False, dim=20, value_dim=33, batch=2),  # too wide for the backward kernels
    ],
)
def test_loops_over_images(changes, dtype, image_loops, poisoned_memory, monkeypatch):
    from visionattn.kernels.neighborhood.triton import image_launch

    image_loops.seed(len(str(changes)))
    if changes.get("batch") == 1:
        monkeypatch.setattr(image_launch, "span", lambda x: 2**31)  # offsets that need 64 bits
    shares, build = {}, image_launch.launch

    def launch(kernel, programs, arguments, tile):
        shares[kernel.__name__] = arguments["share"]
        return build(kernel, programs, arguments, tile)

    monkeypatch.setattr(image_launch, "launch", launch)
    assert_agree(fixed_case(**IMAGES | changes), dtype, "triton", DEVICE)
    backward = set() if changes.get("value_dim", 0) > 32 else {"image_query_kernel", "image_key_kernel"}
    assert set(shares) == {"image_forward_kernel"} | backward
    assert min(shares.values()) > 1 or changes.get("batch") == 1


@pytest.mark.parametrize("value", [float("-inf"), float("nan")])
def test_table_with_infinity_or_nan(value, image_loops):
    """As a mask of the user: keys at the offsets of an infinite entry take no part."""
    q, k, v = torch.randn(3, 2, 6, 9, 1, 8, device=DEVICE).unbind()
    rpb = torch.randn(1, 5, 5, device=DEVICE)
    rpb[0, 2, 3] = value  # not to the next key on the right
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.to(dtype) for x in (q, k, v)]
        out = na2d(*inputs, 3, rpb=rpb, backend="triton").float()
        expected = na2d(*(x.float() for x in inputs), 3, rpb=rpb, backend="reference")
        torch.testing.assert_close(
            out, expected, atol=5e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0, equal_nan=True
        )
        if value == value:
            assert out.isfinite().all()


def test_layouts_are_read_in_place():
    qkv = torch.randn(2, 5, 3, 2, 8, 6, device=DEVICE).permute(2, 0, 1, 5, 3, 4).requires_grad_()
    out = na2d(*qkv, kernel_size=(3, 5), dilation=(1, 1), backend="triton")  # last stride is not 1
    expected = na2d(*qkv, kernel_size=(3, 5), dilation=(1, 1), backend="reference")
    torch.testing.assert_close(out, expected)
    weight = torch.randn(2, 1, 6, 1, 8, device=DEVICE).expand_as(out)  # a gradient with strides of 0
    got, want = (torch.autograd.grad(x, qkv, weight)[0] for x in (out, expected))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    shared = torch.randn(1, 7, 8, 1, 8, device=DEVICE).expand(2, -1, -1, 2, -1)
    torch.testing.assert_close(
        na2d(shared, shared, shared, 3, backend="triton"), na2d(shared, shared, shared, 3, backend="reference")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extra", [False, True])
def test_packed_gradient(dtype, extra, poisoned_memory):
    """The same as the gradients of separate tensors, and one tensor that is not copied."""
    qkv = torch.randn(2, 5, 6, 3, 2, 8, device=DEVICE, dtype=dtype).requires_grad_()
    rpb = torch.randn(2, 5, 5, device=DEVICE, requires_grad=True) if extra else None
    inputs = (qkv, rpb) if extra else (qkv,)
    weight = torch.randn(2, 5, 6, 2, 8, device=DEVICE, dtype=dtype)
    packed = packed_attention(qkv, 3, rpb=rpb, backend="triton")
    assert "packed" in type(packed.grad_fn).__name__
    separate = na2d(*qkv.unbind(-3), 3, rpb=rpb, backend="triton")
    assert torch.equal(packed, separate)
    for got, want in zip(*(torch.autograd.grad(x, inputs, weight) for x in (packed, separate)), strict=True):
        assert torch.equal(got, want)
    given = packed_attention(qkv, 3, rpb=rpb, backend="triton")
    torch.autograd.grad(given, inputs, torch.ones((), device=DEVICE, dtype=dtype).expand_as(given))
    double = torch.autograd.grad(packed_attention(qkv, 3, rpb=rpb, backend="triton").sum(), qkv, create_graph=True)[0]
    assert double.requires_grad


def test_layer_with_packed_gradient():
    """The layer passes its projection, and has the gradients of the PyTorch backend."""
    layer = NeighborhoodAttention2d(16, 2, 3, backend="triton").to(DEVICE)
    x = torch.randn(1, 5, 6, 16, device=DEVICE)
    with mock.patch.object(neighborhood, "packed_attention", wraps=packed_attention) as packed:
        got = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    assert packed.call_count == 1
    layer.backend = "torch"
    want = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_same_bits_twice():
    case = fixed_case(shape=[5, 8], extra=3, batch=2)
    inputs = {name: x.to(DEVICE) for name, x in make_inputs(case, torch.float32).items()}
    first, second = run(case, inputs, "triton"), run(case, inputs, "triton")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("full", [True, False])
def test_operator_registration(full):
    from visionattn.kernels.neighborhood.triton import ops as triton_ops  # noqa: F401 - registers the operator

    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 4, 5, 2, 4, device=DEVICE).unbind())
    table = torch.randn(2, 5, 5, requires_grad=True, device=DEVICE) if full else None
    extra = torch.randn(1, 3, 2, 4, requires_grad=True, device=DEVICE) if full else None
    geometry = ([3, 3], [1, 1], [1, 1], [False, False], 0.5)
    torch.library.opcheck(
        torch.ops.visionattn.neighborhood_attention_triton.default, (q, k, v, table, extra, extra, *geometry)
    )
    qkv = torch.randn(1, 4, 5, 3, 2, 4, device=DEVICE, requires_grad=True)
    torch.library.opcheck(torch.ops.visionattn.neighborhood_attention_triton_packed.default, (qkv, table, *geometry))


def test_compile_and_export_without_graph_break():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 6, 6, 2, 8, device=DEVICE).unbind())
    rpb = torch.randn(2, 5, 5, device=DEVICE, requires_grad=True)

    def block(q, k, v, rpb):
        return na2d(q * 2, k, v, 3, dilation=2, rpb=rpb, backend="triton") + 1

    eager = torch.autograd.grad(block(q, k, v, rpb).square().sum(), (q, k, v, rpb))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(q, k, v, rpb).square().sum(), (q, k, v, rpb))
    for a, b in zip(eager, got, strict=True):
        torch.testing.assert_close(a, b)

    class Block(torch.nn.Module):
        def forward(self, x):
            return na1d(x, x, x, 3, backend="triton")

    x = torch.randn(1, 12, 2, 8, device=DEVICE)
    torch.testing.assert_close(torch.export.export(Block(), (x,)).module()(x), Block()(x))


def test_autocast():
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 6, 6, 1, 8, device=DEVICE).unbind())
    rpb = torch.randn(1, 5, 5, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out = na2d(q, k, v, 3, rpb=rpb, backend="triton")
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), na2d(q, k, v, 3, rpb=rpb, backend="reference"), atol=5e-2, rtol=0)
    out.float().sum().backward()
    assert q.grad.dtype == rpb.grad.dtype == torch.float32


def test_empty_batch():
    x = torch.randn(0, 8, 8, 2, 4, device=DEVICE, requires_grad=True)
    rpb = torch.randn(2, 5, 5, device=DEVICE, requires_grad=True)
    na2d(x, x, x, 3, rpb=rpb, backend="triton").sum().backward()
    assert x.grad.shape == x.shape
    assert not rpb.grad.any()


def test_refusals():
    x = torch.zeros(1, 5, 5, 1, 8, device=DEVICE)
    with pytest.raises(BackendError, match="float64"):
        na2d(x.double(), x.double(), x.double(), 3, backend="triton")
    wide = torch.zeros(1, 5, 5, 1, 257, device=DEVICE)
    with pytest.raises(BackendError, match="257"):
        na2d(wide, wide, wide, 3, backend="triton")
    best = backends.select("na2d", x.device, x.dtype)
    assert best == ("torch" if INTERPRETED else "triton")  # the interpreter is never picked unasked
    assert FUNCTIONS[2](wide, wide, wide, 3).shape == wide.shape
