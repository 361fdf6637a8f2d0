"""Registers, spills and shared memory of the Triton kernels of neighborhood attention; needs no GPU.

    python benchmarks/na_resources.py [--capability 80 90 100 120] [--all] [--out FILE]

Compiles the default tile of each kernel for common problems, or with ``--all`` every legal tile, ahead of time for GPUs
that need not be here. A spilled register goes through memory.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from common import RESULTS, write_csv

from visionattn import __version__
from visionattn.kernels.neighborhood.triton import launch as triton_launch
from visionattn.kernels.neighborhood.triton.tiles import KERNELS, Tile
from visionattn.kernels.triton_aot import compile_launch

PROBLEMS = [((56, 56), 7, 1), ((32768,), 255, 1), ((16, 28, 28), 3, 1)]
DIMS = (16, 32, 64, 128, 256)
DTYPES = (torch.bfloat16, torch.float32)  # float16 compiles as bfloat16 does
CAPABILITIES = (80, 90, 100, 120)


def problem(shape: tuple[int, ...], kernel: int, dilation: int, dim: int, dtype: torch.dtype, rpb: bool, extra: int):
    """A problem without memory: tensors on the meta device."""
    rank, heads = len(shape), 2
    q = torch.empty(8, *shape, heads, dim, dtype=dtype, device="meta")
    table = torch.empty(heads, *(2 * kernel - 1,) * rank, dtype=dtype, device="meta") if rpb else None
    more = torch.empty(8, extra, heads, dim, dtype=dtype, device="meta") if extra else None
    geometry = ((kernel,) * rank, (1,) * rank, (dilation,) * rank, (False,) * rank, dim**-0.5)
    return triton_launch.Problem.of(q, q, q, table, more, more, *geometry)


def launches(case: triton_launch.Problem, choose=None) -> Iterator[triton_launch.Launch]:
    """Forward and backward of a problem."""
    out, lse, forward = triton_launch.forward(case, choose)
    yield forward
    yield from triton_launch.backward(case, out, lse, out, lse, choose)[1]


def every_tile(case: triton_launch.Problem) -> Iterator[triton_launch.Launch]:
    """Forward and backward with the first legal tile of each kernel, the second, and so on."""
    most = max(len(case.tiles(kernel)) for kernel in KERNELS)
    for index in range(most):

        def choose(kernel: str, tiles: tuple[Tile, ...], build, index=index) -> Tile:
            return tiles[min(index, len(tiles) - 1)]

        yield from launches(case, choose)


def rows(capabilities: list[int], everything: bool) -> Iterator[dict]:
    seen = set()
    for (shape, kernel, dilation), dim, dtype in itertools.product(PROBLEMS, DIMS, DTYPES):
        for rpb, extra in ((False, 0), (True, 16)):
            case = problem(shape, kernel, dilation, dim, dtype, rpb, extra)
            for launch, capability in itertools.product(
                every_tile(case) if everything else launches(case), capabilities
            ):
                arguments = launch.arguments
                row = dict(
                    capability=capability, kernel=launch.kernel.__name__, shape="x".join(map(str, shape)),
                    window=kernel, dilation=dilation, head_dim=dim, dtype=str(dtype).removeprefix("torch."),
                    rpb=rpb, extra=extra, tile="x".join(map(str, arguments.get("TILE", ()))),
                    block=arguments["BLOCK"], warps=launch.warps, stages=launch.stages,
                )  # fmt: skip
                if tuple(row.values()) in seen:
                    continue
                seen.add(tuple(row.values()))
                found = compile_launch(launch, capability)
                yield row | dict(
                    registers=found.registers, spill_bytes=found.spill_bytes, shared_bytes=found.shared_bytes,
                    triton=triton.__version__, visionattn=__version__,
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--capability", type=int, nargs="+", default=CAPABILITIES)
    parser.add_argument("--all", action="store_true", help="every legal tile, not only the default ones; takes hours")
    parser.add_argument("--out", type=Path, default=RESULTS / "na_triton_resources.csv")
    args = parser.parse_args()
    found = []
    for row in rows(args.capability, args.all):
        found.append(row)
        print(*(f"{name}={value}" for name, value in row.items() if name not in ("triton", "visionattn")), flush=True)
    spilled = sum(row["spill_bytes"] > 0 for row in found)
    print(f"{len(found)} kernels, {spilled} with spills")
    write_csv(args.out, found)


if __name__ == "__main__":
    main()
