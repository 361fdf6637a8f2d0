"""Compile launches of the Triton kernels ahead of time for a GPU that need not be present, and get their resources."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from visionattn.kernels.triton_launch import Pointer

__all__ = ["Launch", "Resources", "compile_kernel", "compile_launch"]

_TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}


class Launch(Protocol):
    """A kernel with its arguments by name and its launch options, as built by the `launch` modules."""

    kernel: Any
    arguments: dict[str, Any]
    warps: int
    stages: int


@dataclass(frozen=True)
class Resources:
    """Resources of a compiled kernel: registers and spilled bytes per thread, shared memory per program."""

    registers: int
    spill_bytes: int
    shared_bytes: int


def _describe(value: Any, path: tuple, constants: dict, attributes: dict, specialize: bool = True) -> Any:
    """Type of an argument as passed by the launcher; also collects constants and divisibility."""
    if value is None or (specialize and type(value) is int and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, (torch.Tensor, Pointer)):
        attributes[path] = [["tt.divisibility", 16]]
        return _TYPES[value.dtype]
    if isinstance(value, tuple):
        return tuple(_describe(entry, (*path, i), constants, attributes) for i, entry in enumerate(value))
    if isinstance(value, float):
        return "fp32"
    if specialize and value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compile_kernel(launch: Launch, capability: int) -> Any:
    """Compile for compute capability ``capability`` (90 for 9.0); tensors may be on the meta device.

    Returns:
        Triton's compiled kernel, with PTX and machine code in ``asm``.
    """
    constants: dict[tuple, Any] = {}
    attributes: dict[tuple, Any] = {}
    signature = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr:
            constants[(index,)] = value
            signature[parameter.name] = "constexpr"
        else:
            signature[parameter.name] = _describe(
                value, (index,), constants, attributes, not parameter.do_not_specialize
            )  # fmt: skip
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile as `compile_kernel`, and return the resources of the kernel."""
    compiled = compile_kernel(launch, capability)
    registers, spills = _usage(compiled.asm["ptx"], capability)
    return Resources(registers, spills, compiled.metadata.shared)


def _usage(ptx: str, capability: int) -> tuple[int, int]:
    """Registers and bytes of spill stores per thread, as reported by the assembler bundled with Triton."""
    tools = triton.knobs.nvidia
    tool = tools.ptxas_blackwell if capability >= 100 and hasattr(tools, "ptxas_blackwell") else tools.ptxas
    target = re.search(r"\.target (\w+)", ptx)[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [tool.path, "-v", f"--gpu-name={target}", str(path), "-o", str(path.with_suffix(".cubin"))]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"Used (\d+) registers", text)[1]), int(re.search(r"(\d+) bytes spill stores", text)[1])
