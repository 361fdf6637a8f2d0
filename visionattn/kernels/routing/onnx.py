"""Attention of regions to their selected regions, of standard ONNX operators. Importing it imports onnxscript.

Maps ``[B, H, W, heads, d]`` are read as tables of rows of ``d`` numbers, so that padding, division into regions and
selection are a single gather of rows, after which the products need no transposed copies.
"""

from typing import Any

from onnxscript import opset18 as op

from visionattn.kernels.onnx_values import ints, number, scalar, size

__all__ = ["routing_attention"]

LOWEST = -3e38
"""Added to the scores of padding; finite, so that the softmax of a region that selects only padding is not NaN."""


def routing_attention(q, k, v, key_regions, padding_mask, rows, columns, scale: float):
    """Build the graph of the operator ``visionattn::routing_attention``; arguments as in `reference.attend_reference`.

    Sizes may be symbolic.
    """
    regions = (scalar(rows), scalar(columns))
    one, zero = scalar(1), scalar(0)
    heads = op.Squeeze(size(q, -2))
    head = op.Range(zero, heads, one)
    places, _, spans = _regions(q, regions)
    key_places, inside, _ = _regions(k, regions)
    # rows of the queries, [heads, regions, tokens]
    at_q = op.Add(op.Mul(places, heads), op.Unsqueeze(head, ints(1, 2)))
    queries = op.Gather(op.Reshape(q, op.Concat(size(q, 0), ints(-1), size(q, -1), axis=0)), at_q, axis=1)
    # positions of the keys over the whole batch, [B, regions, keys]
    batch = op.Squeeze(size(q, 0))
    total = op.Mul(op.Squeeze(size(k, 1)), op.Squeeze(size(k, 2)))
    image = op.Unsqueeze(op.Mul(op.Range(zero, batch, one), total), ints(1, 2))
    chosen_shape = op.Concat(op.Shape(key_regions, start=0, end=2), ints(-1), axis=0)
    chosen = op.Add(op.Reshape(op.Gather(key_places, key_regions, axis=0), chosen_shape), image)
    at_k = op.Add(op.Mul(op.Unsqueeze(chosen, ints(1)), heads), op.Unsqueeze(head, ints(1, 2)))
    keys, values = (
        op.Gather(op.Reshape(x, op.Concat(ints(-1), size(x, -1), axis=0)), at_k, axis=0) for x in (k, v)
    )  # [B, heads, regions, keys, d]
    scores = op.MatMul(op.Mul(queries, number(scale, q)), op.Transpose(keys, perm=[0, 1, 2, 4, 3]))
    shown = None
    if padding_mask is not None or not _divides(k, rows, columns):
        shown = op.Reshape(op.Gather(inside, key_regions, axis=0), chosen_shape)
        if padding_mask is not None:
            whole = op.Concat(size(q, 0), op.Shape(k, start=1, end=3), axis=0)
            mask = op.Reshape(op.Expand(padding_mask, whole), ints(-1))
            shown = op.And(shown, op.Not(op.Gather(mask, chosen, axis=0)))
        hidden = op.Where(shown, number(0.0, q), number(LOWEST, q))
        scores = op.Add(scores, op.Unsqueeze(hidden, ints(1, 3)))
    out = op.MatMul(op.Softmax(scores, axis=-1), values)
    if shown is not None:
        something = op.Cast(op.ReduceMax(op.Cast(shown, to=6), ints(-1), keepdims=1), to=9)
        out = op.Where(op.Unsqueeze(something, ints(1, 3)), out, number(0.0, q))
    return _join(q, v, out, head, regions, spans)


def _divides(x: Any, rows: Any, columns: Any) -> bool:
    """Return True if it is known that the regions divide the map."""
    given = (*x.shape[1:3], rows, columns)
    return all(isinstance(n, int) for n in given) and given[0] % rows == 0 and given[1] % columns == 0


def _regions(x: Any, regions: tuple[Any, Any]) -> tuple[Any, Any, tuple[Any, Any]]:
    """Positions of the tokens of each region ``[regions, tokens]``, whether they are inside the map, and the spans."""
    zero, one = scalar(0), scalar(1)
    axes, spans = [], []
    for axis, count in enumerate(regions):
        length = op.Squeeze(size(x, axis + 1))
        span = op.Div(op.Add(length, op.Sub(count, one)), count)
        place = op.Reshape(
            op.Range(zero, op.Mul(count, span), one), op.Concat(ints(-1), op.Reshape(span, ints(1)), axis=0)
        )
        axes.append((op.Min(place, op.Sub(length, one)), op.Less(place, length)))
        spans.append(span)
    (y, is_y), (column, is_x) = axes
    over = [op.Unsqueeze(value, ints(1, 3)) for value in (op.Mul(y, op.Squeeze(size(x, 2))), is_y)]
    under = [op.Unsqueeze(value, ints(0, 2)) for value in (column, is_x)]
    shape = op.Concat(op.Reshape(op.Mul(*regions), ints(1)), ints(-1), axis=0)
    places = op.Reshape(op.Add(over[0], under[0]), shape)
    return places, op.Reshape(op.And(over[1], under[1]), shape), (spans[0], spans[1])


def _join(q: Any, v: Any, out: Any, head: Any, regions: tuple[Any, Any], spans: tuple[Any, Any]) -> Any:
    """Bring ``[B, heads, regions, tokens, d]`` back into the order of the map ``[B, H, W, heads, d]``."""
    zero, one = scalar(0), scalar(1)
    y, x = (op.Range(zero, op.Squeeze(size(q, axis)), one) for axis in (1, 2))
    y = op.Unsqueeze(y, ints(1))
    region = op.Add(op.Mul(op.Div(y, spans[0]), regions[1]), op.Div(x, spans[1]))
    token = op.Add(op.Mul(op.Mod(y, spans[0]), spans[1]), op.Mod(x, spans[1]))
    count = op.Mul(*spans)
    first = op.Mul(head, op.Mul(op.Mul(*regions), count))
    index = op.Add(op.Unsqueeze(op.Add(op.Mul(region, count), token), ints(2)), first)  # [H, W, heads]
    return op.Gather(op.Reshape(out, op.Concat(size(q, 0), ints(-1), size(v, -1), axis=0)), index, axis=1)
