"""Tiles of one axis, as in `visionattn.kernels.neighborhood.geometry`, computed inside of an ONNX graph.

Each dilation group is divided into the same number of tiles of equal length. They are spread evenly and overlap if
they have to, so that a tile never extends past a group that is longer than it. The keys of a tile are those of its
queries and of a border on both sides. With more than one tile per group, windows are shifted in the first and the last
tile only; all tiles of a kind have the same mask. All values may depend on sizes that are known at runtime only.
"""

from dataclasses import dataclass
from typing import Any

from onnxscript import opset18 as op

from visionattn.kernels.onnx_values import ints, scalar

__all__ = ["KINDS", "Axis", "make_axis", "outer"]

KINDS = 3
"""Kinds of tiles with different masks: first, inner and last ones, or, with one tile per group, long and short ones."""


@dataclass
class Axis:
    """An axis of length ``L`` in tiles of ``t`` queries and ``s`` keys. All values are int64 unless noted.

    Attributes:
        length: ``L``, a scalar. tile: ``t``, a scalar.
        queries: positions on the axis, ``[tiles, t]``. keys: positions on the axis, ``[tiles, s]``.
        kinds: kind of each tile, ``[tiles]``.
        allowed: bool ``[KINDS, t, s]``, whether the query attends to the key.
        offsets: ``[t, s]``, index into the position bias; valid only where allowed.
        places: index into the queries of all tiles, ``[L]``.
    """

    length: Any
    tile: Any
    queries: Any
    keys: Any
    kinds: Any
    allowed: Any
    offsets: Any
    places: Any


def make_axis(length: Any, kernel: int, dilation: Any, target: int) -> Axis:
    """Divide an axis into tiles of at least `target` queries, or one per group.

    Args:
        length: scalar value.
        kernel: window length.
        dilation: an integer, or a symbolic one.
        target: number of queries per tile. Short groups are one tile.
    """
    # With two or more tiles of this many queries, only the first and the last tile contain shifted windows.
    least = kernel - kernel // 2 + 1
    left, step = kernel // 2, scalar(dilation)
    zero, one = scalar(0), scalar(1)
    longest = op.Div(op.Add(length, op.Sub(step, one)), step)
    count = op.Div(op.Add(longest, scalar(max(target, least) - 1)), scalar(max(target, least)))  # tiles per group
    count = op.Max(op.Min(count, op.Div(longest, scalar(least))), one)
    gaps = op.Sub(count, one)
    several = op.Min(gaps, one)  # 1 if groups have several tiles, else 0
    tile = op.Div(op.Add(longest, gaps), count)
    halo = op.Add(tile, op.Mul(several, scalar(kernel - 1)))
    border = op.Mul(several, scalar(left))  # keys of a tile before its first query

    index = op.Range(zero, op.Mul(step, count), one)
    group, number = op.Div(index, count), op.Mod(index, count)
    present = _group_length(length, group, step, one)
    first = op.Div(op.Mul(number, op.Sub(present, tile)), op.Max(gaps, one))
    end = _column(op.Sub(present, one))
    i, j = op.Range(zero, tile, one), op.Range(zero, halo, one)
    inside = op.Min(op.Add(_column(first), i), end)
    queries = op.Add(_column(group), op.Mul(step, op.Max(inside, zero)))
    inside = op.Min(op.Max(op.Add(_column(op.Sub(first, border)), j), zero), end)
    keys = op.Add(_column(group), op.Mul(step, inside))

    # the first tile has kind 0, the last one 2; if they are the same, shorter groups have kind 1
    is_many = op.Greater(count, one)
    shorter = op.Sub(longest, present)
    edge = op.Add(op.Min(number, one), op.Div(number, op.Max(gaps, one)))
    kinds = op.Where(is_many, edge, shorter)

    # where the window of each query starts, relative to the first key
    lowest = op.Mul(several, ints(left, 0, 0))
    highest = op.Where(
        is_many,
        op.Sub(tile, ints(0, 0, kernel - left)),
        op.Sub(op.Sub(longest, scalar(kernel)), ints(0, 1, 2)),
    )
    start = op.Sub(i, op.Sub(scalar(left), border))
    start = op.Min(op.Max(start, _column(lowest)), op.Max(_column(highest), zero))
    passed = op.Sub(j, op.Unsqueeze(start, ints(2)))
    allowed = op.And(op.GreaterOrEqual(passed, zero), op.Less(passed, scalar(kernel)))
    offsets = op.Sub(op.Sub(op.Add(j, scalar(kernel - 1)), border), _column(i))
    offsets = op.Min(op.Max(offsets, zero), scalar(2 * kernel - 2))

    # the tile of each position: the last one that starts at or before it
    position = op.Range(zero, length, one)
    group, inner = op.Mod(position, step), op.Div(position, step)
    spare = op.Sub(_group_length(length, group, step, one), tile)
    number = op.Div(op.Sub(op.Mul(op.Add(inner, one), gaps), one), op.Max(spare, one))
    number = op.Max(op.Min(number, gaps), zero)
    first = op.Div(op.Mul(number, spare), op.Max(gaps, one))
    places = op.Add(op.Mul(op.Add(op.Mul(group, count), number), tile), op.Sub(inner, first))
    return Axis(length, tile, queries, keys, kinds, allowed, offsets, places)


def _group_length(length: Any, group: Any, step: Any, one: Any) -> Any:
    return op.Div(op.Sub(op.Add(op.Sub(length, group), step), one), step)


def _column(x: Any) -> Any:
    return op.Unsqueeze(x, ints(1))


def outer(combine: Any, a: Any, b: Any, factor: Any = None) -> Any:
    """Combine values of two axes, ``[N, K]`` (times `factor`) and ``[M, L]``, into ``[N * M, K * L]``."""
    if factor is not None:
        a = op.Mul(a, factor)
    both = combine(op.Unsqueeze(a, ints(1, 3)), op.Unsqueeze(b, ints(0, 2)))  # [N, M, K, L]
    rows = op.Mul(op.Shape(a, start=0, end=1), op.Shape(b, start=0, end=1))
    return op.Reshape(both, op.Concat(rows, ints(-1), axis=0))
