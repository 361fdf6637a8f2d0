"""Neighborhood attention as a Scan over rows of tiles, of standard ONNX operators.

All queries of a tile attend to the same keys, with a mask, so that keys and values are copied about three times instead
of ``prod(kernel_size)`` times, and two matrix products compute all heads of a row of tiles. Only the scores of one row
of tiles are in memory. Tensors ``[B, *spatial, heads, d]`` are read as tables of rows of ``d`` numbers, and each row of
tiles gathers its own rows of the tables, so that neither tiles nor heads need a transposed copy.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.tape import Tape
from onnxscript import opset18 as op

from visionattn.kernels.neighborhood.onnx.axes import KINDS, Axis, make_axis, outer
from visionattn.kernels.neighborhood.onnx.tables import Table, make_tables
from visionattn.kernels.onnx_values import cast_like, ints, number, scalar, size

__all__ = ["tiled_attention"]

TILE = {1: 64, 2: 6, 3: 4}
"""Queries per tile on each axis, by the number of axes: fewer increase the copies of keys, more the masked scores."""


@dataclass(frozen=True)
class _Tiles:
    """The values that depend on sizes only; all layers with equal sizes share them.

    Attributes:
        axes: one or more; the rows of tiles are those of the first axis.
        steps: for each row of tiles, what is added to the columns of queries ``[rows, t]`` and of keys and values
            ``[rows, s]``, and to the kinds ``[rows]``.
        columns: indices into the tables of queries, keys and values, ``[tiles, heads, 1, queries or keys]``.
        kinds: kind of each tile of a row, ``[tiles]``.
        mask: additive mask of each kind of tile, float32 ``[kinds, queries, keys]``.
        shape: ``tiles, heads, -1``.
        places: see `_places`.
    """

    axes: list[Axis]
    steps: list[Any]
    columns: list[Any]
    kinds: Any
    mask: Any
    shape: Any
    places: Any


def tiled_attention(
    q: Any,
    k: Any,
    v: Any,
    rpb: Any,
    kernel_size: Sequence[int],
    dilation: Sequence[Any],
    scale: float,
    return_lse: bool,
    known: dict[Hashable, Any],
    name: str,
) -> tuple[Any, Any]:
    """Build the graph of neighborhood attention without stride and causal axes.

    Args:
        q, k, v: values ``[B, *spatial, heads, d]``; keys and values may have fewer heads.
        rpb: value ``[heads, 2K-1, ...]`` or None.
        kernel_size: window length of each axis.
        dilation: integers or symbolic sizes.
        scale: factor on the scores.
        return_lse: whether the log-sum-exp is needed.
        known: values of this graph that depend on sizes only, filled by this function.
        name: prefix of the names of values, unique in the graph.

    Returns:
        Output ``[B, *spatial, heads, dim_v]`` and log-sum-exp ``[B, *spatial, heads]``, which is empty if not needed.
    """
    rank = len(kernel_size)
    tables = make_tables(q, k, v)
    lengths = [getattr(n, "value", n) for x in (q, k) for n in x.shape[1:-1]]
    problem = (*lengths, tables[0].slots, *kernel_size, *dilation)
    tiles = known.get(problem) if None not in lengths else None
    if tiles is None:
        tiles = known[problem] = _make_tiles(tables, kernel_size, dilation)
    bias = None if rpb is None else cast_like(_bias(rpb, tiles.axes, kernel_size), q)
    body = _body(tables, tiles, bias, number(scale, q), cast_like(tiles.mask, q), number(60.0, q), return_lse, name)
    out = op.Scan(*tiles.steps, body=body, num_scan_inputs=len(tiles.steps))  # [rows, B, t, inner, heads, d]
    out = op.Transpose(out, perm=[1, 0, 2, 3, 4, 5])
    rows, source = tiles.axes[0], tables[0].source
    computed = op.Mul(size(rows.queries, 0), size(rows.queries, 1))
    out = op.Reshape(out, op.Concat(size(source, 0), computed, ints(-1), axis=0))
    out = op.Gather(out, rows.places, axis=1)
    out = op.Reshape(out, op.Concat(size(source, 0, rank + 1), tables[0].heads, ints(-1), axis=0))
    if not return_lse:
        return out, op.Cast(op.ConstantOfShape(ints(0)), to=1)
    depth, last = tables[2].depth, ints(-1)
    lse = op.Squeeze(op.Slice(out, depth, op.Add(depth, ints(1)), last), last)
    return op.Slice(out, ints(0), depth, last), lse


def _make_tiles(tables: list[Table], kernel_size: Sequence[int], dilation: Sequence[Any]) -> _Tiles:
    rank, source = len(kernel_size), tables[0].source
    axes = [
        make_axis(op.Squeeze(size(source, axis + 1)), kernel, step, TILE[rank])
        for axis, (kernel, step) in enumerate(zip(kernel_size, dilation, strict=True))
    ]
    if rank == 1:  # a row of a map of height 1
        axes.insert(0, make_axis(scalar(1), 1, 1, 1))
    rows, (queries, keys, kinds, inner) = axes[0], _joined(axes[1:])
    heads = tables[0].heads
    head = op.Range(scalar(0), op.Squeeze(heads), scalar(1))
    columns, steps = [], []
    for table, positions in zip(tables, (queries, keys, keys), strict=True):
        index = op.Add(op.Div(head, op.Div(heads, table.heads)), op.Mul(table.heads, scalar(table.slot)))
        stride = op.Mul(table.heads, scalar(table.slots))  # rows of a position
        columns.append(op.Add(op.Unsqueeze(op.Mul(positions, stride), ints(1, 2)), op.Unsqueeze(index, ints(1, 2))))
        steps.append(op.Mul(rows.queries if table is tables[0] else rows.keys, op.Mul(inner, stride)))
    steps[2] = op.Mul(rows.kinds, scalar(KINDS ** len(axes[1:])))  # values are in the same rows as keys
    tiles = size(queries, 0)
    shape = op.Concat(tiles, heads, ints(-1), axis=0)
    return _Tiles(axes, steps, columns, kinds, _mask(axes), shape, _places(axes, heads))


def _joined(axes: list[Axis]) -> tuple[Any, Any, Any, Any]:
    """Queries, keys and kinds of the tiles of several axes, and the product of their lengths."""
    queries, keys, kinds, total = axes[0].queries, axes[0].keys, axes[0].kinds, axes[0].length
    for axis in axes[1:]:
        queries = outer(op.Add, queries, axis.queries, axis.length)
        keys = outer(op.Add, keys, axis.keys, axis.length)
        kinds = op.Reshape(op.Add(op.Mul(op.Unsqueeze(kinds, ints(1)), scalar(KINDS)), axis.kinds), ints(-1))
        total = op.Mul(total, axis.length)
    return queries, keys, kinds, total


def _pairs(combine: Any, a: Any, b: Any) -> Any:
    """Combine ``[P, T, S]`` and ``[R, U, V]`` of two axes into ``[P * R, T * U, S * V]``."""
    both = combine(op.Unsqueeze(a, ints(1, 3, 5)), op.Unsqueeze(b, ints(0, 2, 4)))
    lengths = op.Mul(op.Shape(a), op.Shape(b))
    return op.Reshape(both, lengths)


def _mask(axes: list[Axis]) -> Any:
    """Additive mask of each kind of tile, float32 ``[kinds, queries, keys]``."""
    allowed = axes[0].allowed
    for axis in axes[1:]:
        allowed = _pairs(op.And, allowed, axis.allowed)
    return op.Where(allowed, op.Constant(value_float=0.0), op.Constant(value_float=float("-inf")))


def _bias(rpb: Any, axes: list[Axis], kernel_size: Sequence[int]) -> Any:
    """Position bias of a tile, ``[heads, queries, keys]``."""
    offsets = op.Unsqueeze(axes[-len(kernel_size)].offsets, ints(0))
    for axis, kernel in zip(axes[1 - len(kernel_size) :] if len(kernel_size) > 1 else [], kernel_size[1:], strict=True):
        offsets = _pairs(op.Add, op.Mul(offsets, scalar(2 * kernel - 1)), op.Unsqueeze(axis.offsets, ints(0)))
    table = op.Reshape(rpb, op.Concat(size(rpb, 0), ints(-1), axis=0))
    return op.Gather(table, op.Squeeze(offsets, ints(0)), axis=1)


def _places(axes: list[Axis], heads: Any) -> Any:
    """For each query of a row of tiles in the order of the map, its index in the result ``[tiles, heads, queries]``.

    Returns:
        ``[t, inner, heads]``: rows of the tile, positions on all axes but the first, heads.
    """
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    number, inside, tile = None, None, one
    for axis in axes[1:]:
        here, where = op.Div(axis.places, axis.tile), op.Mod(axis.places, axis.tile)
        count = op.Squeeze(size(axis.queries, 0))
        if number is not None:
            here = op.Reshape(op.Add(op.Mul(op.Unsqueeze(number, ints(1)), count), here), ints(-1))
            where = op.Reshape(op.Add(op.Mul(op.Unsqueeze(inside, ints(1)), axis.tile), where), ints(-1))
        number, inside, tile = here, where, op.Mul(tile, axis.tile)
    queries = op.Mul(tile, axes[0].tile)
    head = op.Range(zero, op.Squeeze(heads), one)
    columns = op.Add(
        op.Unsqueeze(op.Add(op.Mul(number, op.Mul(queries, heads)), inside), ints(1)), op.Mul(head, queries)
    )
    row = op.Mul(op.Range(zero, axes[0].tile, one), tile)
    return op.Add(op.Unsqueeze(row, ints(1, 2)), columns)


def _body(
    tables: list[Table],
    tiles: _Tiles,
    bias: Any,
    scale: Any,
    mask: Any,
    largest_gap: Any,
    return_lse: bool,
    name: str,
) -> ir.Graph:
    """The attention of one row of tiles. Values of the outer graph, all constants included, are used directly."""
    tape = Tape()
    row_q, row_k, row_kind = (
        ir.Value(name=f"{name}_{part}", type=ir.TensorType(ir.DataType.INT64)) for part in ("q", "k", "kind")
    )

    def call(kind: str, *inputs: Any, **attributes: Any) -> Any:
        output = ir.Value(name=f"{name}_{len(tape.nodes)}")
        return tape.op(kind, inputs, attributes, output=output)

    second, last = ints(1), ints(-1)
    rows = []  # [B, tiles, heads, queries or keys, d]
    for table, columns, row in zip(tables, tiles.columns, (row_q, row_k, row_k), strict=True):
        index = call("Reshape", call("Add", columns, call("Unsqueeze", row, second)), tiles.shape)
        rows.append(call("Gather", table.rows, index, axis=1))
    q, k, v = rows
    scores = call("MatMul", call("Mul", q, scale), call("Transpose", k, perm=[0, 1, 2, 4, 3]))
    if bias is not None:
        scores = call("Add", scores, bias)
    masks = call("Gather", mask, call("Add", tiles.kinds, row_kind), axis=0)
    scores = call("Add", scores, call("Unsqueeze", masks, second))
    # exp(-60) is zero beside a sum of at least 1. Lower scores, -inf above all, give subnormal numbers in the softmax
    # of ONNX Runtime, which took 13 times as long with them on an Intel Xeon.
    scores = call("Max", scores, call("Sub", call("ReduceMax", scores, last, keepdims=1), largest_gap))
    out = call("MatMul", call("Softmax", scores, axis=-1), v)
    if return_lse:
        out = call("Concat", out, call("ReduceLogSumExp", scores, last, keepdims=1), axis=-1)
    shape = op.Concat(size(tables[0].source, 0), last, op.Add(tables[2].depth, ints(int(return_lse))), axis=0)
    result = call("Gather", call("Reshape", out, shape), tiles.places, axis=1)
    return ir.Graph(inputs=[row_q, row_k, row_kind], outputs=[result], nodes=tape.nodes, name=name)
