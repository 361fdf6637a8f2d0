"""Bi-level routing attention on a GPU against gathering: time of forward and of forward with backward, and memory.

    python benchmarks/routing_gpu.py [--rounds 15] [--dtype bfloat16] [--out benchmarks/results/routing_gpu.csv]
    TRITON_INTERPRET=1 python benchmarks/routing_gpu.py --tiny      # tries the script without a GPU; times mean nothing

Peers: copies of all selected keys and values, with two products and a softmax (the common implementation) or under
PyTorch's fused attention. All are first compared with the definition in float32, gradients too. Timing alternates
between all of them: CUDA events around many calls, and around replays of a CUDA graph of the call ("graph"), which
need no time on the host.
"""

import argparse
import functools
from pathlib import Path

import torch
from common import RESULTS, machine, summary, write_csv
from gpu_clock import Clock
from routing_peers import Case, check, gather, gather_sdpa

from visionattn import __version__
from visionattn.kernels import bilevel_routing_attention

# The stages of BiFormer-S: images of 224 pixels in a batch, and one of 1024 (segmentation, detection) with its regions.
CASES = [
    Case(56, 1, heads=2, batch=64),
    Case(28, 4, heads=4, batch=64),
    Case(14, 16, heads=8, batch=64),
    Case(56, 16, heads=2, batch=16),
    Case(256, 1, heads=2, regions=16),
    Case(128, 4, heads=4, regions=16),
    Case(64, 16, heads=8, regions=16),
]
TINY = [Case(8, 2, heads=1, regions=2, dim=16)]


def contestants(case: Case) -> dict:
    def ours(q, k, v):
        return bilevel_routing_attention(q, k, v, case.regions, case.topk, scale=case.scale, backend="triton")

    return {
        "visionattn": ours,
        "gather": functools.partial(gather, case),
        "gather SDPA": functools.partial(gather_sdpa, case),
    }


def step_of(function, inputs: list[torch.Tensor], backward: bool):
    """One call, or one call with the gradients of all inputs."""
    leaves = [x.clone().requires_grad_(backward) for x in inputs]

    def step():
        out = function(*leaves)
        if backward:
            torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--tiny", action="store_true", help="one small problem, to try the script")
    parser.add_argument("--out", type=Path, default=RESULTS / "routing_gpu.csv")
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
        functions = contestants(case)
        small = Case(case.side, case.topk, case.heads, case.regions, 1, case.dim)
        if case.side <= 64:  # the definition holds all pairs of tokens
            check(small, small.inputs(device=device), contestants(small), tolerance=1e-3)
        inputs = case.inputs(dtype, device)
        for direction in ("forward", "forward+backward"):
            steps = {name: step_of(f, inputs, direction != "forward") for name, f in functions.items()}
            memory = {name: clock.peak(step) for name, step in steps.items()}
            for timed, visits in clock.compare(steps, args.rounds).items():
                times = {name: summary(t) for name, t in visits.items()}
                ours = times["visionattn"]["median_ms"]
                text = ", ".join(f"{name} {t['median_ms']:.3f} ({memory[name]:.0f} MB)" for name, t in times.items())
                print(f"{case.batch} x {case.name} top-{case.topk:<2} {direction:<16} {timed} ms: {text}")
                rows += [
                    dict(
                        shape=case.name, topk=case.topk, regions=case.regions, heads=case.heads, dim=case.dim,
                        batch=case.batch, dtype=str(dtype).removeprefix("torch."), direction=direction, timed=timed,
                        contestant=name, **t, times_ours=round(t["median_ms"] / ours, 3),
                        peak_mb=round(memory[name], 2), **described,
                    )
                    for name, t in times.items()
                ]  # fmt: skip
        if not args.tiny:  # after each case, so that an interrupted run keeps what it has
            write_csv(args.out, rows)


if __name__ == "__main__":
    main()
