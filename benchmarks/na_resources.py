"""Registers, spills, shared memory and issue time of the Triton kernels of neighborhood attention; needs no GPU.

    python benchmarks/na_resources.py [--capability 80 89 90 100 120] [--tiles] [--out FILE]

Compiles the kernels for layers of DiNAT and some other problems ahead of time, for GPUs that need not be here, with the
default tile or with ``--tiles`` with every legal one: all problems for compute capability 9.0, and the first one for
the others. `issue_us` is modelled, not measured: the time to issue the instructions of all warps, which the machine
code shows (see `sass`). A spilled register goes through memory.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
import triton
from common import RESULTS, write_csv
from sass import CAPABILITIES, GPUS, Code, code_of, issue_us

from visionattn import __version__
from visionattn.kernels.neighborhood.triton import launch as triton_launch
from visionattn.kernels.neighborhood.triton.problem import Problem
from visionattn.kernels.neighborhood.triton.tiles import Tile
from visionattn.kernels.triton_aot import compile_launch

LARGE = 30  # instructions; shorter loops are not those over images or steps


@dataclass(frozen=True)
class Case:
    """One layer: queries, keys and values are packed, as the projection of the backbones makes them."""

    shape: tuple[int, ...]
    kernel: int
    dilation: int = 1
    heads: int = 2
    batch: int = 128
    dim: int = 32
    dtype: torch.dtype = torch.bfloat16
    rpb: bool = True
    extra: int = 0


CASES = [
    Case((56, 56), 7),
    Case((56, 56), 7, rpb=False),
    Case((56, 56), 7, dilation=8),
    Case((28, 28), 7, heads=4),
    Case((14, 14), 7, heads=8),
    Case((7, 7), 7, heads=16),
    Case((200, 336), 7, batch=2),
    Case((200, 336), 7, dilation=28, batch=2),
    Case((56, 56), 7, dim=64),
    Case((56, 56), 7, dtype=torch.float32),
    Case((56, 56), 13),
    Case((16, 28, 28), 3, batch=8, extra=16),
]
# Every tile of these compiles in tests/kernels/neighborhood/test_triton_aot.py if asked to.
PROBLEMS = [((56, 56), 7, 1), ((32768,), 255, 1), ((16, 28, 28), 3, 1)]
DIMS = (16, 32, 64, 128, 256)
DTYPES = (torch.bfloat16, torch.float32)  # float16 compiles as bfloat16 does


def problem_of(case: Case, processors: int = 132) -> Problem:
    """A problem without memory, for a GPU with a number of processors."""
    rank = len(case.shape)
    options = dict(dtype=case.dtype, device="meta")
    q, k, v = torch.empty(case.batch, *case.shape, 3, case.heads, case.dim, **options).unbind(-3)
    table = torch.empty(case.heads, *(2 * case.kernel - 1,) * rank, **options) if case.rpb else None
    more = torch.empty(case.batch, case.extra, case.heads, case.dim, **options) if case.extra else None
    geometry = ((case.kernel,) * rank, (1,) * rank, (case.dilation,) * rank, (False,) * rank, case.dim**-0.5)
    problem = Problem.of(q, k, v, table, more, more, *geometry)
    problem.processors = processors
    return problem


def launches(problem: Problem, choose=None) -> Iterator[triton_launch.Launch]:
    """Forward and backward of a problem."""
    out, lse, forward = triton_launch.forward(problem, choose)
    yield forward
    yield from triton_launch.backward(problem, out, None, out, lse, choose)[1]


def every_tile(problem: Problem) -> Iterator[triton_launch.Launch]:
    """Forward and backward with each legal tile of each kernel once."""
    found = {}

    def remember(kernel: str, tiles: tuple[Tile, ...], build) -> Tile:
        found[kernel] = (tiles, build)
        return tiles[0]

    list(launches(problem, remember))
    for tiles, build in found.values():
        yield from map(build, tiles)


def executed(launch: triton_launch.Launch, code: Code) -> float:
    """Instructions of one warp. Its longest loop is that over images, or over the steps of the halo."""
    given, name = launch.arguments, launch.kernel.__name__
    if name.startswith("image"):
        times = given["items"] / -(-given["items"] // given["share"])  # the last program may have fewer
    elif name in ("forward_kernel", "query_kernel", "key_kernel"):
        times = -(-prod(given["HALO"]) // given["BLOCK"])
    else:
        times = given["share"] if name == "bias_kernel" else -(-given["share"] // given["BLOCK"])
    long = [index for index, loop in enumerate(code.loops) if loop.last - loop.first > LARGE]
    return code.executed(lambda index: times if long and index == long[-1] else 1)


def rows(capabilities: list[int], tiles: bool) -> Iterator[dict]:
    for capability in capabilities:
        for case in CASES if capability == 90 else CASES[:1]:
            problem = problem_of(case, GPUS[capability][0])
            for launch in every_tile(problem) if tiles else launches(problem):
                found, code, given = compile_launch(launch, capability), code_of(launch, capability), launch.arguments
                count = executed(launch, code)
                yield dict(
                    capability=capability, shape="x".join(map(str, case.shape)), window=case.kernel,
                    dilation=case.dilation, heads=case.heads, head_dim=case.dim, batch=case.batch,
                    dtype=str(case.dtype).removeprefix("torch."), rpb=case.rpb, extra=case.extra,
                    kernel=launch.kernel.__name__.removesuffix("_kernel"),
                    tile="x".join(map(str, given.get("TILE", ()))), block=given["BLOCK"], warps=launch.warps,
                    stages=launch.stages, images=given.get("share", 1), programs=launch.programs,
                    instructions=round(count),
                    issue_us=round(issue_us(count, launch.programs * launch.warps, capability), 1),
                    registers=found.registers, spill_bytes=found.spill_bytes, shared_bytes=found.shared_bytes,
                    triton=triton.__version__, visionattn=__version__,
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--capability", type=int, nargs="+", default=CAPABILITIES)
    parser.add_argument("--tiles", action="store_true", help="every legal tile, not only the default ones")
    parser.add_argument("--out", type=Path, default=RESULTS / "na_triton_resources.csv")
    args = parser.parse_args()
    found = []
    for row in rows(args.capability, args.tiles):
        found.append(row)
        print(*(f"{name}={value}" for name, value in row.items() if name not in ("triton", "visionattn")), flush=True)
        write_csv(args.out, found)
    print(f"{len(found)} kernels, {sum(row['spill_bytes'] > 0 for row in found)} with spills")


if __name__ == "__main__":
    main()
