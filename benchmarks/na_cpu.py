"""Neighborhood attention on CPU against what else one can use: time and memory, forward and forward with backward.

    python benchmarks/na_cpu.py [--threads 2] [--rounds 15] [--only 56x56] [--out benchmarks/results/na_cpu.csv]

Peers: flex_attention compiled (blocks of 64 and of 128 queries and keys; its mask reads index tables, since masks of
arithmetic do not compile on every version's CPU backend) and not compiled, dense attention with a mask, dense
attention without one (wrong as a result, but the cost of the products), an unfolded copy of all neighbors, and NATTEN
where it is installed and runs. Peers whose tables or scores would take gigabytes are left out of large maps. Every
peer that claims the same result is first compared with the dense definition. Timing alternates between all of them.
"""

import argparse
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, alternate, machine, peak_memory, summary, write_csv
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from visionattn import __version__
from visionattn.kernels import na1d, na2d, na3d

OURS = {1: na1d, 2: na2d, 3: na3d}
DENSE_TOKENS = 20_000  # a mask of more takes over 1.6 GB
EAGER_TOKENS = 1_000
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Case:
    """One map: sizes, window, type."""

    shape: tuple[int, ...]
    kernel: tuple[int, ...] | int
    dilation: int = 1
    heads: int = 2
    batch: int = 1
    dim: int = 32
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def window(self) -> tuple[int, ...]:
        return (self.kernel,) * len(self.shape) if isinstance(self.kernel, int) else self.kernel

    @property
    def tokens(self) -> int:
        return math.prod(self.shape)


CASES = [
    Case((56, 56), 7),
    Case((56, 56), 7, dilation=8),
    Case((28, 28), 7),
    Case((28, 28), 7, dilation=4),
    Case((14, 14), 7),
    Case((14, 14), 7, dilation=2),
    Case((14, 14), 7, heads=8),
    Case((7, 7), 7, heads=16),
    Case((56, 56), 13),
    Case((128, 128), 7),
    Case((100, 168), 7),
    Case((100, 168), 7, dilation=14),
    Case((200, 336), 7),
    Case((8192,), 127),
    Case((8, 28, 28), (3, 7, 7)),
    Case((56, 56), 7, dtype=torch.bfloat16),
    Case((28, 28), 7, dtype=torch.bfloat16),
    Case((100, 168), 7, dtype=torch.bfloat16),
]


