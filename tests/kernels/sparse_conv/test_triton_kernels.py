"""The Triton kernels against the dense convolution: on a GPU, or in Triton's interpreter with ``TRITON_INTERPRET=1``.

Without either these tests skip; `test_triton_interpreter` runs them in a process that has the interpreter on.
"""

import random

import pytest
import torch
from fixtures.interpreter import INTERPRETED, needs_kernels

from visionattn.kernels.sparse_conv import Neighbors, sparse_conv3d, sparse_depthwise_conv3d
from visionattn.kernels.sparse_conv.reference import dense_conv3d

pytest.importorskip("triton")
DEVICE = "cpu" if INTERPRETED else "cuda"
CASES = 6 if INTERPRETED else 200
# The interpreter computes products of bfloat16 on their bits as integers, so it cannot check that type.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
pytestmark = needs_kernels()


def random_case(seed: int) -> dict:
    """A convolution or depthwise convolution, submanifold or strided, from no voxel to all of them."""
    draw = random.Random(seed)
    shape = tuple(draw.randint(3, 5 if INTERPRETED else 12) for _ in range(3))
    size = draw.choice([3, 3, (1, 3, 1), (3, 1, 5)])
    return dict(
        seed=seed, shape=shape, size=size, stride=draw.choice([None, 1, 2, (2, 1, 2)]) if size == 3 else None,
        share=draw.choice([0.0, 0.1, 0.5, 1.0]), channels=draw.choice([1, 4, 20]), out=draw.choice([3, 16, 70]),
        depthwise=draw.random() < 0.4,
    )  # fmt: skip


def neighbors_of(case: dict, generator: torch.Generator) -> tuple[Neighbors, torch.Tensor]:
    """The neighbors, and the voxels in a random order."""
    coords = (torch.rand(2, *case["shape"], generator=generator) < case["share"]).nonzero()
    coords = coords[torch.randperm(len(coords), generator=generator)].to(DEVICE)
    if case["stride"] is None:
        return Neighbors.submanifold(coords, case["shape"], case["size"]), coords
    return Neighbors.strided(coords, case["shape"], case["size"], case["stride"], 1), coords


def assert_agree(case: dict, dtype: torch.dtype) -> None:
    """Output and gradients agree with the dense convolution of the same rounded inputs."""
    generator = torch.Generator().manual_seed(case["seed"])
    neighbors, coords = neighbors_of(case, generator)
    size = neighbors.kernel_size
    stride, padding = (1, [k // 2 for k in size]) if case["stride"] is None else (case["stride"], 1)
    channels, depthwise = case["channels"], case["depthwise"]
    weights = (*size, channels) if depthwise else (case["out"], *size, channels)
    x, weight = (
        torch.randn(*shape, generator=generator).to(DEVICE, dtype).requires_grad_()
        for shape in ((len(coords), channels), weights)
    )
    function = sparse_depthwise_conv3d if depthwise else sparse_conv3d
    out = function(x, weight, neighbors, backend="triton")
    upstream = torch.randn(out.shape, generator=generator).to(DEVICE, dtype)
    given = (out, *torch.autograd.grad(out, (x, weight), upstream))

    exact = [a.detach().double().requires_grad_() for a in (x, weight)]
    layout = exact[1] if depthwise else exact[1].permute(1, 2, 3, 4, 0)
    dense = dense_conv3d(exact[0], coords, 2, case["shape"], layout, neighbors.coords, stride, padding)
    gradients = [torch.zeros_like(a) for a in exact]  # without voxels
    if len(coords):
        gradients = torch.autograd.grad(dense, exact, upstream.double())
    expected = (dense, *gradients)
    for name, got, want in zip(("out", "grad of x", "grad of weight"), given, expected, strict=True):
        assert got.dtype == dtype
        limit = TOLERANCE[dtype] * max(1.0, want.abs().max().item() if want.numel() else 0)
        error = (got.double() - want).abs().max().item() if want.numel() else 0
        assert error <= limit, f"{name}: {error:.2e} > {limit:.2e} for {case}"


@pytest.mark.parametrize("block", range(3))
def test_random_sweep(block):
    for seed in range(block, CASES, 3):
        assert_agree(random_case(seed), DTYPES[seed % len(DTYPES)])


@pytest.mark.parametrize("depthwise", [False, True])
def test_several_blocks_and_parts(depthwise, monkeypatch):
    """More rows, channels and parts of the gradient of the weight than one of each."""
    from visionattn.kernels.sparse_conv.triton import launch as triton_launch

    monkeypatch.setattr(triton_launch, "PART_ROWS", 30)
    case = dict(seed=0, shape=(4, 4, 5), size=(1, 3, 3), stride=None, share=0.6, channels=40, out=34)
    assert_agree(case | dict(depthwise=depthwise, channels=140 if depthwise else 40), torch.float32)


def test_layouts_and_bits():
    """Rows with strides, gradients with strides of 0; the same bits in each call."""
    generator = torch.Generator().manual_seed(0)
    neighbors, coords = neighbors_of(random_case(0) | dict(size=3, stride=None, share=0.5), generator)
    x = torch.randn(len(coords), 2, 8, device=DEVICE)[:, 1].requires_grad_()
    weight = torch.randn(8, 3, 3, 3, 8, device=DEVICE).requires_grad_()
    runs = []
    for backend in ("triton", "triton", "torch"):
        out = sparse_conv3d(x, weight, neighbors, backend=backend)
        runs.append((out, *torch.autograd.grad(out.sum(), (x, weight))))
    assert all(torch.equal(a, b) for a, b in zip(*runs[:2], strict=True))
    for a, b in zip(runs[0], runs[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_operator_registration():
    generator = torch.Generator().manual_seed(0)
    neighbors, coords = neighbors_of(random_case(0) | dict(size=3, stride=2, share=0.2), generator)
    x = torch.randn(len(coords), 3, device=DEVICE).requires_grad_()
    weight = torch.randn(27, 3, 4, device=DEVICE).requires_grad_()
    arguments = x, weight, neighbors.table, neighbors.transposed_table
    torch.library.opcheck(torch.ops.visionattn.sparse_conv_triton.default, arguments)


def test_compile_and_autocast():
    generator = torch.Generator().manual_seed(0)
    neighbors, coords = neighbors_of(random_case(0) | dict(size=3, stride=None, share=0.3), generator)
    x = torch.randn(len(coords), 4, device=DEVICE).requires_grad_()
    weight = torch.randn(4, 3, 3, 3, 4, device=DEVICE).requires_grad_()

    def block(x, weight):
        return sparse_conv3d(x * 2, weight, neighbors, backend="triton") + 1

    eager = torch.autograd.grad(block(x, weight).square().sum(), (x, weight))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, torch.autograd.grad(compiled(x, weight).square().sum(), (x, weight)), strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast(DEVICE, dtype=torch.float16):
        out = block(x, weight)
    torch.testing.assert_close(out.float(), block(x, weight), atol=5e-2, rtol=1e-2)
