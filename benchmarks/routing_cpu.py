"""Bi-level routing attention on CPU against gathering: time of forward and of forward with backward, and memory.

    python benchmarks/routing_cpu.py [--threads 2] [--rounds 15] [--only 56x56] [--out routing_cpu.csv]

Peers: copies of all selected keys and values, with two products and a softmax (the common implementation) or under
PyTorch's fused attention, and fused attention of a few regions at a time. Every peer is first compared with the
definition, gradients too. Timing alternates between all of them. Memory is the most that the forward pass holds at
once beside its inputs, from PyTorch's record of allocations.
"""

import argparse
import functools
from pathlib import Path

import torch
from common import RESULTS, alternate, machine, peak_memory, summary, write_csv
from routing_peers import Case, check, chunked_sdpa, gather, gather_sdpa

from visionattn import __version__
from visionattn.kernels import bilevel_routing_attention

# The first three are the same layer with more and more regions; the others are what BiFormer-S has at 224 pixels.
CASES = [
    Case(56, 1, heads=2),
    Case(56, 4, heads=2),
    Case(56, 16, heads=2),
    Case(28, 4, heads=4),
    Case(14, 16, heads=8),
]


def contestants(case: Case) -> dict:
    def ours(q, k, v):
        return bilevel_routing_attention(q, k, v, case.regions, case.topk, scale=case.scale, backend="torch")

    peers = {"gather": gather, "gather SDPA": gather_sdpa, "chunked SDPA": chunked_sdpa}
    return {"visionattn": ours} | {name: functools.partial(peer, case) for name, peer in peers.items()}


def with_backward(function, inputs: list[torch.Tensor]):
    """One forward and backward to all three inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]

    def step():
        out = function(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def rows_of(case: Case, direction: str, functions: dict, inputs: list, memory: dict, rounds: int) -> list[dict]:
    """Time one case and print its line."""
    if direction == "forward":
        calls = {name: functools.partial(function, *inputs) for name, function in functions.items()}
    else:
        calls = {name: with_backward(function, inputs) for name, function in functions.items()}
    with torch.set_grad_enabled(direction != "forward"):
        times = {name: summary(t) for name, t in alternate(calls, rounds).items()}
    ours = times["visionattn"]["median_ms"]
    text = ", ".join(f"{name} {t['median_ms']:.2f} ({t['median_ms'] / ours:.2f}x)" for name, t in times.items())
    print(f"{case.name} top-{case.topk:<2} {direction:<16} ms: {text}")
    if direction == "forward":
        print(" " * 29 + "MB: " + ", ".join(f"{name} {size:.1f}" for name, size in memory.items()))
    common = dict(
        shape=case.name, topk=case.topk, regions=case.regions, heads=case.heads, dim=case.dim, batch=case.batch,
        dtype="float32", direction=direction,
    )  # fmt: skip
    return [
        common
        | dict(contestant=name)
        | t
        | dict(times_ours=round(t["median_ms"] / ours, 3), forward_peak_mb=round(memory[name], 2))
        for name, t in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", help="a map such as 56x56")
    parser.add_argument("--out", type=Path, default=RESULTS / "routing_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    described = dict(machine=machine(), torch=torch.__version__, visionattn=__version__)
    rows = []
    for case in CASES:
        if args.only and args.only != case.name:
            continue
        inputs, functions = case.inputs(), contestants(case)
        check(case, inputs, functions)
        with torch.no_grad():
            memory = {name: peak_memory(functools.partial(f, *inputs)) for name, f in functions.items()}
        for direction in ("forward", "forward+backward"):
            rows += [row | described for row in rows_of(case, direction, functions, inputs, memory, args.rounds)]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
