"""Neighborhood attention on a GPU against what else one can use: times, peak memory, distance from the memory floor.

    make gpu                            the tests on the GPU, then the cases with a goal, and the other parts of gpu.py
    python benchmarks/na_gpu.py         [--only 56x56] [--goals] [--resume] [--dtype bf16] [--rounds 15] [--out FILE]
    python benchmarks/na_gpu.py --tiny  the whole script on a CPU in Triton's interpreter, to try the script

Peers: flex_attention compiled, and eager where its dense scores fit; every NATTEN backend that can run, if NATTEN is
installed; dense attention with a mask where it fits; an unfolded copy of all neighbors; plain dense attention without
a mask (wrong as a result, but the cost of the fused products). The floor is the time to move queries, keys, values and
the output once at the copy bandwidth measured here. Every contestant that claims the same result is first compared
with the dense definition, or on large maps with the portable backend. Timing alternates between all of them: CUDA
events around many calls, and around replays of a CUDA graph of the call ("graph"), which need no time on the host. Rows
are written after each case; --resume continues an interrupted run. --goals takes the cases of docs/gpu.md only, and
compiles flex_attention for the first of them only, since this takes longer than all the rest.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

if "--tiny" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import torch.nn.functional as F
from common import RESULTS, machine, read_rows, summary, write_csv
from gpu_clock import Clock
from na_cpu import windows
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from visionattn import __version__
from visionattn.kernels import na1d, na2d, na3d

FUNCTIONS = {1: na1d, 2: na2d, 3: na3d}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCE = {"bf16": 5e-2, "fp16": 1e-2, "fp32": 1e-3}
DENSE_BYTES = 1 << 33  # of the scores or masks that a dense peer makes


@dataclass(frozen=True)
class Case:
    """One problem: map, window, dilation, stride."""

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    dilation: int = 1
    stride: int = 1
    batch: int = 1
    heads: int = 2
    dim: int = 32
    rpb: bool = False

    @property
    def name(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def tokens(self) -> int:
        return prod(self.shape)

    @property
    def geometry(self) -> dict:
        return dict(kernel_size=self.kernel, dilation=self.dilation, stride=self.stride)


def _stages(size: int, batch: int, dilations: tuple[int, ...]) -> list[Case]:
    """The four maps of a NAT or DiNAT (heads 2, 4, 8, 16 of 32) for one image size, undilated and dilated."""
    cases = []
    for stage, dilation in enumerate(dilations):
        side, heads = size >> (stage + 2), 2 << stage
        cases.append(Case((side, side), (7, 7), batch=batch, heads=heads))
        if dilation > 1:
            cases.append(Case((side, side), (7, 7), dilation, batch=batch, heads=heads))
    return cases


CASES = [
    *_stages(224, 128, (8, 4, 2, 1)),
    Case((56, 56), (7, 7), batch=128, rpb=True),
    Case((56, 56), (13, 13), batch=128),
    Case((28, 28), (13, 13), batch=128, heads=4),
    *_stages(512, 16, (16, 8, 4, 2)),
    Case((200, 336), (7, 7), batch=2),
    Case((200, 336), (7, 7), 28, batch=2),
    Case((100, 168), (7, 7), batch=2, heads=4),
    Case((100, 168), (7, 7), 14, batch=2, heads=4),
    Case((200, 336), (13, 13), batch=2),
    Case((32768,), (2048,), heads=1, dim=128),
    Case((32768,), (2048,), stride=256, heads=1, dim=128),
    Case((16, 28, 28), (3, 7, 7), batch=8, heads=4),
    Case((30, 48, 80), (18, 24, 24), heads=24, dim=128),
]
GOALS = [  # those of docs/gpu.md
    Case((56, 56), (7, 7), batch=128),
    Case((56, 56), (7, 7), batch=128, rpb=True),
    Case((56, 56), (7, 7), 8, batch=128),
    Case((28, 28), (7, 7), batch=128, heads=4),
    Case((14, 14), (7, 7), batch=128, heads=8),
    Case((7, 7), (7, 7), batch=128, heads=16),
    Case((200, 336), (7, 7), batch=2),
]
TINY = [
    Case((6, 7), (3, 3), batch=1, heads=1, dim=8),
    Case((6, 7), (3, 3), 2, batch=1, heads=1, dim=8, rpb=True),
    Case((3, 4, 5), (3, 3, 3), batch=1, heads=1, dim=8),
]


def heads_first(x: Tensor) -> Tensor:
    return x.flatten(1, -3).transpose(1, 2)


def axes_of(case: Case, device: str) -> list[Tensor]:
    """``[length, length]`` masks of the axes, for the peers; stride 1 only."""
    masks = []
    for length, kernel in zip(case.shape, case.kernel, strict=True):
        mask = torch.zeros(length, length, dtype=torch.bool)
        masks.append(mask.scatter_(1, windows(length, kernel, case.dilation), True).to(device))
    return masks


def dense_mask(case: Case, device: str) -> Tensor:
    mask = torch.ones(1, 1, dtype=torch.bool, device=device)
    for axis in axes_of(case, device):
        mask = (mask[:, None, :, None] & axis[None, :, None, :]).flatten(2).flatten(0, 1)
    return mask


def flex(case: Case, device: str, compiled: bool) -> Callable[..., Tensor]:
    """flex_attention with a block mask; the mask is arithmetic on a GPU, so that it fuses."""

    def attended(b, h, q_index, kv_index):
        allowed = None
        for axis in reversed(range(len(case.shape))):
            length, kernel, dilation = case.shape[axis], case.kernel[axis], case.dilation
            x, y = q_index % length, kv_index % length
            q_index, kv_index = q_index // length, kv_index // length
            group, p = x % dilation, x // dilation
            n = (length - group + dilation - 1) // dilation
            start = torch.minimum((p - kernel // 2).clamp(min=0), n - kernel)
            j = y // dilation
            here = (y % dilation == group) & (j >= start) & (j < start + kernel)
            allowed = here if allowed is None else allowed & here
        return allowed

    blocks = torch.compile(create_block_mask) if compiled else create_block_mask
    blocks = blocks(attended, None, None, case.tokens, case.tokens, device=device)
    function = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    return lambda q, k, v: function(*map(heads_first, (q, k, v)), block_mask=blocks)


def unfold(case: Case, index: list[Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Gather every neighbor of every query: ``[B, *map, neighbors, heads, d]`` copies of keys and values."""
    rank = len(case.shape)
    where = []
    for axis, positions in enumerate(index):
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = positions.shape
        where.append(positions.view(shape))
    keys, values = (x[(slice(None), *where)].flatten(1 + rank, 2 * rank) for x in (k, v))
    scores = torch.einsum("b...nd,b...knd->b...nk", q * case.dim**-0.5, keys)
    return torch.einsum("b...nk,b...knd->b...nd", scores.softmax(-1), values)


