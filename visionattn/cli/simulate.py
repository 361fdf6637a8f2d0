"""Count the tiles that neighborhood attention visits, and compute bounds of its speed-up over dense attention.

No kernel is run. Lists take one value for all axes, or one per axis. The size of a tile is the product of its sides:
128 queries for --q-tile 16 8. Performance model: generalized neighborhood attention, arXiv 2504.16922.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from visionattn.errors import ConfigError
from visionattn.kernels.simulator.search import StrideSearch, search_strides, search_tiles
from visionattn.kernels.simulator.simulate import MASK_OVERHEAD, Simulation, simulate


def _flag(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``visionattn simulate``."""

    def numbers(name: str, text: str, **options: Any) -> None:
        parser.add_argument(name, type=int, nargs="+", metavar="N", help=text, **options)

    numbers("--shape", "size of the feature map, 1 to 3 axes", required=True)
    numbers("--window", "window size", required=True)
    numbers("--stride", "number of queries that share a window (default: 1)", default=[1])
    numbers("--dilation", "dilation of the window (default: 1)", default=[1])
    parser.add_argument(
        "--causal",
        type=_flag,
        nargs="*",
        default=[False],
        metavar="BOOL",
        help="causal attention per axis; without a value, on all axes",
    )
    numbers("--q-tile", "query tile")
    numbers("--kv-tile", "key tile")
    parser.add_argument(
        "--dynamic",
        action="store_true",
        help="start key tiles at the first key needed instead of at multiples of the tile",
    )
    parser.add_argument(
        "--mask-overhead",
        type=float,
        default=MASK_OVERHEAD,
        metavar="X",
        help=f"relative extra time of a masked tile, for the achievable speed-up (default: {MASK_OVERHEAD})",
    )
    parser.add_argument(
        "--search",
        choices=("stride", "tile"),
        help="search the strides that are fully block-sparse, or the tile shapes with the best bound",
    )
    numbers("--q-sizes", "query tile sizes for --search tile (default: 64 128 256)")
    numbers("--kv-sizes", "key tile sizes for --search tile (default: 64 128)")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the visited tiles of the (best) case to a .png, .pdf or .svg file",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def run(args: argparse.Namespace) -> int:
    """Count tiles, search, print and draw, and return 0."""
    _check(args)
    try:
        case, strides, found = _compute(args)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    cases = ([] if case is None else [case]) + found
    best = max(found or cases, key=lambda result: result.achievable_speedup(args.mask_overhead))
    if args.plot is not None:
        from visionattn.kernels.simulator.plot import draw

        draw(best, args.plot, args.mask_overhead)
    if args.json:
        print(json.dumps(_record(args, case, strides, found), indent=2))
        return 0
    _print(args, case, strides, found)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.search != "tile":
        for name in ("q_sizes", "kv_sizes"):
            if getattr(args, name) is not None:
                raise ConfigError(f"`{name}` requires `search` tile; otherwise set `q_tile` and `kv_tile`")
        for name in ("q_tile", "kv_tile"):
            if getattr(args, name) is None:
                raise ConfigError(f"`{name}` is required unless `search` is tile")
    elif (args.q_tile is None) != (args.kv_tile is None):
        raise ConfigError("`q_tile` and `kv_tile` must be set together")
    if not (math.isfinite(args.mask_overhead) and args.mask_overhead >= 0):
        raise ConfigError(f"`mask_overhead` must be a finite number of at least 0, got {args.mask_overhead}")
    if args.plot is not None and args.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"`plot` must end in .png, .pdf or .svg, got {args.plot}")


def _compute(args: argparse.Namespace) -> tuple[Simulation | None, StrideSearch | None, list[Simulation]]:
    """Return the given case (None without tiles), the result of a stride search (or None), and the cases found."""
    shape, window, stride, dilation = (tuple(x) for x in (args.shape, args.window, args.stride, args.dilation))
    causal = tuple(args.causal) or (True,)
    case = None
    if args.q_tile is not None:
        tiles = {"q_tile": tuple(args.q_tile), "kv_tile": tuple(args.kv_tile), "dynamic": args.dynamic}
        case = simulate(shape, window, stride, dilation, causal, **tiles)
    if args.search == "tile":
        sizes = {"q_sizes": args.q_sizes, "kv_sizes": args.kv_sizes}
        sizes = {name: tuple(value) for name, value in sizes.items() if value is not None}
        return case, None, list(search_tiles(shape, window, stride, dilation, causal, dynamic=args.dynamic, **sizes))
    if args.search == "stride":
        search = search_strides(shape, window, dilation, causal, **tiles)
        return case, search, [simulate(shape, window, search.smallest or search.best, dilation, causal, **tiles)]
    return case, None, []


def _record(
    args: argparse.Namespace, case: Simulation | None, strides: StrideSearch | None, found: list[Simulation]
) -> dict[str, Any]:
    record: dict[str, Any] = {"case": None if case is None else _counts(case, args.mask_overhead)}
    if args.search is not None:
        record["search"] = {"for": args.search, "found": [_counts(result, args.mask_overhead) for result in found]}
    if strides is not None:
        record["search"] |= dataclasses.asdict(strides) | {"smallest": strides.smallest}
    if args.plot is not None:
        record["plot"] = str(args.plot)
    return record


