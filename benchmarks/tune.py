"""Time all legal tiles of the neighborhood attention kernels, and write the table that the launcher reads.

    python benchmarks/tune.py [--dtype bf16] [--processes 12] [--rounds 7] [--out visionattn/kernels/tuned.csv]
    python benchmarks/tune.py --dry-run                               lists problems and kernels; needs no GPU
    TRITON_INTERPRET=1 python benchmarks/tune.py --tiny --out FILE    tries the script without a GPU

The kernels of all tiles are first compiled in several processes, whose results are in Triton's cache on disk. Then each
tile is timed by replays of a CUDA graph of its launch, all tiles of a kernel in turn. The table has one row for each
kind of problem (see `visionattn.kernels.tuned`), with the time of the best tile and that of the default one. It is
written after each kernel; kinds of problems that are in the table are skipped, unless --again.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common import read_rows, write_csv
from gpu_clock import Clock
from na_gpu import CASES, DTYPES, TINY, Case

from visionattn.kernels.neighborhood.triton import launch as triton_launch
from visionattn.kernels.tuned import TABLE, Choice, Key, key_of, row_of

GRAPH_LAUNCHES = 10  # launches in a graph, so that its overhead does not count


def problem_of(case: Case, dtype: torch.dtype, device: str) -> triton_launch.Problem:
    lead = (case.batch, *case.shape, case.heads)
    q, k, v = (torch.randn(*lead, case.dim, device=device, dtype=torch.float32).to(dtype) for _ in range(3))
    rpb = torch.randn(case.heads, *(2 * n - 1 for n in case.kernel), device=device).to(dtype) if case.rpb else None
    rank = len(case.shape)
    per_axis = [(value,) * rank for value in (case.stride, case.dilation, False)]
    return triton_launch.Problem.of(q, k, v, rpb, None, None, case.kernel, *per_axis, case.dim**-0.5)


def kernels_of(problem: triton_launch.Problem) -> list[tuple[str, tuple, Callable[[Any], Any]]]:
    """Name, legal tiles, and the function that builds the launch for a tile, of each kernel of a problem."""
    found = []

    def choose(kernel: str, tiles: tuple, build: Callable) -> Any:
        found.append((kernel, tiles, build))
        return tiles[0]

    out, lse, launch = triton_launch.forward(problem, choose)
    if problem.q.device.type != "meta":
        launch.run()  # the backward pass reads its results
    triton_launch.backward(problem, torch.ones_like(out), None, out, lse, choose)
    return found


def cases(tiny: bool) -> Iterator[Case]:
    """The benchmark's problems without strides, each with and without a bias."""
    seen = set()
    for case in TINY[:1] if tiny else CASES:
        biased = len(case.shape) == 2 and all(k % 2 for k in case.kernel)
        for rpb in (False, True) if biased and not tiny else (case.rpb,):
            options = {**vars(case), "rpb": rpb}
            if case.stride == 1 and tuple(options.values()) not in seen:
                seen.add(tuple(options.values()))
                yield Case(**options)


def key(case: Case, kernel: str, dtype: torch.dtype, capability: tuple[int, int]) -> Key:
    dilation = (case.dilation,) * len(case.shape)
    return key_of(kernel, case.shape, case.kernel, dilation, 2 * case.dim, dtype, case.rpb, capability)


def compile_one(job: tuple[Case, str, str, int]) -> str:
    """Compile the kernel of one tile, in a process of its own; the message of an error, or an empty string."""
    case, dtype, kernel, index = job
    try:
        found = {name: (tiles, build) for name, tiles, build in kernels_of(problem_of(case, DTYPES[dtype], "cuda"))}
        tiles, build = found[kernel]
        launch = build(tiles[index])
        launch.kernel.warmup(
            **launch.arguments, grid=(launch.programs,), num_warps=launch.warps, num_stages=launch.stages
        )
    except Exception as error:  # of the compiler, of any kind; the tile is left out when it is timed
        return f"{kernel} {index}: {' '.join(str(error).split())[:200]}"
    return ""


