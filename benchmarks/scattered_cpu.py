"""Scattered linear attention on CPU against loops and padding: time of forward and of forward with backward, memory.

    python benchmarks/scattered_cpu.py [--threads 2] [--rounds 9] [--only 60000x1600] [--out scattered_cpu.csv]

Peers: a loop over the windows with all heads in each product; all windows padded to the longest, as one batch; and
windows cut into chunks of 32 tokens, padded, whose sums are added up by window. Every peer is first compared with the
definition, gradients too. Timing alternates between all of them. Memory is the most that the forward pass holds at
once beside its inputs, from PyTorch's record of allocations.
"""

import argparse
import functools
from pathlib import Path

import torch
from common import RESULTS, alternate, machine, peak_memory, summary, write_csv
from scattered_peers import EPS, Case, check, pad_chunks, pad_to_longest, window_loop

from visionattn import __version__
from visionattn.kernels import scattered_linear_attention

# Frames of growing density in windows of ScatterFormer's size; then many small windows, and some crowded ones.
CASES = [
    Case(20_000, 900, 120),
    Case(60_000, 1_600, 160),
    Case(120_000, 2_200, 320),
    Case(200_000, 2_600, 640),
    Case(60_000, 15_000, 24),
    Case(60_000, 60, 2_304),
]


def ours(q, k, v, offsets):
    return scattered_linear_attention(q, k, v, offsets, eps=EPS, backend="torch")


CONTESTANTS = {
    "visionattn": ours,
    "loop over windows": window_loop,
    "padded to longest": pad_to_longest,
    "padded chunks of 32": pad_chunks,
}


LARGEST_PADDED = 400_000  # tokens; more take gigabytes


def contestants(case: Case) -> dict:
    left_out = "padded to longest" if case.windows * case.longest > LARGEST_PADDED else None
    return {name: function for name, function in CONTESTANTS.items() if name != left_out}


def with_backward(function, inputs: list[torch.Tensor]):
    """One forward and backward to queries, keys and values."""
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]

    def step():
        out = function(*leaves, inputs[3])
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", help="tokens and windows such as 60000x1600")
    parser.add_argument("--out", type=Path, default=RESULTS / "scattered_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    described = dict(machine=machine(), torch=torch.__version__, visionattn=__version__)
    rows = []
    for case in CASES:
        if args.only and args.only != case.name:
            continue
        inputs, functions = case.inputs(), contestants(case)
        check(inputs, functions)
        with torch.no_grad():
            memory = {name: peak_memory(functools.partial(f, *inputs)) for name, f in functions.items()}
        for direction in ("forward", "forward+backward"):
            if direction == "forward":
                calls = {name: functools.partial(f, *inputs) for name, f in functions.items()}
            else:
                calls = {name: with_backward(f, inputs) for name, f in functions.items()}
            with torch.set_grad_enabled(direction != "forward"):
                times = {name: summary(t) for name, t in alternate(calls, args.rounds).items()}
            best = times["visionattn"]["median_ms"]
            text = ", ".join(f"{name} {t['median_ms']:.1f} ({t['median_ms'] / best:.2f}x)" for name, t in times.items())
            print(f"{case.tokens} tokens in {case.windows} windows, {direction:<16} ms: {text}", flush=True)
            rows += [
                dict(
                    tokens=case.tokens, windows=case.windows, longest=case.longest, heads=case.heads, dim=case.dim,
                    dtype="float32", direction=direction, contestant=name, **t,
                    times_ours=round(t["median_ms"] / best, 3), forward_peak_mb=round(memory[name], 1), **described,
                )
                for name, t in times.items()
            ]  # fmt: skip
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
