"""Index tables of the PyTorch backend: the rows of the tensors in each tile, and the positions of the results.

A tensor ``[B, *spatial, heads, d]`` is read as a table of rows of ``d`` numbers, for any memory layout of tokens and
heads. A tile is a list of row indices, so dilation groups (including uneven ones), shifted windows at borders, partial
tiles and shared key heads need no special cases in the computation. Tables are built once per geometry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from visionattn.kernels.neighborhood.geometry import axis_tiles

__all__ = ["PLANS", "Plan", "RowGroups", "Rows", "make_plan"]

# The longest dilation schedule in use, that of DiNAT for detection, has 11 combinations of map size and dilation per
# image size. The cache holds those of four image sizes, such as two scales in landscape and portrait orientation.
PLANS = 4 * 11

TABLES = 8
"""Tables kept per plan: for training and inference with up to two batch sizes, each split into passes."""


def _outer(tables: list[Tensor], combine) -> Tensor:
    """Combine per-axis ``[tiles, entries]`` tables into one over the product of tiles and of entries."""
    result = tables[0]
    for table in tables[1:]:
        result = combine(result[:, None, :, None], table[None, :, None, :]).flatten(2).flatten(0, 1)
    return result


def _pairs(tables: list[Tensor], combine) -> Tensor:
    """Combine per-axis ``[patterns, queries, keys]`` tables into one over the products of all three."""
    result = tables[0]
    for table in tables[1:]:
        result = combine(result[:, None, :, None, :, None], table[None, :, None, :, None, :])
        result = result.flatten(4).flatten(2, 3).flatten(0, 1)
    return result


@dataclass(frozen=True)
class Rows:
    """Memory layout of a tensor in rows of ``d`` numbers: strides between images, tokens and heads."""

    image: int
    token: int
    head: int

    @staticmethod
    def of(x: Tensor) -> "Rows | None":
        """None if ``x [B, *spatial, heads, d]`` cannot be read as equal rows with a constant stride between tokens."""
        return Rows.from_strides(tuple(x.shape), x.stride())

    @staticmethod
    @lru_cache(maxsize=256)
    def from_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> "Rows | None":
        """Same as `of`, for a tensor with this shape and strides."""
        d, step = shape[-1], strides[-3]
        for length, stride in zip(reversed(shape[1:-2]), reversed(strides[1:-2]), strict=True):
            if length > 1 and stride != step:
                return None
            step *= length
        steps = (strides[0], strides[-3], strides[-2])
        if (d > 1 and strides[-1] != 1) or any(step % d for step in steps):
            return None
        return Rows(*(step // d for step in steps))


@dataclass(frozen=True)
class RowGroups:
    """Rows to sum: sum ``i`` is over the rows ``index[offsets[i]:offsets[i + 1]]``."""

    index: Tensor
    offsets: Tensor


@dataclass(frozen=True, eq=False)  # one per geometry, so identity is a fast cache key
class Plan:
    """All tiles of a map. Tokens are numbered in row-major order; tables are ``int64`` on the CPU.

    Attributes:
        queries: tokens of the queries of each tile, ``[tiles, queries]``; partial tiles are padded with duplicates.
        keys: tokens of the halo of each tile, ``[tiles, keys]``.
        valid: ``[tiles, queries]``, False for padded duplicates; None if there are none.
        pattern_ids: pattern of each tile, ``[tiles]``; tiles with the same mask and bias share a pattern.
        allowed: ``[patterns, queries, keys]``, whether the query attends to the key.
        offsets: ``[patterns, queries, keys]``, entry of the flat bias table; valid only where allowed.
    """

    device: torch.device
    tokens: int
    queries: Tensor
    keys: Tensor
    valid: Tensor | None
    pattern_ids: Tensor
    allowed: Tensor
    offsets: Tensor
    entries: int

    @property
    def tiles(self) -> int:
        return self.queries.shape[0]

    @property
    def patterns(self) -> int:
        return self.allowed.shape[0]

    @property
    def pairs(self) -> int:
        """Number of scores of one tile and head."""
        return self.queries.shape[1] * self.keys.shape[1]

    @cached_property
    def masked(self) -> bool:
        return not bool(self.allowed.all())

    @cached_property
    def bias_index(self) -> Tensor:
        """Flat ``[patterns * queries * keys]``; masked pairs have the index one past the end of the table."""
        return self.offsets.masked_fill(~self.allowed, self.entries).flatten().to(self.device)

    @cached_property
    def _masks(self) -> dict[torch.dtype, Tensor]:
        return {}

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask ``[patterns, queries * keys]`` of 0 and -inf."""
        if dtype not in self._masks:
            mask = torch.zeros(self.allowed.shape, dtype=dtype).masked_fill_(~self.allowed, -torch.inf)
            self._masks[dtype] = mask.flatten(1).to(self.device)
        return self._masks[dtype]

    def one_hot(self, images: int, dtype: torch.dtype) -> Tensor:
        """One-hot patterns ``[patterns, images * tiles]``; a product with it sums over the tiles of each pattern."""
        table = torch.zeros(self.patterns, self.tiles).scatter_(0, self.pattern_ids[None], 1.0)
        return table.repeat(1, images).to(self.device, dtype)

    def rows(self, which: str, layout: Rows, images: int, heads: int, repeat: int) -> Tensor:
        """Row indices ``[images * tiles, heads * entries]`` of the tokens of queries or keys.

        ``heads`` is the number of query heads; ``repeat`` consecutive ones use the same row.
        """
        tokens = self.queries if which == "queries" else self.keys
        head = torch.arange(heads) // repeat * layout.head
        table = tokens[:, None, :] * layout.token + head[:, None]
        table = torch.arange(images)[:, None, None, None] * layout.image + table
        return table.view(images * self.tiles, -1).to(self.device, torch.int32)

    def pattern_rows(self, images: int, heads: int, biased: bool) -> Tensor:
        """Row of the masks (or of the ``[heads * patterns]`` biases) to add for each tile and head."""
        table = self.pattern_ids[:, None].expand(-1, heads)
        if biased:
            table = table + torch.arange(heads) * self.patterns
        return table.repeat(images, 1).to(self.device, torch.int32)

    def valid_rows(self, images: int, dtype: torch.dtype) -> Tensor | None:
        """``[images * tiles, 1, queries, 1]``, 0 for padded duplicates and 1 otherwise."""
        if self.valid is None:
            return None
        return self.valid.to(self.device, dtype).repeat(images, 1)[:, None, :, None]

    @cached_property
    def _tables(self) -> dict[tuple, "Tensor | RowGroups"]:
        """Results of `result_rows` and `key_row_groups`. They are stored with the plan and freed with it."""
        return {}

    def _table(self, key: tuple, make: "Callable[[], Tensor | RowGroups]") -> "Tensor | RowGroups":
        if key not in self._tables:
            if len(self._tables) >= TABLES:
                self._tables.pop(next(iter(self._tables)), None)
            self._tables[key] = make()
        return self._tables[key]

    def result_rows(self, images: int, heads: int) -> Tensor:
        """Row of ``[images, tiles, heads, queries]`` of each token and head, ``[images * tokens * heads]``."""
        return self._table(("result", images, heads), lambda: self._result_rows(images, heads))

    def key_row_groups(self, images: int, heads: int, repeat: int) -> RowGroups:
        """Rows of ``[images, tiles, heads, keys]`` of each image, token and key head."""
        return self._table(("bags", images, heads, repeat), lambda: self._key_bags(images, heads, repeat))

    def _result_rows(self, images: int, heads: int) -> Tensor:
        place = torch.arange(self.queries.numel()).view_as(self.queries)
        keep = slice(None) if self.valid is None else self.valid
        where = torch.empty(self.tokens, dtype=torch.long)
        where[self.queries[keep].flatten()] = place[keep].flatten()
        tile, query = where // self.queries.shape[1], where % self.queries.shape[1]
        rows = (tile[:, None] * heads + torch.arange(heads)) * self.queries.shape[1] + query[:, None]
        rows = torch.arange(images)[:, None, None] * (heads * self.queries.numel()) + rows
        return rows.flatten().to(self.device, torch.int32)

    def _key_bags(self, images: int, heads: int, repeat: int) -> RowGroups:
        shared = heads // repeat
        head = torch.arange(heads) // repeat
        owner = self.keys[:, None, :] * shared + head[:, None]
        owner = (torch.arange(images)[:, None, None, None] * (self.tokens * shared) + owner).flatten()
        counts = torch.bincount(owner, minlength=images * self.tokens * shared)
        index = torch.argsort(owner, stable=True)
        offsets = counts.cumsum(0) - counts
        return RowGroups(*(x.to(self.device, torch.int32) for x in (index, offsets)))


