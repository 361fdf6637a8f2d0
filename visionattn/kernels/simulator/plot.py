"""Plot of ``visionattn simulate``: key tiles that are skipped, visited with a mask, or visited without a mask."""

from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import ConfigError, require
from visionattn.kernels.simulator.simulate import (
    FULL,
    PARTIAL,
    SKIPPED,
    AxisTiles,
    Simulation,
    Tiling,
    axis_tiles,
    tile_map,
)

__all__ = ["axis_states", "by", "draw", "pattern_text", "tiling_text"]

COLORS = {SKIPPED: "#e8ebee", PARTIAL: "#f0a030", FULL: "#2a62a8"}
QUERIES = "#d6203a"
LABELS = {SKIPPED: "skipped", PARTIAL: "partial: needs a mask", FULL: "full: no mask"}
MOST = 1024  # maximum number of rows or columns in a panel


def by(values: tuple[int, ...]) -> str:
    """Format ``(16, 8)`` as ``16x8``."""
    return "x".join(map(str, values))


def pattern_text(case: Simulation, stride: bool = True) -> str:
    """Describe the attention pattern of a case on one line."""
    p = case.pattern
    text = f"map {by(p.shape)}, window {by(p.window)}" + (f", stride {by(p.stride)}" if stride else "")
    if any(d > 1 for d in p.dilation):
        text += f", dilation {by(p.dilation)}"
    if all(p.causal):
        text += ", causal"
    elif any(p.causal):
        text += ", causal on axis " + " and ".join(str(axis) for axis, causal in enumerate(p.causal) if causal)
    return text


def tiling_text(tiling: Tiling) -> str:
    """Describe the tiles of a case on one line."""
    return f"query tile {by(tiling.query)}, {'dynamic ' if tiling.dynamic else ''}key tile {by(tiling.key)}"


