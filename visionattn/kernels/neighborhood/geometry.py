"""Attended keys along one axis, and the division of an axis into tiles of queries that share their keys.

An axis of length ``L`` with dilation ``D`` consists of ``D`` groups, positions ``g, g + D, g + 2D, ...``, without
attention between groups. Inside a group of ``n`` positions the neighborhood is an interval. Definitions follow Hassani
et al., "Neighborhood Attention Transformer" (arXiv 2204.07143), "Dilated Neighborhood Attention Transformer"
(2209.15001) and "Generalized Neighborhood Attention" (2504.16922).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

__all__ = ["AxisGroups", "AxisTiles", "axis_groups", "axis_tiles", "axis_windows"]


@dataclass(frozen=True)
class AxisGroups:
    """Dilation groups of equal length on one axis: groups ``first .. first + count - 1``, ``length`` positions each."""

    first: int
    count: int
    length: int


@lru_cache(maxsize=1024)
def axis_groups(length: int, dilation: int) -> tuple[AxisGroups, ...]:
    """The dilation groups of an axis, by length: one entry, or two if the dilation does not divide the axis."""
    short, longer = divmod(length, dilation)
    groups = (AxisGroups(0, longer, short + 1), AxisGroups(longer, dilation - longer, short))
    return tuple(group for group in groups if group.count)


@lru_cache(maxsize=1024)
def axis_windows(n: int, kernel: int, stride: int, causal: bool) -> np.ndarray:
    """For each of ``n`` in-group positions the half-open interval of positions it attends to, ``[n, 2]``."""
    p = np.arange(n)
    block = p // stride * stride  # the queries of one stride block share the window of their leader
    if causal:
        leader = np.minimum(block + stride - 1, n - 1)
        return np.stack([np.maximum(leader - kernel + 1, 0), p + 1], axis=1)
    leader = np.minimum(block + stride // 2, n - 1)
    start = np.clip(leader - kernel // 2, 0, n - kernel)
    return np.stack([start, start + kernel], axis=1)


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """An axis divided into tiles of ``tile`` queries with ``halo`` keys each, over all dilation groups.

    A tile that extends past its group repeats the last position of the group. Tiles with the same relative positions of
    queries and keys share an entry of ``patterns``.

    Attributes:
        group, length: dilation group of each tile and its number of positions, ``[tiles]``. query, key: in-group
            positions of the first query and first key of each tile, ``[tiles]``. pattern_ids: index into ``patterns``
            of each tile, ``[tiles]``. patterns: ``[patterns, 1 + 2 * tile]``: offset from the first query to the first
            key, then the half-open interval of keys of each query, relative to the first key.
    """

    tile: int
    halo: int
    dilation: int
    group: np.ndarray
    length: np.ndarray
    query: np.ndarray
    key: np.ndarray
    pattern_ids: np.ndarray
    patterns: np.ndarray

    @property
    def count(self) -> int:
        return len(self.group)

    @property
    def filled(self) -> np.ndarray:
        """``[tiles, tile]``: False for a query that repeats the last one of its group."""
        return self.query[:, None] + np.arange(self.tile) < self.length[:, None]

    def positions(self, first: np.ndarray, count: int) -> np.ndarray:
        """Positions on the axis of ``count`` in-group positions from ``first`` on, ``[tiles, count]``."""
        inside = np.minimum(first[:, None] + np.arange(count), self.length[:, None] - 1)
        return self.group[:, None] + self.dilation * inside


@lru_cache(maxsize=256)
def axis_tiles(length: int, kernel: int, stride: int, dilation: int, causal: bool, tile: int) -> AxisTiles:
    """Divide every dilation group of an axis into tiles of ``tile`` queries, with the shortest possible halos."""
    cuts = []
    for groups in axis_groups(length, dilation):
        windows = axis_windows(groups.length, kernel, stride, causal)
        at = np.arange(0, groups.length, tile)
        # Queries past the end of the group repeat its last one.
        cuts.append((groups, at, windows[np.minimum(at[:, None] + np.arange(tile), groups.length - 1)]))
    halo = max(int((w[..., 1].max(axis=1) - w[..., 0].min(axis=1)).max()) for *_, w in cuts)
    columns, patterns = [], []
    for groups, at, windows in cuts:
        # Near the end of a group the halo starts earlier, so that it does not reach past the group.
        first = np.clip(windows[..., 0].min(axis=1), 0, max(groups.length - halo, 0))
        pattern = np.concatenate([(first - at)[:, None], (windows - first[:, None, None]).reshape(len(at), -1)], axis=1)
        group = np.arange(groups.first, groups.first + groups.count).repeat(len(at))
        again = (np.tile(x, groups.count) for x in (at, first))
        columns.append((group, np.full(len(group), groups.length), *again))
        patterns.append(np.tile(pattern, (groups.count, 1)))
    unique, pattern_ids = np.unique(np.concatenate(patterns), axis=0, return_inverse=True)
    columns = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return AxisTiles(tile, halo, dilation, *columns, pattern_ids.reshape(-1), unique)
