"""The backends of an attention operator: check, time, list of tiles."""

import argparse
import statistics
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from visionattn.cli.benchmark.measure import alternate
from visionattn.errors import BackendError, ConfigError
from visionattn.kernels import backends, na1d, na2d, na3d
from visionattn.kernels.neighborhood.flops import attended_pairs
from visionattn.kernels.neighborhood.triton.image_tiles import image_tiles, loops_over_images
from visionattn.kernels.neighborhood.triton.tiles import KERNELS, Geometry, Tile, legal_tiles, shared_bytes

OPERATORS = {"na1d": na1d, "na2d": na2d, "na3d": na3d}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2, "fp64": 1e-10}
DENSE_BYTES = 1 << 30  # scores of the reference; larger problems are checked against the torch backend


def add_arguments(parser: Any) -> None:
    """Add the arguments that only operators have."""

    def numbers(name: str, text: str, **options: Any) -> None:
        parser.add_argument(name, type=int, nargs="+", metavar="N", help=text, **options)

    parser.add_argument("op", nargs="?", choices=OPERATORS, help="operator")
    numbers("--shape", "size of the feature map (required)")
    numbers("--kernel-size", "window size (required)")
    numbers("--stride", "number of queries that share a window (default: 1)", default=[1])
    numbers("--dilation", "dilation of the window (default: 1)", default=[1])
    parser.add_argument("--causal", action="store_true", help="causal attention on all axes")
    parser.add_argument("--heads", type=int, default=2, help="number of heads (default: 2)")
    parser.add_argument("--heads-kv", type=int, help="number of heads of keys and values (default: --heads)")
    parser.add_argument("--dim", type=int, default=32, help="head dimension (default: 32)")
    parser.add_argument("--rpb", action="store_true", help="add a relative position bias")
    parser.add_argument(
        "--backends", nargs="+", metavar="NAME", help="backends to time (default: all available except reference)"
    )
    parser.add_argument("--backward", action="store_true", help="time forward and backward pass together")
    parser.add_argument("--dry-run", action="store_true", help="list tile shapes without running kernels")


def run(args: argparse.Namespace) -> int:
    """Check and time the backends, or list tile shapes, and return 0."""
    from rich.console import Console

    rank = int(args.op[2])
    for name in ("shape", "kernel_size"):
        if getattr(args, name) is None:
            raise ConfigError(f"{args.op} requires `{name}`")
    for name in ("shape", "kernel_size", "stride", "dilation"):
        values = getattr(args, name)
        if len(values) not in ((1, rank) if name != "shape" else (rank,)):
            raise ConfigError(f"`{name}` must have one value per axis ({rank} for {args.op}), got {len(values)}")
        setattr(args, name, tuple(values) if len(values) == rank else tuple(values) * rank)
    for name in ("heads", "dim"):
        if getattr(args, name) < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {getattr(args, name)}")
    try:  # an empty batch runs the argument checks of the operator
        nothing = _inputs(args, 0, torch.device("cpu"))
        OPERATORS[args.op](**nothing, **_geometry(args), backend="torch")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    console = Console(highlight=False, soft_wrap=True)
    if args.dry_run:
        _list_tiles(args, console)
    else:
        _time(args, console)
    return 0


def _geometry(args: argparse.Namespace) -> dict[str, Any]:
    return dict(
        kernel_size=args.kernel_size, stride=args.stride, dilation=args.dilation, is_causal=args.causal
    )  # fmt: skip


