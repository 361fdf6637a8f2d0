"""Neighborhood attention on CPU against what else one can use: time of forward and of forward with backward.

    python benchmarks/na_cpu.py [--threads 2] [--rounds 15] [--only 56x56] [--out benchmarks/results/na_cpu.csv]

Peers: flex_attention compiled (blocks of 64 and of 128 queries and keys; its mask reads index tables, since masks of
arithmetic do not compile on CPU with PyTorch 2.15), dense attention with a mask, dense attention without one (wrong
as a result, but the cost of the products), and an unfolded copy of all neighbors. Every peer that claims the same
result is first compared with the dense definition. Timing alternates between all of them.
"""

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import RESULTS, alternate, machine, summary, write_csv
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from visionattn import __version__
from visionattn.kernels import na2d


@dataclass(frozen=True)
class Case:
    """One map: sizes, window, and how long its slowest peer may take."""

    height: int
    width: int
    kernel: int
    dilation: int = 1
    batch: int = 1
    heads: int = 2
    dim: int = 32

    @property
    def name(self) -> str:
        return f"{self.height}x{self.width}"


CASES = [
    Case(56, 56, 7),
    Case(56, 56, 7, dilation=8),
    Case(28, 28, 7),
    Case(28, 28, 7, dilation=4),
    Case(14, 14, 7),
    Case(14, 14, 7, dilation=2),
    Case(56, 56, 13),
    Case(100, 168, 7),
    Case(100, 168, 7, dilation=14),
]


def windows(length: int, kernel: int, dilation: int) -> torch.Tensor:
    """``[length, kernel]`` attended positions of one axis."""
    x = torch.arange(length)
    group, p = x % dilation, x // dilation
    n = (length - group + dilation - 1) // dilation
    start = torch.minimum((p - kernel // 2).clamp(min=0), n - kernel)
    return (start[:, None] + torch.arange(kernel)) * dilation + group[:, None]


def allowed(case: Case) -> torch.Tensor:
    """Dense boolean mask ``[tokens, tokens]``."""
    axes = []
    for length in (case.height, case.width):
        mask = torch.zeros(length, length, dtype=torch.bool)
        axes.append(mask.scatter_(1, windows(length, case.kernel, case.dilation), True))
    mask = axes[0][:, None, :, None] & axes[1][None, :, None, :]
    return mask.reshape(case.height * case.width, -1)


def heads_first(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1, 2).transpose(1, 2)


def unfold(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Gather every neighbor of every query: ``[B, H, W, K*K, heads, d]`` copies of keys and values."""
    rows = windows(case.height, case.kernel, case.dilation)[:, None, :, None]
    columns = windows(case.width, case.kernel, case.dilation)[None, :, None, :]
    keys, values = (x[:, rows, columns].flatten(3, 4) for x in (k, v))
    scores = torch.einsum("bhwnd,bhwknd->bhwnk", q * case.dim**-0.5, keys)
    return torch.einsum("bhwnk,bhwknd->bhwnd", scores.softmax(-1), values)


def build(case: Case, dtype: torch.dtype) -> tuple[dict, dict]:
    """The inputs, and each contestant as a function of them."""
    shape = (case.batch, case.height, case.width, case.heads, case.dim)
    q, k, v = (torch.randn(shape, dtype=dtype) for _ in range(3))
    tokens, mask = case.height * case.width, allowed(case)
    additive = torch.zeros(tokens, tokens, dtype=dtype).masked_fill_(~mask, -torch.inf)
    compiled = torch.compile(flex_attention, dynamic=False)

    def attended(b, h, q_index, kv_index):
        return mask[q_index, kv_index]

    functions = {
        "visionattn": lambda q, k, v: na2d(q, k, v, case.kernel, dilation=case.dilation, backend="torch"),
        "dense": lambda q, k, v: F.scaled_dot_product_attention(*map(heads_first, (q, k, v))),
        "dense with mask": lambda q, k, v: F.scaled_dot_product_attention(
            *map(heads_first, (q, k, v)), attn_mask=additive
        ),
        "unfold": functools.partial(unfold, case),
    }
    for block in (64, 128):
        blocks = create_block_mask(attended, None, None, tokens, tokens, device="cpu", BLOCK_SIZE=block)
        functions[f"flex compiled {block}"] = lambda q, k, v, blocks=blocks: compiled(
            *map(heads_first, (q, k, v)), block_mask=blocks
        )
    return dict(q=q, k=k, v=v), functions


def check(case: Case, inputs: dict, functions: dict) -> None:
    """Compare every contestant but the unmasked one with the definition."""
    expected = na2d(**_named(inputs), kernel_size=case.kernel, dilation=case.dilation, backend="reference")
    for name, function in functions.items():
        if name == "dense":
            continue
        out = function(**inputs)
        out = out if out.shape == expected.shape else out.transpose(1, 2).reshape(expected.shape)
        error = (out - expected).abs().max().item()
        if error > 1e-4:
            raise SystemExit(f"{name} is wrong on {case}: error {error:.1e}; nothing was timed")


def _named(inputs: dict) -> dict:
    return dict(zip(("query", "key", "value"), inputs.values(), strict=True))


def with_backward(function, inputs: dict):
    """One forward and backward to all three inputs."""
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}

    def step():
        out = function(**leaves)
        return torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))

    return step


def rows_of(case: Case, direction: str, functions: dict, inputs: dict, rounds: int) -> list[dict]:
    """Time one case and print its line."""
    if direction == "forward":
        calls = {name: functools.partial(function, **inputs) for name, function in functions.items()}
    else:
        names = ("visionattn", "dense", "dense with mask", "unfold")  # compiled flex has no backward on CPU
        calls = {name: with_backward(functions[name], inputs) for name in names}
    with torch.set_grad_enabled(direction != "forward"):
        times = {name: summary(t) for name, t in alternate(calls, rounds).items()}
    ours = times["visionattn"]["median_ms"]
    best = min((t["median_ms"], name) for name, t in times.items() if name != "visionattn")
    print(
        f"{case.name:>8} k{case.kernel} d{case.dilation:<2} {direction:<16} ours {ours:7.2f} ms; best peer "
        f"{best[1]} {best[0]:7.2f} ms; ratio {best[0] / ours:.2f}"
    )
    common = dict(
        shape=case.name, kernel=case.kernel, dilation=case.dilation, heads=case.heads, dim=case.dim,
        batch=case.batch, dtype="float32", direction=direction,
    )  # fmt: skip
    return [
        common | dict(contestant=name) | t | dict(times_ours=round(t["median_ms"] / ours, 3))
        for name, t in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        inputs, functions = build(case, torch.float32)
        with torch.no_grad():
            check(case, inputs, functions)
        for direction in ("forward",) if args.forward_only else ("forward", "forward+backward"):
            rows += [row | described for row in rows_of(case, direction, functions, inputs, args.rounds)]
    write_csv(args.out, rows)


if __name__ == "__main__":
    main()