def natten_backends(case: Case, inputs: dict[str, Tensor]) -> dict[str, Callable[..., Tensor]]:
    """NATTEN by each of its backends; those that refuse are left out by `usable`."""
    try:
        import natten
    except ImportError:
        return {}
    function = getattr(natten, f"na{len(case.shape)}d")
    names = ("cutlass-fna", "hopper-fna", "blackwell-fna", "flex-fna")
    return {f"natten {name}": functools.partial(_natten, function, case, name) for name in names}


def _natten(function, case: Case, backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return function(q, k, v, **case.geometry, backend=backend)


def contestants(
    case: Case, inputs: dict[str, Tensor], device: str, compiled: bool = True
) -> dict[str, Callable[..., Tensor]]:
    """Each as a function of q, k, v (and our backends of the table, too); `compiled` includes compiled flex."""
    ours = FUNCTIONS[len(case.shape)]
    functions = {name: functools.partial(_ours, ours, case, name) for name in ("triton", "torch")}
    scores = case.tokens**2 * case.heads * case.batch * inputs["q"].element_size()
    functions["dense"] = lambda q, k, v: F.scaled_dot_product_attention(*map(heads_first, (q, k, v)))
    if case.rpb or case.stride > 1:
        return functions if case.rpb else functions | natten_backends(case, inputs)
    functions |= natten_backends(case, inputs)
    if device == "cuda" and compiled:
        functions["flex compiled"] = flex(case, device, compiled=True)
    if scores * 2 <= DENSE_BYTES:
        functions["flex eager"] = flex(case, device, compiled=False)
    if case.tokens**2 <= DENSE_BYTES:
        mask = dense_mask(case, device)
        functions["dense with mask"] = lambda q, k, v: F.scaled_dot_product_attention(
            *map(heads_first, (q, k, v)), attn_mask=mask
        )
    if 2 * inputs["q"].numel() * prod(case.kernel) * inputs["q"].element_size() <= DENSE_BYTES:
        index = [
            windows(n, k, case.dilation).to(device) for n, k in zip(case.shape, case.kernel, strict=True)
        ]  # fmt: skip
        functions["unfold"] = functools.partial(unfold, case, index)
    return functions


def _ours(function, case: Case, backend: str, q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None = None) -> Tensor:
    return function(q, k, v, **case.geometry, rpb=rpb, backend=backend)


def step_of(function: Callable, name: str, inputs: dict[str, Tensor], backward: bool) -> Callable[[], list[Tensor]]:
    """One call, or one call with gradients of all inputs."""
    if name not in ("triton", "torch", "reference"):
        inputs = {key: x for key, x in inputs.items() if key != "rpb"}
    if not backward:
        return lambda: [function(**inputs)]
    leaves = {key: x.detach().clone().requires_grad_() for key, x in inputs.items()}

    def step() -> list[Tensor]:
        out = function(**leaves)
        return [out, *torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))]

    return step