def _list_tiles(args: argparse.Namespace, console: Any) -> None:
    from rich.table import Table

    dtype = TYPES[args.dtype]
    if dtype == torch.float64 or args.dim > backends.TRITON_HEAD_DIM:
        raise ConfigError(
            f"the Triton kernels support fp32, bf16 and fp16 with `dim` up to {backends.TRITON_HEAD_DIM}, "
            f"got {args.dtype} with `dim` {args.dim}"
        )
    rank = len(args.shape)
    geometry = Geometry.of(args.shape, args.kernel_size, args.stride, args.dilation, (args.causal,) * rank)
    attended = _attended(geometry)
    for kernel in KERNELS if args.rpb else KERNELS[:-1]:
        held, walked = ("keys", "queries") if kernel == "key" else ("queries", "keys")
        title = "forward" if kernel == "forward" else f"backward: {kernel}"
        tiles, loops = _tiles(args, geometry, kernel, dtype.itemsize)
        if not tiles:  # the kernel is not used
            continue
        title += ", programs loop over images" if loops else ""
        columns = ("tile", held, "halo", walked, "step", "wasted", "KiB", "warps", "stages", "")
        table = Table(*columns, title=title, title_justify="left", padding=(0, 0, 0, 1))
        for index, tile in enumerate(tiles):
            shape, extent = tile.shape[:rank], tile.halo[:rank]
            computed = tile.block * -(-prod(extent) // tile.block)
            block = prod(extent) if loops else tile.block
            shared = shared_bytes(tile.shape, block, args.dim, args.dim, dtype.itemsize, kernel, tile.stages)
            table.add_row(
                "x".join(map(str, shape)), str(tile.size), "x".join(map(str, extent)), str(prod(extent)),
                str(tile.block), f"{max(1 - attended / computed, 0):.0%}", f"{shared / 1024:.0f}",
                str(tile.warps), str(tile.stages), "default" if index == 0 else "",
            )  # fmt: skip
        console.print(table)
    console.print("step: positions of the halo per inner step; wasted: fraction of computed scores that are masked;")
    console.print("KiB: estimated shared memory.")


def _tiles(args: argparse.Namespace, geometry: Geometry, kernel: str, itemsize: int) -> tuple[Sequence[Tile], bool]:
    """Return the tiles of a kernel, best first, and whether its programs loop over images."""
    scale, backward, heads_kv = args.dim**-0.5, kernel != "forward", args.heads_kv or args.heads
    if not loops_over_images(
        geometry, args.dim, args.dim, itemsize, args.heads, heads_kv, 0, scale, args.rpb, backward
    ):  # fmt: skip
        return legal_tiles(geometry, kernel, args.dim, args.dim, itemsize), False
    return (() if kernel == "bias" else image_tiles(geometry, kernel, args.dim, args.dim, args.rpb)), True


def _attended(geometry: Geometry) -> float:
    """Return the mean number of keys per query."""
    g = geometry
    return attended_pairs(g.lengths, g.kernel, g.stride, g.dilation, g.causal) / prod(g.lengths)


def _chosen(args: argparse.Namespace, device: torch.device, console: Any) -> list[str]:
    """Return the backends to time, and print why others cannot run."""
    choices = backends.explain(args.op, device, TYPES[args.dtype], head_dim=args.dim)
    if args.backends:
        return [backends.select(args.op, device, TYPES[args.dtype], name, head_dim=args.dim) for name in args.backends]
    chosen = []
    for choice in choices:
        if not choice.can_run:
            console.print(f"{choice.backend}: cannot run: {choice.reason}")
        elif choice.backend != "reference" and not (choice.backend == "triton" and device.type != "cuda"):
            chosen.append(choice.backend)
    if not chosen:
        raise BackendError(f"{args.op}: no backend can run on {device} with {args.dtype}")
    return chosen


def _inputs(args: argparse.Namespace, batch: int, device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    dtype, kv = TYPES[args.dtype], args.heads_kv or args.heads

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype).requires_grad_(args.backward)

    inputs = dict(query=draw(batch, *args.shape, args.heads, args.dim))
    inputs |= {name: draw(batch, *args.shape, kv, args.dim) for name in ("key", "value")}
    if args.rpb:
        inputs["rpb"] = draw(args.heads, *(2 * k - 1 for k in args.kernel_size))
    return inputs


def _step(args: argparse.Namespace, inputs: dict[str, Tensor], backend: str) -> Callable[[], list[Tensor]]:
    def step() -> list[Tensor]:
        out = OPERATORS[args.op](**inputs, **_geometry(args), backend=backend)
        if not args.backward:
            return [out]
        return [out, *torch.autograd.grad(out, list(inputs.values()), torch.ones_like(out))]

    return step


def _errors(args: argparse.Namespace, chosen: list[str], device: torch.device) -> tuple[str, dict[str, float]]:
    """Return the backend compared to, and the maximum error of each backend relative to the largest output value."""
    inputs = _inputs(args, 1, device)
    oracle = "reference" if prod(args.shape) ** 2 * args.heads * 4 <= DENSE_BYTES else "torch"
    exact = {name: x.detach().to(torch.promote_types(x.dtype, torch.float32)) for name, x in inputs.items()}
    exact = {name: x.requires_grad_(args.backward) for name, x in exact.items()}
    expected, errors = _step(args, exact, oracle)(), {}
    for backend in chosen:
        results = _step(args, inputs, backend)()
        errors[backend] = max(
            ((got - want).abs().max() / want.abs().max().clamp(min=1)).item()
            for got, want in zip(results, expected, strict=True)
        )
        if not errors[backend] <= TOLERANCE[args.dtype]:
            raise BackendError(
                f"backend {backend!r} differs from {oracle!r} by {errors[backend]:.1e}; no backend was timed"
            )
    return oracle, errors


def _time(args: argparse.Namespace, console: Any) -> None:
    from rich.table import Table

    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    chosen = _chosen(args, device, console)
    oracle, errors = _errors(args, chosen, device)
    steps = {name: _step(args, _inputs(args, args.batch, device), name) for name in chosen}
    times = alternate(steps, device, args.rounds)
    best = min(statistics.median(values) for values in times.values())
    direction = "forward and backward" if args.backward else "forward"
    table = Table("backend", "median ms", "quartiles ms", "relative to best", f"error vs. {oracle}", title=direction)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        table.add_row(name, f"{median:.3f}", f"{low:.3f} {high:.3f}", f"{median / best:.2f}", f"{errors[name]:.1e}")
    console.print(table)
