"""Scattered linear attention on a GPU against padding and the published kernels' design: time and memory.

    python benchmarks/scattered_gpu.py [--rounds 15] [--dtype float32] [--out benchmarks/results/scattered_gpu.csv]
    TRITON_INTERPRET=1 python benchmarks/scattered_gpu.py --tiny    # tries the script without a GPU; times mean nothing

Peers: windows padded to the longest, or cut into padded chunks of 32 tokens, in PyTorch's operations; and kernels of
the published design (`scattered_published.py`): one program for each window and head, 32 tokens at a time, float32
only, the sums of windows in memory between two kernels, atomics in the backward pass. All are first compared with the
definition, gradients too. Timing alternates between all of them: CUDA events around many calls, and around replays of a
CUDA graph of the call ("graph"), which need no time on the host.
"""

import argparse
from pathlib import Path

import torch
from common import RESULTS, machine, summary, write_csv
from gpu_clock import Clock
from scattered_peers import EPS, Case, check, pad_chunks, pad_to_longest
from scattered_published import published

from visionattn import __version__
from visionattn.kernels import scattered_linear_attention

# Frames of growing density, a batch of four, many small windows, and one crowded window among others.
CASES = [
    Case(20_000, 900, 120),
    Case(60_000, 1_600, 160),
    Case(200_000, 2_600, 640),
    Case(240_000, 6_400, 160),
    Case(60_000, 15_000, 24),
    Case(100_000, 1_300, 50_000, crowded=50_000),
]
TINY = [Case(60, 3, 30, heads=1, dim=16)]
LARGEST_PADDED = 4_000_000  # tokens


def ours(q, k, v, offsets):
    return scattered_linear_attention(q, k, v, offsets, eps=EPS, backend="triton")


def contestants(case: Case, dtype: torch.dtype) -> dict:
    functions = {"visionattn": ours, "padded chunks of 32": pad_chunks}
    if case.windows * case.longest <= LARGEST_PADDED:
        functions["padded to longest"] = pad_to_longest
    if dtype == torch.float32:
        functions["published design"] = published
    return functions


def step_of(function, inputs: list[torch.Tensor], backward: bool):
    """One call, or one call with the gradients of queries, keys and values."""
    leaves = [x.clone().requires_grad_(backward) for x in inputs[:3]]

    def step():
        out = function(*leaves, inputs[3])
        if backward:
            torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="float32")
    parser.add_argument("--tiny", action="store_true", help="one small problem, to try the script")
    parser.add_argument("--out", type=Path, default=RESULTS / "scattered_gpu.csv")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny with TRITON_INTERPRET=1 tries the script without one")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else getattr(torch, args.dtype)
    torch.manual_seed(0)
    clock = Clock(device)
    described = dict(machine=machine(), torch=torch.__version__, visionattn=__version__)
    rows = []
    for case in TINY if args.tiny else CASES:
        functions = contestants(case, dtype)
        check(case.inputs(device=device), contestants(case, torch.float32))
        inputs = case.inputs(dtype, device)
        for direction in ("forward", "forward+backward"):
            steps = {name: step_of(f, inputs, direction != "forward") for name, f in functions.items()}
            memory = {name: clock.peak(step) for name, step in steps.items()}
            for timed, visits in clock.compare(steps, args.rounds).items():
                times = {name: summary(t) for name, t in visits.items()}
                ours = times["visionattn"]["median_ms"]
                text = ", ".join(f"{name} {t['median_ms']:.3f} ({memory[name]:.0f} MB)" for name, t in times.items())
                print(f"{case.tokens} tokens in {case.windows} windows, {direction:<16} {timed} ms: {text}")
                rows += [
                    dict(
                        tokens=case.tokens, windows=case.windows, longest=case.longest, heads=case.heads, dim=case.dim,
                        dtype=str(dtype).removeprefix("torch."), direction=direction, timed=timed, contestant=name,
                        **t, times_ours=round(t["median_ms"] / ours, 3), peak_mb=round(memory[name], 2), **described,
                    )
                    for name, t in times.items()
                ]  # fmt: skip
        if not args.tiny:  # after each case, so that an interrupted run keeps what it has
            write_csv(args.out, rows)


if __name__ == "__main__":
    main()