def windows(length: int, kernel: int, dilation: int) -> Tensor:
    """``[length, kernel]`` attended positions of one axis."""
    x = torch.arange(length)
    group, p = x % dilation, x // dilation
    n = (length - group + dilation - 1) // dilation
    start = torch.minimum((p - kernel // 2).clamp(min=0), n - kernel)
    return (start[:, None] + torch.arange(kernel)) * dilation + group[:, None]


def neighbors(case: Case) -> Tensor:
    """``[tokens, window]`` attended tokens."""
    index = torch.zeros(1, 1, dtype=torch.long)
    for length, kernel in zip(case.shape, case.window, strict=True):
        axis = windows(length, kernel, case.dilation)
        index = (index[:, None, :, None] * length + axis[None, :, None, :]).flatten(2).flatten(0, 1)
    return index


def heads_first(x: Tensor) -> Tensor:
    return x.flatten(1, -3).transpose(1, 2)


def unfold(case: Case, index: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gather every neighbor of every query: ``[B, tokens, window, heads, d]`` copies of keys and values."""
    keys, values = (x.flatten(1, -3)[:, index] for x in (k, v))
    scores = torch.einsum("bnhd,bnkhd->bnhk", q.flatten(1, -3) * case.dim**-0.5, keys)
    return torch.einsum("bnhk,bnkhd->bnhd", scores.softmax(-1), values).view(q.shape)


def natten_peer(case: Case, inputs: list[Tensor]) -> dict:
    """NATTEN, where it is installed and has a kernel for this machine."""
    try:
        import natten

        function = functools.partial(
            getattr(natten, f"na{len(case.shape)}d"), kernel_size=case.window, dilation=case.dilation
        )
        function(*inputs)
    except Exception as error:  # whatever it raises, there is nothing to time
        print(f"NATTEN left out: {type(error).__name__}: {' '.join(str(error).split())[:100]}")
        return {}
    return {"NATTEN": function}


def build(case: Case) -> tuple[list[Tensor], dict]:
    """The inputs, and each contestant as a function of them."""
    shape = (case.batch, *case.shape, case.heads, case.dim)
    inputs = [torch.randn(shape).to(case.dtype) for _ in range(3)]
    ours = functools.partial(OURS[len(case.shape)], kernel_size=case.window, dilation=case.dilation, backend="torch")
    index = neighbors(case)
    functions = {"visionattn": ours, "unfold": functools.partial(unfold, case, index)}
    if case.tokens <= DENSE_TOKENS:
        functions |= dense_peers(case, index)
    return inputs, functions | natten_peer(case, inputs)


def dense_peers(case: Case, index: Tensor) -> dict:
    """What needs a mask of all pairs of tokens, or computes them all."""
    mask = torch.zeros(case.tokens, case.tokens, dtype=torch.bool).scatter_(1, index, True)
    additive = torch.zeros(case.tokens, case.tokens, dtype=case.dtype).masked_fill_(~mask, -torch.inf)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attended(b, h, q_index, kv_index):
        return mask[q_index, kv_index]

    functions = {
        "dense": lambda q, k, v: F.scaled_dot_product_attention(*map(heads_first, (q, k, v))),
        "dense with mask": lambda q, k, v: F.scaled_dot_product_attention(
            *map(heads_first, (q, k, v)), attn_mask=additive
        ),
    }
    for block in (64, 128):
        blocks = create_block_mask(attended, None, None, case.tokens, case.tokens, device="cpu", BLOCK_SIZE=block)
        functions[f"flex compiled {block}"] = lambda q, k, v, blocks=blocks: compiled(
            *map(heads_first, (q, k, v)), block_mask=blocks
        )
    if case.tokens <= EAGER_TOKENS:
        functions["flex eager"] = lambda q, k, v: flex_attention(*map(heads_first, (q, k, v)), block_mask=blocks)
    return functions


def check(case: Case, inputs: list[Tensor], functions: dict) -> None:
    """Compare every contestant but the unmasked one with the definition (with the unfolded copy on large maps)."""
    exact = [x.float() for x in inputs]
    if case.tokens <= DENSE_TOKENS:
        geometry = dict(kernel_size=case.window, dilation=case.dilation, backend="reference")
        expected = OURS[len(case.shape)](*exact, **geometry)
    else:
        expected = functions["unfold"](*exact)
    for name, function in functions.items():
        if name == "dense":
            continue
        out = function(*inputs).float()
        out = out if out.shape == expected.shape else out.transpose(1, 2).reshape(expected.shape)
        error = (out - expected).abs().max().item()
        if error > TOLERANCE[case.dtype]:
            raise SystemExit(f"{name} is wrong on {case}: error {error:.1e}; nothing was timed")


def with_backward(function, inputs: list[Tensor]):
    """One forward and backward to all three inputs."""
    leaves = [x.clone().requires_grad_() for x in inputs]

    def step():
        out = function(*leaves)
        return torch.autograd.grad(out, leaves, torch.ones_like(out))

    return step


def rows_of(case: Case, direction: str, functions: dict, inputs: list[Tensor], rounds: int) -> list[dict]:
    """Time one case and print its line."""
    if direction == "forward":
        calls = {name: functools.partial(function, *inputs) for name, function in functions.items()}
    else:  # compiled flex has no backward on CPU
        calls = {name: with_backward(f, inputs) for name, f in functions.items() if not name.startswith("flex")}
    with torch.set_grad_enabled(direction != "forward"):
        memory = {name: peak_memory(call) for name, call in calls.items()}
        times = {name: summary(t) for name, t in alternate(calls, rounds).items()}
    ours = times["visionattn"]["median_ms"]
    best, peer = min((t["median_ms"], name) for name, t in times.items() if name != "visionattn")
    unfolded, held = times["unfold"]["median_ms"] / ours, memory["unfold"] / memory["visionattn"]
    print(
        f"{case.name:>8} k{case.window} d{case.dilation:<2} h{case.heads:<2} {str(case.dtype)[6:]:<8} {direction:<16} "
        f"ours {ours:.2f} ms {memory['visionattn']:6.1f} MB; best peer {peer} {best:7.2f} ms; ratio {best / ours:.2f}; "
        f"unfold takes {unfolded:.1f} times the time and {held:.1f} times the memory",
        flush=True,
    )
    common = dict(
        shape=case.name, kernel="x".join(map(str, case.window)), dilation=case.dilation, heads=case.heads,
        dim=case.dim, batch=case.batch, dtype=str(case.dtype)[6:], direction=direction,
    )  # fmt: skip
    return [
        common
        | dict(contestant=name)
        | t
        | dict(times_ours=round(t["median_ms"] / ours, 3), peak_mb=round(memory[name], 2))
        for name, t in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", help="a map such as 56x56")
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "na_cpu.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    described = dict(machine=machine(), torch=torch.__version__, visionattn=__version__)
    rows = []
    for case in CASES:
        if args.only and args.only != case.name:
            continue
        torch.compiler.reset()
        inputs, functions = build(case)
        with torch.no_grad():
            check(case, inputs, functions)
        for direction in ("forward",) if args.forward_only else ("forward", "forward+backward"):
            rows += [row | described for row in rows_of(case, direction, functions, inputs, args.rounds)]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