def axis_states(case: Simulation, axis: int, rows: np.ndarray, group: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return the state of the key tile of each key, for query tiles of one axis.

    Args:
        rows: query tiles, as indices into the result of `visionattn.kernels.simulator.simulate.axis_tiles`.
        group: dilation group of each key.
        key: position of each key in its group.

    Returns:
        ``[rows, keys]``, uint8: `SKIPPED`, `PARTIAL` or `FULL`.
    """
    tiles, size = axis_tiles(case, axis), case.tiling.key[axis]
    start, end, shared_start, shared_end, origin, own = (
        x[rows, None] for x in (tiles.start, tiles.end, tiles.shared_start, tiles.shared_end, tiles.origin, tiles.group)
    )
    index = (key - origin) // size
    visited = (group == own) & (index >= (start - origin) // size) & (index < -((origin - end) // size))
    full = (index >= -((origin - shared_start) // size)) & (index < (shared_end - origin) // size)
    return visited.astype(np.uint8) + (visited & full)


def draw(case: Simulation, path: Path, mask_overhead: float) -> None:
    """Draw the tiles of a case to an image file.

    One panel shows all query tiles against all key tiles; if key tiles have no common grid (dynamic tiles) or are too
    many, there is one panel per axis instead. The last panel shows the tiles that the middle query tile visits.

    Args:
        case: the simulated case.
        path: .png, .pdf or .svg file.
        mask_overhead: relative extra time of a masked tile, for the title.

    Raises:
        ConfigError: the file cannot be written.
    """
    figure_module = require("matplotlib.figure")  # without pyplot, which has global state
    patch = require("matplotlib.patches").Patch
    rank = len(case.pattern.shape)
    by_axis = case.tiling.dynamic or max(case.query_tiles, case.key_tiles) > MOST
    panels = (rank if by_axis else 1) + 1
    rows, columns = (2, 2) if panels == 4 else (1, panels)
    figure = figure_module.Figure(figsize=(1 + 5.5 * columns, 1.2 + 6 * rows), dpi=150, layout="constrained")
    figure.suptitle(_title(case, mask_overhead), fontsize=11)
    axes = figure.subplots(rows, columns).ravel()
    if by_axis:
        for axis in range(rank):
            _draw_axis(axes[axis], case, axis)
    else:
        _draw_map(axes[0], case)
    (_draw_zoom if rank == 1 else _draw_place)(axes[-1], case)
    handles = [
        patch(facecolor=COLORS[state], edgecolor="0.5", label=LABELS[state]) for state in (FULL, PARTIAL, SKIPPED)
    ]
    if rank > 1:
        handles.append(patch(facecolor="none", edgecolor=QUERIES, linewidth=2, label="queries of the tile"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"`plot` {path}: cannot be written ({error.strerror or error})") from error


def _title(case: Simulation, mask_overhead: float) -> str:
    share = f"{case.visited_tiles:,} of {case.dense_tiles:,} tiles visited, {case.full_tiles:,} of them full"
    speed = f"bound {case.speedup_bound:.2f}x (FLOPs: {case.flop_bound:.2f}x)"
    if case.fully_block_sparse:
        speed += "; fully block-sparse"
    else:
        speed += f"; {case.achievable_speedup(mask_overhead):.2f}x with mask overhead {mask_overhead:.0%}"
    return f"{pattern_text(case)}; {tiling_text(case.tiling)}\n{share}\nspeed-up over dense attention: {speed}"


def _image(panel: Any, states: np.ndarray, extent: tuple[float, float, float, float], aspect: str) -> None:
    colors = require("matplotlib.colors")
    palette = np.array([[round(255 * x) for x in colors.to_rgb(COLORS[state])] for state in (SKIPPED, PARTIAL, FULL)])
    for axis in (0, 1):  # at least the resolution of the panel: downsampling averages and drops nothing
        states = np.repeat(states, -(-MOST // states.shape[axis]), axis=axis)
    panel.imshow(palette.astype(np.uint8)[states], extent=extent, aspect=aspect, interpolation="antialiased")
    for locator in (panel.xaxis.get_major_locator(), panel.yaxis.get_major_locator()):
        locator.set_params(integer=True)


def _draw_map(panel: Any, case: Simulation) -> None:
    states = tile_map(case)
    rows, columns = states.shape
    _image(panel, states, (0, columns, rows, 0), "auto")
    flat = len(case.pattern.shape) > 1
    for name, set_label, counts in (
        ("query", panel.set_ylabel, [axis.query_tiles for axis in case.axes]),
        ("key", panel.set_xlabel, [axis.key_tiles for axis in case.axes]),
    ):
        set_label(f"{name} tile" + (f", {by(tuple(counts))} tiles in row-major order" if flat else ""))
    panel.set_title("all query tiles", fontsize=10)


def _sample(count: int) -> np.ndarray:
    return np.arange(count) if count <= MOST else np.linspace(0, count - 1, MOST).astype(int)


def _in_groups(case: Simulation, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the dilation group and the position in the group of each position of an axis, sorted by group."""
    length, dilation = case.pattern.shape[axis], case.pattern.dilation[axis]
    order = np.argsort(np.arange(length) % dilation, kind="stable")
    return order % dilation, order // dilation


def _draw_axis(panel: Any, case: Simulation, axis: int) -> None:
    group, key = _in_groups(case, axis)
    count, length = case.axes[axis].query_tiles, len(key)
    columns = _sample(length)
    _image(panel, axis_states(case, axis, _sample(count), group[columns], key[columns]), (0, length, count, 0), "auto")
    grouped = " (by dilation group)" if case.pattern.dilation[axis] > 1 else ""
    panel.set_xlabel(f"key position on axis {axis}{grouped}")
    panel.set_ylabel(f"query tile on axis {axis}")
    rank = len(case.pattern.shape)
    panel.set_title(f"axis {axis}" + ("; a tile is full if it is full on every axis" if rank > 1 else ""), fontsize=10)


def _middle(case: Simulation, axis: int) -> tuple[AxisTiles, int]:
    """Return the tiles of an axis, and the index of the middle tile of the middle dilation group."""
    tiles = axis_tiles(case, axis)
    own = np.flatnonzero(tiles.group == case.pattern.dilation[axis] // 2)
    return tiles, int(own[len(own) // 2])


def _edges(tiles: AxisTiles, row: int, size: int) -> np.ndarray:
    """Return the borders of the key tiles that a query tile visits, as positions in the group."""
    start, end, origin = (int(x[row]) for x in (tiles.start, tiles.end, tiles.origin))
    first, last = (start - origin) // size, -((origin - end) // size)
    return origin + size * np.arange(first, last + 1)


def _draw_zoom(panel: Any, case: Simulation) -> None:
    """Draw the middle query tiles of a 1-D map with their keys."""
    tiles, middle = _middle(case, 0)
    size, dilation = case.tiling.key[0], case.pattern.dilation[0]
    own = np.flatnonzero(tiles.group == tiles.group[middle])
    rows = own[(own >= middle - 6) & (own <= middle + 6)]
    n = len(range(int(tiles.group[middle]), case.pattern.shape[0], dilation))
    first = max(int(tiles.start[rows].min()) // size * size - size, 0)
    last = min((int(tiles.end[rows].max()) // size + 2) * size, n)
    keys = np.unique(np.linspace(first, last - 1, MOST).astype(int))
    states = axis_states(case, 0, rows, np.full_like(keys, tiles.group[middle]), keys)
    top = int(rows[0])
    _image(panel, states, (first, last, top + len(rows), top), "auto")
    for i, row in enumerate(rows):
        edges = _edges(tiles, row, size)
        if len(edges) <= 64:
            panel.vlines(np.minimum(edges, n), top + i, top + i + 1, color="white", linewidth=0.6)
    for y in range(top, top + len(rows) + 1):
        panel.axhline(y, color="white", linewidth=1.5)
    panel.set_xlim(first, last)
    group = f" of dilation group {tiles.group[middle]}" if dilation > 1 else ""
    panel.set_xlabel("key position" + (" in the group" if group else ""))
    panel.set_ylabel("query tile")
    panel.set_title(f"middle query tiles{group}", fontsize=10)


def _draw_place(panel: Any, case: Simulation) -> None:
    """Draw the key tiles that the middle query tile visits on the map (for 3-D, on its middle slice)."""
    rectangle = require("matplotlib.patches").Rectangle
    shape, dilation, rank = case.pattern.shape, case.pattern.dilation, len(case.pattern.shape)
    states, queries, edges, ranges, place = [], [], [], [], ""
    for axis, (length, d) in enumerate(zip(shape, dilation, strict=True)):
        tiles, row = _middle(case, axis)
        group, first = int(tiles.group[row]), int(tiles.query[row])
        own = group + np.arange(first, min(first + case.tiling.query[axis], len(range(group, length, d)))) * d
        borders = np.minimum(group + _edges(tiles, row, case.tiling.key[axis]) * d, length)
        start, stop = min(borders[0], own[0]), max(borders[-1], own[-1] + 1)
        start, stop = (
            max(2 * start - stop, 0),
            min(2 * stop - start, length),
        )  # with a margin of the same size on both sides
        positions = start + _sample(int(stop - start))
        if axis < rank - 2:
            positions = own[len(own) // 2 :][:1]
            place = f", slice {positions[0]} of axis {axis}"
        states.append(axis_states(case, axis, np.array([row]), positions % d, positions // d)[0])
        queries.append(own)
        edges.append(borders)
        ranges.append((start, stop))
    seen, full = (np.ones((1, 1), dtype=np.uint8) for _ in range(2))
    for axis, state in enumerate(states):
        line = state[None, :] if axis == rank - 1 else state[:, None]
        seen, full = np.kron(seen, (line > SKIPPED).astype(np.uint8)), np.kron(full, (line == FULL).astype(np.uint8))
    _image(panel, seen + full, (*ranges[-1], *ranges[-2][::-1]), "equal")
    (rows, columns), (across, down) = queries[-2:], edges[-2:]
    if dilation[-1] == dilation[-2] == 1:
        box = (columns[0], rows[0]), len(columns), len(rows)
        panel.add_patch(rectangle(*box, fill=False, edgecolor=QUERIES, linewidth=2, zorder=3))
        if max(len(across), len(down)) <= 64:
            panel.hlines(across, down[0], down[-1], color="white", linewidth=0.6)
            panel.vlines(down, across[0], across[-1], color="white", linewidth=0.6)
    else:
        for y in rows:
            for x in columns:
                panel.add_patch(rectangle((x, y), 1, 1, fill=False, edgecolor=QUERIES, linewidth=1))
    panel.set_xlabel(f"position on axis {rank - 1}")
    panel.set_ylabel(f"position on axis {rank - 2}")
    panel.set_title(f"middle query tile and its keys on the map{place}", fontsize=10)
