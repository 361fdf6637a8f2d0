"""The Triton kernels compiled ahead of time for GPUs that need not be here: types are right, nothing spills.

``VISIONATTN_TRITON_ALL=1`` compiles every type, head dimension and compute capability.
"""

import os

import pytest
import torch
from fixtures.interpreter import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")

ALL = [
    (dtype, dim, capability)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for dim in (16, 32, 64, 128)
    for capability in (80, 89, 90, 100, 120)
]
# One of each capability, type and head dimension.
SOME = [
    (torch.bfloat16, 32, 80),
    (torch.float32, 32, 90),
    (torch.float16, 16, 100),
    (torch.bfloat16, 64, 120),
    (torch.float16, 128, 89),
]


def launches(dtype: torch.dtype, dim: int, heads: int = 4, strides=None, index=torch.int64) -> list:
    """Every kernel once."""
    from visionattn.kernels.scattered.triton import launch as triton_launch

    x = ((1, heads, dim), strides or (heads * dim, dim, 1), dtype, True)
    forward = triton_launch.Problem("forward", tuple((name, x) for name in ("q", "k", "v", "out")), index, 1e-6, "ieee")
    names = ("q", "k", "v", "grad", "dq", "dk", "dv")
    # Wide values are processed in parts, whose gradients of queries and keys are added in float32.
    narrow = ((1, heads, min(dim, triton_launch.MOST_VALUES)), *x[1:])
    exact = (x[0], x[1], torch.float32 if narrow != x else dtype, True)
    maps = dict(zip(names, (x, x, narrow, narrow, exact, exact, narrow), strict=True))
    backward = triton_launch.Problem("backward", tuple(maps.items()), index, 1e-6, "ieee")
    found = triton_launch.forward_launches(forward) + triton_launch.backward_launches(backward)
    return list({launch.kernel: launch for launch in found}.values())


@pytest.mark.parametrize(("dtype", "dim", "capability"), ALL if os.environ.get("VISIONATTN_TRITON_ALL") else SOME)
def test_default_configurations_compile_without_spills(dtype, dim, capability):
    from visionattn.kernels.triton_aot import compile_launch

    found = launches(dtype, dim)
    assert len(found) == 6
    for launch in found:
        needs = compile_launch(launch, capability)
        name = launch.kernel.fn.__name__
        assert needs.spill_bytes <= 64, f"{name}: {needs}"
        assert needs.shared_bytes <= 99 * 1024, f"{name}: {needs}"


@pytest.mark.parametrize(
    "case",
    [
        dict(dim=1, heads=1),  # every integer is 1
        dict(dim=16, heads=16, strides=(768, 16, 1)),  # every integer a multiple of 16
        dict(dim=5, heads=3, strides=(1, 35, 7), index=torch.int32),  # neither
    ],
)
def test_integer_arguments(case):
    """Triton makes constants of integers equal to 1, and other kernels for multiples of 16."""
    from visionattn.kernels.triton_aot import compile_launch

    for launch in launches(torch.bfloat16, **case):
        for value in (1, 48, 101):
            numbers = dict.fromkeys(("tokens", "windows", "places", "search_steps"), value)
            launch.arguments.update({name: x for name, x in numbers.items() if name in launch.arguments})
            assert compile_launch(launch, 90).registers > 0
            if "tokens" not in launch.arguments:
                break


def test_frames_share_kernels(fake_gpu):
    """The numbers of tokens and windows are no constants: all frames use the same kernels."""
    from visionattn.kernels import scattered_linear_attention

    for tokens in (*range(1, 18), *range(512, 640, 3)):
        q = torch.rand(tokens, 2, 16, requires_grad=True)
        offsets = torch.linspace(0, tokens, tokens % 19 + 2).long()
        scattered_linear_attention(q, q, q, offsets, backend="triton").sum().backward()
    assert len(fake_gpu.launches) > 100
    kernels = {launch.kernel.fn.__name__ for launch in launches(torch.float32, 16)}
    assert set(fake_gpu.specialized) == kernels
    assert len(fake_gpu.specialized) == len(kernels)