def time_tiles(tiles: tuple, build: Callable, clock: Clock, rounds: int) -> dict[Any, float]:
    """Median microseconds of one launch with each tile; tiles that cannot run are left out."""
    steps = {}
    for tile in tiles:
        try:
            launch = build(tile)
            launch.run()
        except Exception as error:  # such as too many resources
            print(f"  {Choice.of(tile)} cannot run: {' '.join(str(error).split())[:120]}")
            continue

        def many(launch=launch) -> None:
            for _ in range(GRAPH_LAUNCHES):
                launch.run()

        steps[tile] = (clock.graph(many) or many) if clock.cuda else launch.run
    if clock.cuda:
        torch.cuda.synchronize()
    times = clock.alternate(steps, rounds, milliseconds=5.0)
    count = GRAPH_LAUNCHES if clock.cuda else 1
    return {tile: statistics.median(visits) * 1e3 / count for tile, visits in times.items()}


def tune(case: Case, dtype: str, device: str, rounds: int, known: set[Key], capability: tuple) -> Iterator[dict]:
    """Rows for the kernels of a case whose key is not known."""
    clock = Clock(device)
    for kernel, tiles, build in kernels_of(problem_of(case, DTYPES[dtype], device)):
        name = key(case, kernel, DTYPES[dtype], capability)
        if name in known:
            continue
        known.add(name)
        times = time_tiles(tiles, build, clock, rounds)
        best = min(times, key=times.__getitem__)
        default = times.get(tiles[0], float("nan"))
        print(
            f"{case.name:>9} k{case.kernel[-1]} d{case.dilation:<2} rpb {case.rpb!s:5} {kernel:<8} {len(times):3} "
            f"tiles, best {times[best]:8.1f} us, default {default:8.1f} us",
            flush=True,
        )
        yield row_of(name, Choice.of(best)) | dict(
            microseconds=round(times[best], 2), default_microseconds=round(default, 2), tiles=len(times)
        )


def jobs_of(dtype: str, known: set[Key], capability: tuple) -> list[tuple[Case, str, str, int]]:
    """The tiles to compile."""
    jobs = []
    for case in cases(False):
        with torch.device("meta"):
            kernels = kernels_of(problem_of(case, DTYPES[dtype], "meta"))
        for kernel, tiles, _ in kernels:
            if key(case, kernel, DTYPES[dtype], capability) not in known:
                jobs += [(case, dtype, kernel, index) for index in range(len(tiles))]
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--processes", type=int, default=min(12, os.cpu_count() or 1), help="for compilation")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--again", action="store_true", help="time the kinds of problems of the table again")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a tiny problem in the interpreter, on a CPU")
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    if args.dry_run:
        jobs = jobs_of(args.dtype, set(), (0, 0))
        for case in cases(False):
            of_case = [job for job in jobs if job[0] == case]
            print(case.name, f"k{case.kernel[-1]} d{case.dilation} rpb {case.rpb}: {len(of_case)} kernels to compile")
        print(f"{len(jobs)} kernels")
        return
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --dry-run lists the tiles without one")
    device = "cpu" if args.tiny else "cuda"
    capability = (0, 0) if args.tiny else torch.cuda.get_device_capability()
    rows = [] if args.again else list(read_rows(args.out))
    known = {Key(**{name: _typed(name, row[name]) for name in Key.__dataclass_fields__}) for row in rows}
    if not args.tiny:
        jobs = jobs_of(args.dtype, known, capability)
        with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
            failed = [message for message in pool.map(compile_one, jobs, chunksize=4) if message]
        print(f"compiled {len(jobs) - len(failed)} of {len(jobs)} kernels", *failed[:10], sep="\n  ", flush=True)
    for case in cases(args.tiny):
        for row in tune(case, args.dtype, device, args.rounds, known, capability):
            rows.append(row)
            write_csv(args.out, rows)


def _typed(name: str, text: str) -> Any:
    if name in ("dilated", "rpb"):
        return text == "True"
    return int(text) if name in ("rank", "dim") else text


if __name__ == "__main__":
    main()
