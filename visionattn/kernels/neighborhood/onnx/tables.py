"""Queries, keys and values as tables of rows, one for each position and head, in an ONNX graph."""

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxscript import opset18 as op

from visionattn.kernels.onnx_values import ints, size

__all__ = ["Table", "make_tables"]


@dataclass(frozen=True)
class Table:
    """Where the rows of a tensor ``[B, *spatial, heads, d]`` are.

    Attributes:
        rows: value ``[B, rows, d]``.
        source: value from which the lengths of the axes are taken: ``[B, *spatial, heads, d]``, or, of a projection,
            ``[B, *spatial, 3, heads, d]``.
        slot: index of the tensor in the projection; 0 for others.
        slots: 3 for projections; 1 for others.
    """

    rows: Any
    source: Any
    slot: int
    slots: int

    @property
    def heads(self) -> Any:
        return size(self.source, -2)

    @property
    def depth(self) -> Any:
        return size(self.source, -1)


def make_tables(q: Any, k: Any, v: Any) -> list[Table]:
    """Return the tables of queries, keys and values.

    If they are the parts of one projection, it is used directly, since cutting it into parts copies it.
    """
    sources = [_part(x) for x in (q, k, v)]
    first = sources[0]
    if first is not None and all(part is not None and part[0] is first[0] for part in sources):
        rows = _rows(first[0])
        return [Table(rows, first[0], slot, 3) for _, slot in sources]
    return [Table(_rows(x), x, 0, 1) for x in (q, k, v)]


def _rows(x: Any) -> Any:
    return op.Reshape(x, op.Concat(size(x, 0), ints(-1), size(x, -1), axis=0))


def _part(x: Any) -> tuple[Any, int] | None:
    """Return the projection ``[..., 3, heads, d]`` of which ``unbind(-3)`` gives this part, and its index, or None."""
    node = x.producer()
    cut = node.inputs[0].producer() if node is not None and node.op_type == "Squeeze" else None
    if cut is None or cut.op_type != "Slice" or len(cut.inputs) != 4:
        return None
    given = [ir.convenience.get_const_tensor(value) for value in (*cut.inputs[1:], node.inputs[1])]
    if any(tensor is None for tensor in given):
        return None
    start, end, axis, squeezed = (tensor.numpy().reshape(-1).tolist() for tensor in given)
    source = cut.inputs[0]
    shape = source.shape
    if axis != [-3] or squeezed != [-3] or len(start) != 1 or end != [start[0] + 1] or shape is None or shape[-3] != 3:
        return None
    return source, start[0]
