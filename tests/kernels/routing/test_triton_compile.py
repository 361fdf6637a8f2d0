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
    for dim in (16, 32, 64, 128, 256)
    for capability in (80, 89, 90, 100, 120)
]
# One of each capability, type and head dimension.
SOME = [
    (torch.bfloat16, 32, 80),
    (torch.bfloat16, 64, 90),
    (torch.float16, 16, 100),
    (torch.float32, 32, 120),
    (torch.bfloat16, 128, 89),
    (torch.float16, 256, 80),
    (torch.float32, 256, 90),
]


def rows(shape, heads, dim, dtype, strides=None):
    """The layout of ``[batch, tokens, heads, dim]``."""
    shape = (shape[0], shape[1] * shape[2], heads, dim)
    return shape, strides or torch.empty(shape, device="meta").stride(), dtype, True


def problem(shape, regions, topk, heads=2, dim=32, dtype=torch.bfloat16, padded=False, strides=None):
    from visionattn.kernels.routing.triton.launch import Problem

    x = rows(shape, heads, dim, dtype, strides)
    mask = ((1, *shape[1:]), (shape[1] * shape[2], shape[2], 1), torch.uint8, True) if padded else None
    return Problem(x, x, x, mask, shape[1:], shape[1:], regions, topk, 0.125, "ieee")


def launches(case):
    """Every kernel of a problem."""
    from visionattn.kernels.routing.triton import launch as triton_launch

    (batch, tokens, heads, dim), _, dtype, _ = case.q
    out = rows((batch, tokens, 1), heads, dim, dtype)
    x = ((batch, tokens, heads * dim), (*out[1][:2], 1), dtype, True)
    found = [triton_launch.means_launch(x, x, None, case.query_map, case.regions)]
    return found + triton_launch.forward_launches(case) + triton_launch.backward_launches(case, out, out)


@pytest.mark.parametrize(("dtype", "dim", "capability"), ALL if os.environ.get("VISIONATTN_TRITON_ALL") else SOME)
def test_default_configurations_compile_without_spills(dtype, dim, capability):
    """Layers of BiFormer at 224 pixels: with a mask, without, and for a map that is processed as a whole."""
    from visionattn.kernels.triton_aot import compile_launch

    options = dict(regions=(7, 7), dim=dim, dtype=dtype)
    masked = launches(problem((2, 56, 56), topk=4, padded=True, **options))
    plain = launches(problem((2, 56, 56), topk=1, **options))[1:]
    whole = launches(problem((2, 14, 14), topk=16, **options))[1:]
    for launch in (*masked, *plain, *whole):
        if launch.kernel.__name__ == "index_kernel":  # depends on none of the parameters
            continue
        needs = compile_launch(launch, capability)
        assert needs.spill_bytes <= 16, f"{launch.kernel.__name__}: {needs}"
        assert needs.shared_bytes <= 99 * 1024, f"{launch.kernel.__name__}: {needs}"


@pytest.mark.parametrize(
    ("case", "whole"),
    [
        (dict(shape=(1, 1, 1), regions=(1, 1), topk=1, heads=1, dim=1), True),  # every integer is 1
        (dict(shape=(1, 140, 1), regions=(70, 1), topk=1, heads=1, dim=1), False),
        (dict(shape=(16, 256, 256), regions=(16, 16), topk=16, heads=16), False),  # every integer a multiple of 16
        (dict(shape=(3, 35, 21), regions=(5, 7), topk=3, heads=3, dim=5), False),  # neither
        (dict(shape=(3, 35, 21), regions=(5, 7), topk=3, heads=3, dim=5, strides=(11025, 1, 5, 735)), False),
    ],
)
def test_integer_arguments(case, whole):
    """Triton makes constants of integers equal to 1, and other kernels for multiples of 16."""
    from visionattn.kernels.triton_aot import compile_launch

    found = launches(problem(**case))
    assert [launch.arguments["WHOLE"] for launch in found if "WHOLE" in launch.arguments] == [whole] * 3
    for launch in found:
        assert compile_launch(launch, 90).registers > 0


def test_maps_of_many_sizes_share_kernels(fake_gpu):
    """Sizes of maps and regions are no constants: multi-scale training compiles few kernels."""
    from visionattn.kernels import bilevel_routing_attention

    sizes = [(height, width) for height in range(96, 200, 8) for width in range(100, 240, 7)]
    for height, width in sizes:
        q = torch.empty(1, height, width, 1, 32, dtype=torch.bfloat16, requires_grad=True)
        bilevel_routing_attention(q, q, q, 8, 4, backend="triton").sum().backward()
    assert len(sizes) == 260
    kernels = set(fake_gpu.specialized)
    assert kernels == {"means_kernel", "forward_kernel", "index_kernel", "query_kernel", "key_kernel"}
    assert len(fake_gpu.specialized) <= 12