def check(
    case: Case, functions: dict, inputs: dict[str, Tensor], dtype: str
) -> tuple[dict[str, float], dict[str, str]]:
    """Largest error of output and gradients on the first image, and the reason for each that cannot run."""
    exact = {name: (x if name == "rpb" else x[:1]).float() for name, x in inputs.items()}
    one = {name: x if name == "rpb" else x[:1].contiguous() for name, x in inputs.items()}
    oracle = "reference" if case.tokens**2 * case.heads * 4 <= DENSE_BYTES // 4 else "torch"
    expected = step_of(functools.partial(_ours, FUNCTIONS[len(case.shape)], case, oracle), oracle, exact, True)()
    errors, refused = {}, {}
    for name, function in functions.items():
        try:
            results = step_of(function, name, one, True)()
        except Exception as error:  # a peer may refuse a problem in any way, or run out of memory; ours may not
            if name == "triton":
                raise
            refused[name] = " ".join(str(error).split())[:100]
            continue
        if name == "dense":
            continue
        results[0] = results[0] if results[0].shape == expected[0].shape else results[0].transpose(1, 2)
        errors[name] = max(
            ((got.reshape(want.shape).float() - want).abs().max() / want.abs().max().clamp(min=1)).item()
            for got, want in zip(results, expected, strict=True)
        )
        if not errors[name] <= TOLERANCE[dtype]:
            raise SystemExit(f"{name} is wrong on {case}: error {errors[name]:.1e}; nothing was timed")
    return errors, refused


def _key(case: Case, dtype: str) -> dict:
    """The columns that tell cases apart."""
    return dict(
        shape=case.name, window="x".join(map(str, case.kernel)), dilation=case.dilation, stride=case.stride,
        batch=case.batch, heads=case.heads, dim=case.dim, rpb=case.rpb, dtype=dtype,
    )  # fmt: skip


