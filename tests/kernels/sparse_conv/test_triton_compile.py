"""The Triton kernels compiled ahead of time for GPUs that need not be here: types are right, nothing spills."""

import os

import pytest
import torch
from fixtures.interpreter import INTERPRETED

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(INTERPRETED, reason="the interpreter does not compile")

ALL = [
    (dtype, channels, capability)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for channels in (16, 32, 64, 128)
    for capability in (80, 89, 90, 100, 120)
]
SOME = [
    (torch.bfloat16, 32, 80),
    (torch.float32, 64, 90),
    (torch.float16, 16, 100),
    (torch.bfloat16, 128, 120),
    (torch.float16, 64, 89),
]


def launches(dtype: torch.dtype, channels: int, out: int, offsets: int = 27, strides=None) -> list:
    """Every kernel, the one of the convolution also with a transposed weight, as for the gradient of the features."""
    from visionattn.kernels.sparse_conv.triton import launch as triton_launch

    def dense(*shape):
        return shape, strides or torch.empty(shape, device="meta").stride(), dtype, True

    x, grad = dense(1, channels), dense(1, out)
    weight = ((offsets, channels, out), (channels * out, out, 1), dtype, True)
    transposed = ((offsets, out, channels), (channels * out, 1, out), dtype, True)
    depthwise = ((offsets, channels), (channels, 1), dtype, True)
    return [
        triton_launch.convolution_launch(x, weight, "ieee"),
        triton_launch.convolution_launch(grad, transposed, "ieee"),
        triton_launch.weight_launch(x, grad, weight[0], "ieee"),
        triton_launch.convolution_launch(x, depthwise, "ieee"),
        triton_launch.weight_launch(x, x, depthwise[0], "ieee"),
    ]


@pytest.mark.parametrize(("dtype", "channels", "capability"), ALL if os.environ.get("VISIONATTN_TRITON_ALL") else SOME)
def test_default_configurations_compile_without_spills(dtype, channels, capability):
    from visionattn.kernels.triton_aot import compile_launch

    for launch in launches(dtype, channels, channels):
        needs = compile_launch(launch, capability)
        assert needs.spill_bytes == 0, f"{launch.kernel.__name__}: {needs}"
        assert needs.shared_bytes <= 99 * 1024, f"{launch.kernel.__name__}: {needs}"


@pytest.mark.parametrize(
    "case",
    [
        dict(channels=1, out=1, offsets=1),  # every integer is 1
        dict(channels=48, out=32, offsets=16),  # every integer a multiple of 16
        dict(channels=5, out=7, offsets=27, strides=(11, 2)),  # neither
    ],
)
def test_integer_arguments(case):
    """Triton makes constants of integers equal to 1, and other kernels for multiples of 16."""
    from visionattn.kernels.triton_aot import compile_launch

    for launch in launches(torch.bfloat16, **case):
        assert compile_launch(launch, 90).registers > 0


def test_frames_share_kernels(fake_gpu):
    """The number of voxels is no constant: all frames use the same kernels. They need three launches, not 130."""
    from visionattn.kernels.sparse_conv import Neighbors, sparse_conv3d

    weight = torch.randn(16, 3, 3, 3, 16, requires_grad=True)
    for count in (*range(1, 20), 4096, 5000):
        coords = torch.arange(count)
        coords = torch.stack([torch.zeros_like(coords), coords // 400, coords // 20 % 20, coords % 20], 1)
        neighbors = Neighbors.submanifold(coords, (20, 20, 20), 3)
        x = torch.randn(count, 16, requires_grad=True)
        fake_gpu.launches.clear()
        sparse_conv3d(x, weight, neighbors, backend="triton").sum().backward()
        assert fake_gpu.names() == ["convolution_kernel", "convolution_kernel", "weight_kernel"]
    # the second one is for the transposed weight, the third one for the gradient of a sum, with strides of 0
    assert len(fake_gpu.specialized) <= 4
