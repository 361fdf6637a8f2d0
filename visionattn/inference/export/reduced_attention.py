"""ONNX implementations of the operators of `visionattn.layers.spatial_reduction`."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import opset18 as op

from visionattn.kernels.onnx_values import INT64, ints, number, scalar, size

__all__ = ["grouped_attention", "least_attended"]

BOOL = 9
DOUBLE = 11


def least_attended(query: Any, key: Any, scale: float, ratio: float) -> Any:
    """Return the mask of the keys with the lowest probability for each query."""
    attention = op.Softmax(
        op.Mul(op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2])), number(scale, query)), axis=-1
    )
    exact = op.Constant(value=ir.tensor(ratio, dtype=ir.DataType.DOUBLE))
    count = op.Cast(op.Mul(op.Cast(size(key, 2), to=DOUBLE), exact), to=INT64)
    _, chosen = op.TopK(attention, op.Max(count, ints(1)), axis=-1, largest=0)
    nothing = op.Expand(op.Constant(value=ir.tensor(False)), op.Shape(attention))
    return op.ScatterElements(nothing, chosen, op.Expand(op.Constant(value=ir.tensor(True)), op.Shape(chosen)), axis=-1)


def grouped_attention(
    q: Any, k: Any, v: Any, shape: Sequence[Any], keys: Sequence[Any], reduction: int, rate: int
) -> Any:
    """Compute attention within the groups of `fixed_sparse_mask`; the number of queries of a group depends on the size.

    Args:
        q, k, v: ``[B, heads, N, d]``, and ``[B, heads, M, d]`` for the keys.
        shape, keys: height and width of the maps of the queries and keys.
        reduction, rate: see `visionattn.layers.spatial_reduction`.
    """
    of_query, of_key = _groups(shape, reduction, rate), _groups(keys, 1, rate)
    head_dim = op.Sqrt(op.CastLike(op.Squeeze(size(q, 3)), q))
    transposed = op.Transpose(op.Div(k, head_dim), perm=[0, 1, 3, 2])
    parts, order = [], []
    for group in range(rate * rate):
        number_of = op.Constant(value_int=group)
        queries = op.Squeeze(op.NonZero(op.Equal(of_query, number_of)), ints(0))
        same = op.Cast(op.Equal(of_key, number_of), to=INT64)
        empty = op.Equal(op.ReduceMax(same, keepdims=0), op.Constant(value_int=0))
        chosen = op.Squeeze(op.NonZero(op.Or(op.Cast(same, to=BOOL), empty)), ints(0))
        scores = op.MatMul(op.Gather(q, queries, axis=2), op.Gather(transposed, chosen, axis=3))
        parts.append(op.MatMul(op.Softmax(scores, axis=-1), op.Gather(v, chosen, axis=2)))
        order.append(queries)
    back = op.Concat(*order, axis=0)
    positions = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(back)), op.Constant(value_int=1))
    return op.Gather(op.Concat(*parts, axis=2), op.ScatterElements(back, back, positions, axis=0), axis=2)


def _groups(sides: Sequence[Any], cell: int, rate: int) -> Any:
    """Return the group of each position of a map, int64 ``[H * W]``."""
    rows, columns = (
        op.Mod(
            op.Div(op.Range(op.Constant(value_int=0), scalar(side), op.Constant(value_int=1)), ints(cell)), ints(rate)
        )
        for side in sides
    )
    grid = op.Add(op.Unsqueeze(op.Mul(rows, ints(rate)), ints(1)), op.Unsqueeze(columns, ints(0)))
    return op.Reshape(grid, ints(-1))