def rows_of(
    case: Case, dtype: str, device: str, rounds: int, clock: Clock, bandwidth: float, compiled: bool = True
) -> list[dict]:
    """Check one case, time it in both directions, and print its lines."""
    lead = (case.batch, *case.shape, case.heads)
    inputs = {name: torch.randn(*lead, case.dim, device=device).to(DTYPES[dtype]) for name in "qkv"}
    if case.rpb:
        inputs["rpb"] = torch.randn(case.heads, *(2 * k - 1 for k in case.kernel), device=device).to(DTYPES[dtype])
    functions = contestants(case, inputs, device, compiled)
    errors, refused = check(case, functions, inputs, dtype)
    for name, reason in refused.items():
        print(f"  {name} cannot run: {reason}")
        del functions[name]
    floor = 4 * inputs["q"].numel() * inputs["q"].element_size() / bandwidth * 1e3
    rows = []
    for direction in ("forward", "forward+backward"):
        steps = {name: step_of(f, name, inputs, direction != "forward") for name, f in functions.items()}
        memory = {name: clock.peak(step) for name, step in steps.items()}
        for timed, visits in clock.compare(steps, rounds).items():
            times = {name: summary(t) for name, t in visits.items()}
            ours = times["triton"]["median_ms"]
            for name, t in times.items():
                rows.append(
                    _key(case, dtype) | dict(
                        direction=direction, timed=timed, contestant=name, **t,
                        times_ours=round(t["median_ms"] / max(ours, 1e-9), 3),
                        times_floor=round(t["median_ms"] / floor, 3), floor_ms=round(floor, 4),
                        peak_mib=round(memory[name], 1), error=f"{errors.get(name, float('nan')):.1e}",
                    )
                )  # fmt: skip
            peers = {name: t["median_ms"] for name, t in times.items() if name not in ("triton", "dense")}
            best = min(peers, key=peers.__getitem__, default="triton")
            print(
                f"{case.name:>9} k{case.kernel[-1]} d{case.dilation:<2} {direction:<16} {timed:<5} "
                f"ours {ours:8.3f} ms, {ours / floor:6.2f} x floor; best peer {best} {peers.get(best, ours):8.3f} ms, "
                f"{peers.get(best, ours) / ours:.2f} x ours"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", help="a map such as 56x56")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bf16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--goals", action="store_true", help="the cases of docs/gpu.md only")
    parser.add_argument("--resume", action="store_true", help="keep the rows of the file and skip their cases")
    parser.add_argument("--tiny", action="store_true", help="tiny problems in the interpreter, on a CPU")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/na_gpu.csv; with --tiny, nowhere")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --tiny tries the script without one")
    torch.manual_seed(0)
    device = "cpu" if args.tiny else "cuda"
    clock = Clock(device)
    bandwidth = clock.bandwidth()
    print(f"{machine()}; copies at {bandwidth / 1e9:.0f} GB/s")
    described = dict(
        machine=machine(), bandwidth_gbs=round(bandwidth / 1e9), torch=torch.__version__, visionattn=__version__
    )  # fmt: skip
    out = args.out or (None if args.tiny else RESULTS / "na_gpu.csv")
    rows = read_rows(out) if args.resume and out else []
    done = [{name: row[name] for name in _key(CASES[0], "")} for row in rows]
    for number, case in enumerate(TINY if args.tiny else GOALS if args.goals else CASES):
        if args.only and args.only != case.name:
            continue
        for dtype in args.dtype:
            if {name: str(value) for name, value in _key(case, dtype).items()} in done:
                continue
            torch.compiler.reset()
            compiled = number == 0 or not args.goals
            found = rows_of(case, dtype, device, 2 if args.tiny else args.rounds, clock, bandwidth, compiled)
            rows += [row | described for row in found]
            if out:  # after each case, so that an interrupted run keeps what it has
                write_csv(out, rows)


if __name__ == "__main__":
    main()
