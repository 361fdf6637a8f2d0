"""Machine code (SASS) of Triton kernels compiled for GPUs that are not present: instructions, loops, issue time.

The issue time of a launch is a lower bound of its time: instructions of all warps, each of which takes one slot of a
scheduler, divided by the slots of the GPU. It counts neither latencies that are not hidden nor the memory.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import triton

from visionattn.kernels.triton_aot import Launch, compile_kernel

__all__ = ["CAPABILITIES", "Code", "code_of", "issue_us"]

CAPABILITIES = (80, 89, 90, 100, 120)
# Streaming multiprocessors and clock in GHz: A100 SXM, L40S, H100 SXM, B200, RTX 5090. Each has four schedulers.
GPUS = {80: (108, 1.35), 89: (142, 2.2), 90: (132, 1.85), 100: (148, 1.85), 120: (170, 2.3)}
SCHEDULERS = 4


@dataclass(frozen=True)
class Loop:
    """A backward branch: indices of the first and the last instruction of its body."""

    first: int
    last: int


@dataclass(frozen=True)
class Code:
    """Instructions in order, and the loops, outer ones after the inner ones that they contain."""

    instructions: list[str]
    loops: list[Loop]

    def executed(self, times: Callable[[int], float]) -> float:
        """Instructions that a warp executes.

        Args:
            times: how often the body of the loop at an index of `loops` runs each time it is entered.
        """
        weights = [1.0] * len(self.instructions)
        for index, loop in enumerate(self.loops):
            for place in range(loop.first, loop.last + 1):
                weights[place] *= times(index)
        return sum(weights)

    def names(self, first: int = 0, last: int | None = None) -> Counter:
        """Number of instructions by the name before the first dot."""
        found = self.instructions[first : None if last is None else last + 1]
        return Counter(re.sub(r"^@!?U?P\d+\s+", "", text).split()[0].split(".")[0] for text in found)


def code_of(launch: Launch, capability: int) -> Code:
    """Compile a launch and disassemble it."""
    cubin = compile_kernel(launch, capability).asm["cubin"]
    tool = triton.knobs.nvidia.nvdisasm.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-c", str(path)], capture_output=True, text=True, check=True).stdout
    return parse(text)


def parse(text: str) -> Code:
    """Read the output of nvdisasm. Code after the last exit, which only pads, is left out."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        label = re.match(r"^(\.L_\S+):", line.strip())
        if label:
            labels[label[1]] = len(instructions)
            continue
        found = re.search(r"/\*[0-9a-f]{4,5}\*/\s+(.*?);", line)
        if found:
            instructions.append(found[1])
    loops = []
    for place, instruction in enumerate(instructions):
        branch = re.search(r"BRA(?:\.\S+)?.*?`\((\.L_\S+)\)", instruction)
        if branch and labels.get(branch[1], place + 1) < place:
            loops.append(Loop(labels[branch[1]], place))
    while instructions and re.match(r"(NOP|BRA)\b", instructions[-1]):
        instructions.pop()
    loops = [loop for loop in loops if loop.last < len(instructions)]
    return Code(instructions, sorted(loops, key=lambda loop: loop.last - loop.first))


def issue_us(instructions: float, warps: int, capability: int) -> float:
    """Microseconds to issue a number of instructions of each of a number of warps on the GPU of `GPUS`."""
    processors, ghz = GPUS[capability]
    return instructions * warps / (processors * SCHEDULERS * ghz * 1e9) * 1e6
