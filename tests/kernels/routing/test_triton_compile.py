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
    for dim in (16, 32, 64, 128, 256)
    for capability in (80, 90, 100, 120)
]
# One of each capability, type and head dimension.
SOME = [
    (torch.bfloat16, 32, 80),
    (torch.bfloat16, 64, 90),
    (torch.float16, 16, 100),
    (torch.float32, 32, 120),
    (torch.bfloat16, 128, 90),
    (torch.float16, 256, 80),
    (torch.float32, 256, 90),
]


def launches(dtype: torch.dtype, dim: int):
    """Forward and both backward kernels of a layer of BiFormer at 224 pixels, with a mask."""
    from visionattn.kernels.routing.triton import launch as triton_launch

    q = torch.empty(2, 56, 56, 2, dim, dtype=dtype)
    key_regions = torch.zeros(2, 49, 4, dtype=torch.long)
    mask = torch.zeros(1, 56, 56, dtype=torch.bool)
    forward, out, lse = triton_launch.forward_launch(q, q, q, key_regions, mask, (7, 7), 0.125)
    backward, _ = triton_launch.backward_launches(out, q, q, q, key_regions, mask, out, lse, (7, 7), 0.125)
    return {"forward": forward, "query": backward[0], "key": backward[1]}


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
@pytest.mark.parametrize(("dtype", "dim", "capability"), ALL if os.environ.get("VISIONATTN_TRITON_ALL") else SOME)
def test_default_configurations_compile_without_spills(dtype, dim, capability):
    from visionattn.kernels.triton_aot import compile_launch

    for name, launch in launches(dtype, dim).items():
        needs = compile_launch(launch, capability)
        assert needs.spill_bytes == 0, f"{name}: {needs}"
        assert needs.shared_bytes <= 99 * 1024, f"{name}: {needs}"
