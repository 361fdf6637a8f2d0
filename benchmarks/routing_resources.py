"""Registers, spills, shared memory and issue time of the Triton kernels of bi-level routing attention; needs no GPU.

    python benchmarks/routing_resources.py [--capability 80 89 90 100 120] [--out FILE]

Compiles the kernels for the stages of BiFormer-S at 224 pixels, batch 128, with packed queries, keys and values, ahead
of time for GPUs that need not be here. `issue_us` is the time to issue the instructions of all warps (see `sass`), for
the average number of queries that select a key region.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
import triton
from common import RESULTS, write_csv
from sass import CAPABILITIES, Code, code_of, issue_us

from visionattn import __version__
from visionattn.kernels.routing.triton import launch as triton_launch
from visionattn.kernels.triton_aot import Launch, compile_launch

BATCH, DIM, REGIONS = 128, 32, (7, 7)
STAGES = [(56, 1, 2), (28, 4, 4), (14, 16, 8)]  # side of the map, selected regions, heads


def problem(side: int, topk: int, heads: int, dtype: torch.dtype, dim: int = DIM, batch: int = BATCH):
    """A problem without memory, as of one projection to queries, keys and values."""
    tokens, channels = side * side, heads * dim
    packed = ((batch, tokens, heads, dim), (3 * tokens * channels, 3 * channels, dim, 1), dtype, True)
    return triton_launch.Problem(
        packed, packed, packed, None, (side, side), (side, side), REGIONS, topk, channels**-0.5, "ieee"
    )


def launches(case: triton_launch.Problem) -> list[Launch]:
    """Means, forward and backward."""
    (batch, tokens, heads, dim), strides, dtype, aligned = case.q
    rows = ((batch, tokens, heads * dim), (*strides[:2], 1), dtype, aligned)
    out = ((batch, tokens, heads, dim), (tokens * heads * dim, heads * dim, dim, 1), dtype, aligned)
    means = triton_launch.means_launch(rows, rows, None, case.query_map, case.regions)
    return [means, *triton_launch.forward_launches(case), *triton_launch.backward_launches(case, out, out)]


def executed(launch: Launch, code: Code) -> float:
    """Instructions of one warp: the longest loop is that over blocks; others build the bits of regions."""
    given, name = launch.arguments, launch.kernel.__name__
    if name == "index_kernel":
        steps = -(-given["COUNT"] * given["topk"] // given["BLOCK"])
    elif name == "means_kernel":
        steps = -(-given["tokens"] // given["BLOCK"])
    else:
        tokens = given["query_tokens" if name == "key_kernel" else "key_tokens"]
        block = given["BLOCK_M" if name == "key_kernel" else "BLOCK_N"]
        steps = -(-(given["COUNT"] if given["WHOLE"] else given["topk"]) * tokens // block)
    left = given.get("topk", 0)
    counts = {}
    main = len(code.loops) - 1
    for index, loop in sorted(enumerate(code.loops), key=lambda pair: -code.names(pair[1].first, pair[1].last)["LDG"]):
        if index == main:
            counts[index] = steps
        else:  # unrolled, and then a loop for the rest
            unrolled = max(1, code.names(loop.first, loop.last)["LDG"])
            counts[index], left = divmod(left, unrolled)
    return code.executed(counts.__getitem__)


def rows(capabilities: list[int]) -> Iterator[dict]:
    for (side, topk, heads), dtype in product(STAGES, (torch.bfloat16, torch.float32)):
        for launch, capability in product(launches(problem(side, topk, heads, dtype)), capabilities):
            resources, code = compile_launch(launch, capability), code_of(launch, capability)
            count = executed(launch, code)
            given = launch.arguments
            yield dict(
                capability=capability, shape=f"{side}x{side}", topk=topk, heads=heads, head_dim=DIM, batch=BATCH,
                dtype=str(dtype).removeprefix("torch."), kernel=launch.kernel.__name__.removesuffix("_kernel"),
                whole_map=given.get("WHOLE", ""), block_m=given.get("BLOCK_M", ""), block_n=given.get("BLOCK_N", ""),
                warps=launch.warps, programs=launch.programs, instructions=round(count),
                issue_us=round(issue_us(count, launch.programs * launch.warps, capability), 1),
                registers=resources.registers, spill_bytes=resources.spill_bytes,
                shared_bytes=resources.shared_bytes, triton=triton.__version__, visionattn=__version__,
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--capability", type=int, nargs="+", default=CAPABILITIES)
    parser.add_argument("--out", type=Path, default=RESULTS / "routing_resources.csv")
    args = parser.parse_args()
    found = []
    for row in rows(args.capability):
        found.append(row)
        print(*(f"{name}={value}" for name, value in row.items() if name not in ("triton", "visionattn")), flush=True)
    write_csv(args.out, found)


if __name__ == "__main__":
    main()
