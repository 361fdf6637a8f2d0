"""Analytical model of the speed-up of tiled neighborhood attention over dense attention.

Attention kernels process a tile of queries with one tile of keys after another. Sparse attention saves time only by
skipping key tiles, and needs masks in those it uses partially. This model counts both exactly, without running a
kernel. It follows "Generalized Neighborhood Attention" (GNA, Hassani et al., arXiv 2504.16922): the pattern is its
definition of GNA (window, stride, dilation, causal axes), the counts are those of its analytical tool NATTENSim
(multi-dimensional tiles, static or dynamic key tiling, "perfectly block-sparse" cases).

Axes are independent: the keys of a box of queries form a box, so a count on the map is the product of the counts on its
axes. With dilation an axis consists of groups without attention between them, which are tiled separately.

    >>> case = simulate((256, 256), 80, 16, q_tile=(16, 8), kv_tile=(16, 8))
    >>> case.visited_tiles, case.dense_tiles, case.speedup_bound, case.fully_block_sparse
    (25600, 262144, 10.24, True)
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visionattn.kernels.neighborhood.geometry import axis_groups

__all__ = [
    "FULL",
    "MASK_OVERHEAD",
    "PARTIAL",
    "SKIPPED",
    "AxisCounts",
    "AxisTiles",
    "Pattern",
    "Simulation",
    "Tiling",
    "axis_counts",
    "axis_tiles",
    "integers",
    "make_pattern",
    "simulate",
    "tile_map",
]

SKIPPED, PARTIAL, FULL = 0, 1, 2

MASK_OVERHEAD = 0.5
"""Relative extra time of a masked tile. The published timings of NATTEN on H100 and B200, strided compared to not
strided, correspond to 0.37 to 0.66, given the tiles visited by both; these kernels mask either all tiles or none.
"""


@dataclass(frozen=True)
class Pattern:
    """The attention pattern, one entry per axis, as in `kernels.na1d`, `na2d` and `na3d`."""

    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[bool, ...]

    @property
    def axes(self) -> tuple[tuple[int, int, int, int, bool], ...]:
        """Length, window, stride, dilation and causal of each axis."""
        return tuple(zip(self.shape, self.window, self.stride, self.dilation, self.causal, strict=True))


@dataclass(frozen=True)
class Tiling:
    """Tile sizes of queries and keys, one entry per axis.

    Static key tiles start at multiples of the tile size. Dynamic key tiles start at the first key that a query of the
    query tile attends to.
    """

    query: tuple[int, ...]
    key: tuple[int, ...]
    dynamic: bool = False


@dataclass(frozen=True)
class AxisCounts:
    """Sums over the query tiles of one axis and all dilation groups.

    Attributes:
        query_tiles: number of query tiles.
        key_tiles: number of key tiles of a static tiling.
        visited: (query tile, key tile) pairs with at least one attended pair of query and key.
        full: visited pairs of complete tiles in which every query attends to every key.
        attended: attended (query, key) pairs of positions.
    """

    query_tiles: int
    key_tiles: int
    visited: int
    full: int
    attended: int


@dataclass(frozen=True)
class Simulation:
    """Counts of a case and derived quantities."""

    pattern: Pattern
    tiling: Tiling
    axes: tuple[AxisCounts, ...]

    @property
    def query_tiles(self) -> int:
        """Number of query tiles of the map."""
        return math.prod(axis.query_tiles for axis in self.axes)

    @property
    def key_tiles(self) -> int:
        """Number of key tiles of the map with static tiling."""
        return math.prod(axis.key_tiles for axis in self.axes)

    @property
    def dense_tiles(self) -> int:
        """Pairs of tiles visited by dense attention on the same map with these tiles, without dilation groups."""
        tiles = (
            *zip(self.pattern.shape, self.tiling.query, strict=True),
            *zip(self.pattern.shape, self.tiling.key, strict=True),
        )
        return math.prod(-(-length // tile) for length, tile in tiles)

    @property
    def flat_dense_tiles(self) -> int:
        """Pairs of tiles visited by dense attention on the flattened map.

        Fewer than `dense_tiles` if tiles do not divide the axes, because these have partial tiles at every border.
        """
        size = math.prod(self.pattern.shape)
        return -(-size // math.prod(self.tiling.query)) * -(-size // math.prod(self.tiling.key))

    @property
    def visited_tiles(self) -> int:
        """(query tile, key tile) pairs that are computed."""
        return math.prod(axis.visited for axis in self.axes)

    @property
    def full_tiles(self) -> int:
        """Visited tiles that need no mask."""
        return math.prod(axis.full for axis in self.axes)

    @property
    def partial_tiles(self) -> int:
        """Visited tiles that need a mask."""
        return self.visited_tiles - self.full_tiles

    @property
    def attended_pairs(self) -> int:
        """Attended (query, key) pairs of the pattern."""
        return math.prod(axis.attended for axis in self.axes)

    @property
    def density(self) -> float:
        """Fraction of the scores in visited tiles that are attended; the others are masked."""
        computed = self.visited_tiles * math.prod(self.tiling.query) * math.prod(self.tiling.key)
        return self.attended_pairs / computed

    @property
    def flop_bound(self) -> float:
        """Speed-up over dense attention if only attended pairs were computed: map over window size if not causal."""
        return math.prod(self.pattern.shape) ** 2 / self.attended_pairs

    @property
    def speedup_bound(self) -> float:
        """Upper bound on the speed-up over dense attention: ``dense_tiles / visited_tiles``; masks have no cost."""
        return self.dense_tiles / self.visited_tiles

    @property
    def flat_speedup_bound(self) -> float:
        """The bound relative to dense attention on the flattened map; at most `speedup_bound`."""
        return self.flat_dense_tiles / self.visited_tiles

    @property
    def fully_block_sparse(self) -> bool:
        """Whether no visited tile needs a mask ("perfectly block-sparse" in the paper): the bound is attainable.

        On every axis, the queries of a tile then share one window that key tiles cover exactly.
        """
        return self.partial_tiles == 0

    def achievable_speedup(self, mask_overhead: float = MASK_OVERHEAD, mask_all: bool = False) -> float:
        """Speed-up over dense attention if a masked tile takes ``1 + mask_overhead`` times as long as a full one.

        The baseline is dense attention on the flattened map (`flat_dense_tiles`), the alternative in practice.

        Args:
            mask_overhead: extra time of a masked tile relative to a full one; at least 0.
            mask_all: the kernel masks every visited tile unless the case is fully block-sparse, like NATTEN's kernels;
                otherwise only partial tiles.

        Raises:
            ValueError: ``mask_overhead`` is negative or not finite.
        """
        if not (math.isfinite(mask_overhead) and mask_overhead >= 0):
            raise ValueError(f"`mask_overhead` must be a finite number of at least 0, got {mask_overhead}")
        masked = self.visited_tiles if mask_all and self.partial_tiles else self.partial_tiles
        return self.flat_dense_tiles / (self.visited_tiles + mask_overhead * masked)


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """The query tiles of one axis, one entry each, ordered by group; intervals are half-open, in in-group positions.

    Attributes:
        group: dilation group of the tile.
        query: first query.
        start, end: keys that any query of the tile attends to.
        shared_start, shared_end: keys that all queries attend to; empty if the end is not after the start.
        origin: start of a key tile; the others start at multiples of the tile size from it.
        offset: number of positions in earlier groups.
        tile_offset: number of static key tiles in earlier groups.
    """

    group: np.ndarray
    query: np.ndarray
    start: np.ndarray
    end: np.ndarray
    shared_start: np.ndarray
    shared_end: np.ndarray
    origin: np.ndarray
    offset: np.ndarray
    tile_offset: np.ndarray


def _windows(p: np.ndarray, n: int, window: int, stride: int, causal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of the keys of queries ``p`` in a dilation group of ``n`` positions; both are non-decreasing."""
    block = p // stride * stride
    if causal:
        leader = np.minimum(block + stride - 1, n - 1)
        return np.maximum(leader - window + 1, 0), p + 1
    leader = np.minimum(block + stride // 2, n - 1)
    start = np.clip(leader - window // 2, 0, n - window)
    return start, start + window


def _group_tiles(
    n: int, window: int, stride: int, causal: bool, q_tile: int, dynamic: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """``query, start, end, shared_start, shared_end, origin`` of `AxisTiles` for a group of ``n`` positions."""
    first = np.arange(0, n, q_tile)
    last = np.minimum(first + q_tile, n) - 1
    # windows are monotonic, so the first and the last query of a tile bound all others
    start, shared_end = _windows(first, n, window, stride, causal)
    shared_start, end = _windows(last, n, window, stride, causal)
    return first, start, end, shared_start, shared_end, start if dynamic else np.zeros_like(start)


def _visited_full(
    start: np.ndarray, end: np.ndarray, shared_start: np.ndarray, shared_end: np.ndarray, origin: np.ndarray, tile: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of visited and full key tiles per query tile of an axis."""
    visited = -((origin - end) // tile) - (start - origin) // tile
    full = (shared_end - origin) // tile + (origin - shared_start) // tile
    return visited, np.maximum(full, 0)


def axis_counts(
    length: int, window: int, stride: int, dilation: int, causal: bool, q_tile: int, kv_tile: int, dynamic: bool
) -> AxisCounts:
    """Count one axis; arguments as in `simulate`, but not checked."""
    sums = np.zeros(5, dtype=object)  # Python integers: no overflow
    for group in axis_groups(length, dilation):
        n = group.length
        query, *tiles = _group_tiles(n, window, stride, causal, q_tile, dynamic)
        visited, full = _visited_full(*tiles, kv_tile)
        attended = n * window
        if causal:  # query p attends to the keys up to p, from the start of the window of its stride block
            block = np.arange(0, n, stride)
            end = np.minimum(block + stride, n)
            before, _ = _windows(block, n, window, stride, causal)
            attended = n * (n + 1) // 2 - int(((end - block) * before).sum())
        counts = (len(query), -(-n // kv_tile), int(visited.sum()), int(full.sum()), attended)
        sums += np.array(counts, dtype=object) * group.count
    return AxisCounts(*sums)


def integers(name: str, value: Any, rank: int | None = None) -> tuple[int, ...]:
    """``value`` as a tuple of positive integers, ``rank`` of them if given; ``name`` is used in errors."""
    entries = tuple(value) if isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str) else (value,)
    if any(isinstance(entry, (bool, np.bool_)) or not hasattr(entry, "__index__") for entry in entries):
        raise ValueError(f"`{name}` must contain only integers, got {value!r}")
    entries = tuple(operator.index(entry) for entry in entries)
    if any(entry < 1 for entry in entries):
        raise ValueError(f"`{name}` must be at least 1 on every axis, got {value!r}")
    return entries if rank is None else _per_axis(name, entries, rank)


def _per_axis(name: str, entries: tuple, rank: int) -> tuple:
    entries = entries * rank if len(entries) == 1 else entries
    if len(entries) != rank:
        raise ValueError(f"`{name}` must have one entry or one for each of the {rank} axes of `shape`, got {entries}")
    return entries


def make_pattern(shape: Any, window: Any, stride: Any, dilation: Any, causal: Any) -> Pattern:
    """Check the arguments of `simulate` and expand them to one entry per axis."""
    shape = integers("shape", shape)
    rank = len(shape)
    if not 1 <= rank <= 3:
        raise ValueError(f"`shape` must have 1, 2 or 3 axes, got {shape}")
    window = integers("window", window, rank)
    stride = integers("stride", stride, rank)
    dilation = integers("dilation", dilation, rank)
    flags = tuple(causal) if isinstance(causal, (Sequence, np.ndarray)) else (causal,)
    if not all(isinstance(flag, (bool, np.bool_)) for flag in flags):
        raise ValueError(f"`causal` must contain only booleans, got {causal!r}")
    causal = _per_axis("causal", tuple(bool(flag) for flag in flags), rank)
    pattern = Pattern(shape, window, stride, dilation, causal)
    for axis, (length, k, s, d, _) in enumerate(pattern.axes):
        if k * d > length:
            times = f" times dilation {d}" if d > 1 else ""
            raise ValueError(f"`window`{times} must be at most the length of axis {axis}, {length}, got {window}")
        if s > k:
            raise ValueError(f"`stride` must be at most `window` {window} on axis {axis}, got {stride}")
    return pattern


def simulate(
    shape: int | Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    *,
    q_tile: int | Sequence[int],
    kv_tile: int | Sequence[int],
    dynamic: bool = False,
) -> Simulation:
    """Count the tiles that a kernel visits for a case of neighborhood attention (GNA, arXiv 2504.16922, NATTENSim).

    Args:
        shape: length of each axis of the map, 1 to 3 axes.
        window: window length, one for all axes or one per axis; its product with the dilation must not exceed the axis.
        stride: from 1 to the window, one for all axes or one per axis.
        dilation: one for all axes or one per axis; it need not divide the axis.
        causal: one for all axes or one per axis.
        q_tile: queries per tile, one for all axes or one per axis. The product is the tile size of the kernel.
        kv_tile: keys per tile, one for all axes or one per axis.
        dynamic: key tiles start at the first key needed instead of at multiples of the tile size.

    Raises:
        ValueError: invalid arguments.
    """
    pattern = make_pattern(shape, window, stride, dilation, causal)
    rank = len(pattern.shape)
    tiling = Tiling(integers("q_tile", q_tile, rank), integers("kv_tile", kv_tile, rank), bool(dynamic))
    axes = zip(pattern.axes, tiling.query, tiling.key, strict=True)
    return Simulation(pattern, tiling, tuple(axis_counts(*axis, q, kv, tiling.dynamic) for axis, q, kv in axes))


def axis_tiles(case: Simulation, axis: int) -> AxisTiles:
    """The query tiles of one axis and their keys, ordered by dilation group."""
    length, window, stride, dilation, causal = case.pattern.axes[axis]
    parts, offset, tile_offset = [], 0, 0
    for groups in axis_groups(length, dilation):
        n = groups.length
        tiles = _group_tiles(n, window, stride, causal, case.tiling.query[axis], case.tiling.dynamic)
        for group in range(groups.first, groups.first + groups.count):
            same = [np.full_like(tiles[0], value) for value in (group, offset, tile_offset)]
            parts.append((same[0], *tiles, *same[1:]))
            offset += n
            tile_offset += -(-n // case.tiling.key[axis])
    return AxisTiles(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def tile_map(case: Simulation) -> np.ndarray:
    """The state of each pair of query tile and key tile: `SKIPPED`, `PARTIAL` or `FULL`.

    Returns:
        ``[query_tiles, key_tiles]``, uint8. Tiles are flattened in row-major order of the map; with dilation the
        tiles of an axis are ordered by group.

    Raises:
        ValueError: dynamic key tiles, which have no common grid.
    """
    if case.tiling.dynamic:
        raise ValueError("`dynamic` must be False for a tile map, since dynamic key tiles have no common grid")
    visited = full = np.ones((1, 1), dtype=np.uint8)
    for axis, (tile, counts) in enumerate(zip(case.tiling.key, case.axes, strict=True)):
        tiles, column = axis_tiles(case, axis), np.arange(counts.key_tiles)

        def between(start: np.ndarray, end: np.ndarray, tiles=tiles, column=column) -> np.ndarray:
            start, end = ((x + tiles.tile_offset)[:, None] for x in (start, end))
            return ((column >= start) & (column < end)).astype(np.uint8)

        visited = np.kron(visited, between(tiles.start // tile, -(-tiles.end // tile)))
        full = np.kron(full, between(-(-tiles.shared_start // tile), tiles.shared_end // tile))
    return visited + full
