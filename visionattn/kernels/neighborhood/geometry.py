"""Which keys a query sees along one axis, and how an axis is cut into tiles of queries that share their keys.

An axis of length ``L`` with dilation ``D`` falls into ``D`` groups, positions ``g, g + D, g + 2D, ...``, that never
see one another. Inside a group of ``n`` positions the neighborhood is an interval; everything here speaks of such
in-group positions. Definitions follow Hassani et al., "Neighborhood Attention Transformer" (arXiv 2204.07143),
"Dilated Neighborhood Attention Transformer" (2209.15001) and "Generalized Neighborhood Attention" (2504.16922).
"""

from dataclasses import dataclass
from functools import lru_cache

__all__ = ["AxisGroups", "AxisPlan", "AxisRun", "axis_groups", "axis_plan", "axis_runs", "axis_windows"]


@dataclass(frozen=True)
class AxisGroups:
    """Dilation groups of equal length on one axis: groups ``first .. first + count - 1``, ``length`` positions each."""

    first: int
    count: int
    length: int


@lru_cache(maxsize=1024)
def axis_groups(length: int, dilation: int) -> tuple[AxisGroups, ...]:
    """The dilation groups of an axis, by length: one entry, or two when the dilation does not divide the axis."""
    short, longer = divmod(length, dilation)
    groups = (AxisGroups(0, longer, short + 1), AxisGroups(longer, dilation - longer, short))
    return tuple(group for group in groups if group.count)


@lru_cache(maxsize=1024)
def axis_windows(n: int, kernel: int, stride: int, causal: bool) -> tuple[tuple[int, int], ...]:
    """For each of ``n`` in-group positions the half-open interval of positions it attends to."""
    windows = []
    for p in range(n):
        block = p // stride * stride  # the queries of one stride block share the window of their leader
        if causal:
            leader = min(block + stride - 1, n - 1)
            windows.append((max(leader - kernel + 1, 0), p + 1))
        else:
            leader = min(block + stride // 2, n - 1)
            start = min(max(leader - kernel // 2, 0), n - kernel)
            windows.append((start, start + kernel))
    return tuple(windows)


@dataclass(frozen=True, eq=False)  # made once each by a cached function, so identity serves as a quick cache key
class AxisRun:
    """Consecutive tiles of one axis that look alike, so that one strided view covers them.

    Tile ``i`` of ``count`` holds the queries ``query + i * step ... + tile - 1`` and needs the keys
    ``key + i * step ... + halo - 1``. Query ``t`` of a tile attends to ``windows[t]``, counted from its first key.
    """

    query: int
    tile: int
    key: int
    halo: int
    count: int
    step: int
    windows: tuple[tuple[int, int], ...]

    @property
    def full(self) -> bool:
        """Whether every query of a tile attends to every key of its halo, so that no mask is needed."""
        return all(window == (0, self.halo) for window in self.windows)


@lru_cache(maxsize=1024)
def axis_runs(n: int, kernel: int, stride: int, causal: bool, tile: int) -> tuple[AxisRun, ...]:
    """Cut an axis of ``n`` positions into tiles of ``tile`` queries (the last may be shorter), alike ones joined."""
    windows = axis_windows(n, kernel, stride, causal)
    runs: list[AxisRun] = []
    for query in range(0, n, tile):
        chunk = windows[query : query + tile]
        key = min(start for start, _ in chunk)
        halo = max(end for _, end in chunk) - key
        relative = tuple((start - key, end - key) for start, end in chunk)
        last = runs[-1] if runs else None
        if last and last.windows == relative and key == last.key + last.count * tile:
            runs[-1] = AxisRun(last.query, last.tile, last.key, halo, last.count + 1, tile, relative)
        else:
            runs.append(AxisRun(query, len(chunk), key, halo, 1, tile, relative))
    return tuple(runs)


@dataclass(frozen=True, eq=False)  # as AxisRun
class AxisPlan:
    """An axis cut into ``count`` tiles with halos of one length at equal distances, so that one view holds them all.

    Tile ``i`` has the queries ``i * tile ...`` and the keys ``i * tile - before ...``, ``halo`` of them. Both may
    reach past the axis: keys that do are masked, queries that do (``padding`` of them) attend to anything.
    ``windows[i][t]`` is the half-open interval of keys of query ``t``, counted from the first key of its tile.
    """

    length: int
    tile: int
    count: int
    before: int
    halo: int
    windows: tuple[tuple[tuple[int, int], ...], ...]
    alike: tuple[tuple[int, int], ...]  # (first, count) of neighboring tiles with equal windows

    @property
    def padding(self) -> int:
        return self.tile * self.count - self.length

    @property
    def keys(self) -> int:
        """Length of the axis with the keys that halos reach past its ends."""
        return (self.count - 1) * self.tile + self.halo


@lru_cache(maxsize=1024)
def axis_plan(n: int, kernel: int, stride: int, causal: bool, tile: int) -> AxisPlan:
    """Cut an axis of ``n`` positions into tiles of ``tile`` queries that all have halos of the same length."""
    windows = axis_windows(n, kernel, stride, causal)
    count = -(-n // tile)
    before = max(p // tile * tile - start for p, (start, _) in enumerate(windows))
    halo = before + max(end - p // tile * tile for p, (_, end) in enumerate(windows))
    relative, alike = [], []
    for i in range(count):
        chunk = windows[i * tile : (i + 1) * tile]
        shift = before - i * tile
        filled = [(start + shift, end + shift) for start, end in chunk] + [(0, halo)] * (tile - len(chunk))
        if relative and relative[-1] == tuple(filled):
            alike[-1] = (alike[-1][0], alike[-1][1] + 1)
        else:
            alike.append((i, 1))
        relative.append(tuple(filled))
    return AxisPlan(n, tile, count, before, halo, tuple(relative), tuple(alike))
