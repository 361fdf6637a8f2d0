"""The Triton kernels compiled ahead of time for GPUs that need not be here: types are right, nothing spills.

``VISIONATTN_TRITON_ALL=1`` compiles every type, head dimension and compute capability.
"""

import os

import pytest
import torch

pytest.importorskip("triton")

ALL = [
    (dtype, dim, capability)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for dim in (16, 32, 64, 128)
    for capability in (80, 90, 100, 120)
]
# One of each capability, type and head dimension.
SOME = [
    (torch.bfloat16, 32, 80),
    (torch.float32, 32, 90),
    (torch.float16, 16, 100),
    (torch.bfloat16, 64, 120),
    (torch.float16, 128, 90),
]


def launches(dtype: torch.dtype, dim: int) -> list:
    """Every kernel once, for the windows of a frame of which one is long."""
    from visionattn.kernels.scattered.triton import launch as triton_launch

    q = torch.empty(4000, 4, dim, dtype=dtype)
    offsets = torch.tensor([0, 10, 4000])
    forward, out = triton_launch.forward_launches(q, q, q, offsets, 1e-6)
    backward, _ = triton_launch.backward_launches(out, q, q, q, offsets, 1e-6)
    return list({launch.kernel: launch for launch in forward + backward}.values())


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
@pytest.mark.parametrize(("dtype", "dim", "capability"), ALL if os.environ.get("VISIONATTN_TRITON_ALL") else SOME)
def test_default_configurations_compile_without_spills(dtype, dim, capability):
    from visionattn.kernels.triton_aot import compile_launch

    found = launches(dtype, dim)
    assert len(found) == 6
    for launch in found:
        needs = compile_launch(launch, capability)
        name = launch.kernel.fn.__name__
        assert needs.spill_bytes == 0, f"{name}: {needs}"
        assert needs.shared_bytes <= 99 * 1024, f"{name}: {needs}"