@lru_cache(maxsize=PLANS)
def make_plan(problem: tuple, shape: tuple[int, ...], tile: tuple[int, ...], device: torch.device) -> Plan:
    """Divide a map into tiles; ``problem`` is (kernel, stride, dilation, causal), each per axis."""
    kernel, stride, dilation, causal = problem
    axes = [axis_tiles(*axis) for axis in zip(shape, kernel, stride, dilation, causal, tile, strict=True)]
    queries, keys, valid, allowed, offsets = [], [], [], [], []
    for axis, cut in enumerate(axes):
        step, later = prod(shape[axis + 1 :]), prod(2 * k - 1 for k in kernel[axis + 1 :])
        queries.append(torch.from_numpy(cut.positions(cut.query, cut.tile)) * step)
        keys.append(torch.from_numpy(cut.positions(cut.key, cut.halo)) * step)
        valid.append(torch.from_numpy(cut.filled))
        shift, bounds = cut.patterns[:, :1, None], cut.patterns[:, 1:].reshape(-1, cut.tile, 2)
        place = np.arange(cut.halo)
        allowed.append(torch.from_numpy((place >= bounds[..., :1]) & (place < bounds[..., 1:])))
        offset = shift + place - np.arange(cut.tile)[:, None] + kernel[axis] - 1
        # Entries of padded duplicates are arbitrary; their results are discarded.
        offsets.append(torch.from_numpy(offset.clip(0, 2 * kernel[axis] - 2) * later))
    pattern_ids = torch.zeros(1, dtype=torch.long)
    for axis in axes:
        pattern_ids = (pattern_ids[:, None] * len(axis.patterns) + torch.from_numpy(axis.pattern_ids)).flatten()
    filled = _outer(valid, torch.logical_and)
    return Plan(
        device,
        prod(shape),
        _outer(queries, torch.add),
        _outer(keys, torch.add),
        None if bool(filled.all()) else filled,
        pattern_ids,
        _pairs(allowed, torch.logical_and),
        _pairs(offsets, torch.add),
        prod(2 * k - 1 for k in kernel),
    )
