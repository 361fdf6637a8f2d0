"""The Triton kernels compiled ahead of time for GPUs that need not be here: types are right, nothing spills.

``VISIONATTN_TRITON_ALL=1`` compiles every type, head dimension and compute capability.
"""

import os
import re
import subprocess
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
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


def describe(value: Any, path: tuple, constants: dict, attributes: dict) -> Any:
    """Type of an argument as the launcher would give it; fills in constants and divisibility."""
    if type(value) is int and value == 1:
        constants[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return TYPES[value.dtype]
    if isinstance(value, tuple):
        return tuple(describe(entry, (*path, i), constants, attributes) for i, entry in enumerate(value))
    if isinstance(value, float):
        return "fp32"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compiled_usage(launch, capability: int, folder) -> tuple[int, int]:
    """Registers, and bytes of local memory, of a launch compiled for this compute capability."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants, attributes, signature = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            constants[(index,)] = value
            signature[parameter.name] = "constexpr"
        else:
            signature[parameter.name] = describe(value, (index,), constants, attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    text = subprocess.run(
        [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)], capture_output=True, text=True, check=True
    )
    found = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout + text.stderr)
    assert kernel.metadata.shared <= 99 * 1024, "more shared memory than a program may have"
    return int(found[1]), int(found[2])


def launches(dtype: torch.dtype, dim: int) -> list:
    """Every kernel once, for the windows of a frame of which one is long."""
    from visionattn.kernels.scattered import triton_launch

    q = torch.empty(4000, 4, dim, dtype=dtype)
    offsets = torch.tensor([0, 10, 4000])
    forward, out = triton_launch.forward_launches(q, q, q, offsets, 1e-6)
    backward, _ = triton_launch.backward_launches(out, q, q, q, offsets, 1e-6)
    return list({launch.kernel: launch for launch in forward + backward}.values())


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter does not compile")
@pytest.mark.parametrize(("dtype", "dim", "capability"), ALL if os.environ.get("VISIONATTN_TRITON_ALL") else SOME)
def test_default_configurations_compile_without_spills_to_speak_of(dtype, dim, capability, tmp_path):
    found = launches(dtype, dim)
    assert len(found) == 6
    for launch in found:
        registers, spilled = compiled_usage(launch, capability, tmp_path)
        name = launch.kernel.fn.__name__
        assert spilled <= 16, f"{name}: {spilled} bytes of local memory, {registers} registers"
