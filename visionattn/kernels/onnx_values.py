"""Values of ONNX graphs that the ONNX implementations of operators have in common. Importing it imports onnxscript."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnxscript import opset18 as op

__all__ = ["INT64", "cast_like", "ints", "number", "scalar", "size", "vector"]

INT64 = 7
"""Number of the data type int64 in ONNX."""


def ints(*values: int) -> Any:
    """Return an int64 vector of constants."""
    return op.Constant(value_ints=list(values))


def number(value: float, x: Any) -> Any:
    """Return a scalar with the data type of another value; float32 if it is not known."""
    return op.Constant(value=ir.tensor(value, dtype=x.dtype or ir.DataType.FLOAT))


def cast_like(value: Any, x: Any) -> Any:
    """Return a float32 value with the data type of another one."""
    return value if x.dtype in (None, ir.DataType.FLOAT) else op.CastLike(value, x)


def vector(values: Sequence[Any]) -> Any:
    """Return sizes, some of them symbolic, as one int64 vector."""
    parts = [ints(v) if isinstance(v, int) else op.Reshape(op.Cast(v, to=INT64), ints(1)) for v in values]
    return parts[0] if len(parts) == 1 else op.Concat(*parts, axis=0)


def scalar(value: Any) -> Any:
    """Return a size, an integer or a symbolic one, as an int64 scalar."""
    return op.Constant(value_int=value) if isinstance(value, int) else op.Squeeze(vector([value]))


def size(x: Any, start: int, end: int | None = None) -> Any:
    """Return the lengths of the axes from `start` to before `end`, as a vector; without `end`, of one axis."""
    if end is None and start != -1:
        end = start + 1
    return op.Shape(x, start=start) if end is None else op.Shape(x, start=start, end=end)