def _counts(case: Simulation, mask_overhead: float) -> dict[str, Any]:
    return {
        **dataclasses.asdict(case.pattern),
        "q_tile": case.tiling.query,
        "kv_tile": case.tiling.key,
        "dynamic": case.tiling.dynamic,
        "dense_tiles": case.dense_tiles,
        "flat_dense_tiles": case.flat_dense_tiles,
        "visited_tiles": case.visited_tiles,
        "full_tiles": case.full_tiles,
        "partial_tiles": case.partial_tiles,
        "attended_pairs": case.attended_pairs,
        "density": case.density,
        "flop_bound": case.flop_bound,
        "speedup_bound": case.speedup_bound,
        "flat_speedup_bound": case.flat_speedup_bound,
        "mask_overhead": mask_overhead,
        "achievable_speedup": case.achievable_speedup(mask_overhead),
        "fully_block_sparse": case.fully_block_sparse,
    }


def _print(
    args: argparse.Namespace, case: Simulation | None, strides: StrideSearch | None, found: list[Simulation]
) -> None:
    from rich.console import Console

    from visionattn.kernels.simulator.plot import by, pattern_text, tiling_text

    console = Console(highlight=False, soft_wrap=True)
    head = pattern_text(found[0]) if case is None else f"{pattern_text(case, stride=False)}; {tiling_text(case.tiling)}"
    console.print(head)
    if strides is not None:
        console.print(_stride_table(case, strides))
        if strides.smallest is None:
            console.print("No stride is fully block-sparse; the stride with the fewest visited tiles is shown below.")
        columns = {f"stride {by(case.pattern.stride)}\n(given)": case}
        columns[f"stride {by(found[0].pattern.stride)}\n(found)"] = found[0]
        console.print(_case_table(columns, args.mask_overhead))
    elif case is not None:
        console.print(_case_table({f"stride {by(case.pattern.stride)}": case}, args.mask_overhead))
    if args.search == "tile":
        console.print(_tile_table(found, args.mask_overhead))
    if args.plot is not None:
        console.print(f"written: {args.plot}")


def _case_table(columns: dict[str, Simulation], mask_overhead: float) -> Any:
    from rich.table import Table

    table = Table("", *columns)
    for column in table.columns[1:]:
        column.justify = "right"

    def row(name: str, text: Any) -> None:
        table.add_row(name, *(text(case) for case in columns.values()))

    row("tiles of dense attention", lambda case: f"{case.dense_tiles:,}")
    row("tiles visited", lambda case: f"{case.visited_tiles:,}")
    row("  full, no mask", lambda case: f"{case.full_tiles:,}")
    row("  partial, masked", lambda case: f"{case.partial_tiles:,}")
    row("computed scores not masked", lambda case: f"{case.density:.1%}")
    row("speed-up bound (FLOPs)", lambda case: f"{case.flop_bound:.2f}x")
    row("speed-up bound (tiles)", lambda case: f"{case.speedup_bound:.2f}x")
    if any(case.flat_dense_tiles != case.dense_tiles for case in columns.values()):
        row("  over dense attention on the flat map", lambda case: f"{case.flat_speedup_bound:.2f}x")
    row(
        f"speed-up with mask overhead {mask_overhead:.0%}",
        lambda case: f"{case.achievable_speedup(mask_overhead):.2f}x",
    )
    row("fully block-sparse", lambda case: "yes" if case.fully_block_sparse else "no")
    return table


def _stride_table(case: Simulation, strides: StrideSearch) -> Any:
    from rich.table import Table

    table = Table("axis", "fully block-sparse strides", "fewest tiles")
    for axis, (found, best) in enumerate(zip(strides.block_sparse, strides.best, strict=True)):
        listed = [str(stride) for stride in found]
        if len(listed) > 10:
            listed = [*listed[:6], "...", listed[-1], f"({len(listed)} in total)"]
        table.add_row(str(axis), " ".join(listed) or _why_none(case, axis), str(best))
    return table


def _why_none(case: Simulation, axis: int) -> str:
    """Return the reason why no stride makes an axis fully block-sparse."""
    window, tile = case.pattern.window[axis], case.tiling.key[axis]
    if case.pattern.causal[axis] and case.tiling.query[axis] > 1:
        return "none: on a causal axis, the queries of a tile have different last keys"
    if window % tile:
        return f"none: the window {window} is not a multiple of the key tile {tile}"
    return "none: no stride aligns all windows with key tiles"


def _tile_table(found: list[Simulation], mask_overhead: float) -> Any:
    from rich.table import Table

    from visionattn.kernels.simulator.plot import by

    names = ("query tile", "key tile", "visited", "full", "bound", "achievable", "block-sparse")
    table = Table(*names, title="best tile shapes, compared to dense attention on the flat map", title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for case in found:
        table.add_row(
            by(case.tiling.query),
            by(case.tiling.key),
            f"{case.visited_tiles:,}",
            f"{case.full_tiles / case.visited_tiles:.0%}",
            f"{case.flat_speedup_bound:.2f}x",
            f"{case.achievable_speedup(mask_overhead):.2f}x",
            "yes" if case.fully_block_sparse else "no",
        )
    return table
