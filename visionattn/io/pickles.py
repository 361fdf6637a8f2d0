"""Read pickles of plain data without executing code: containers, numbers, strings and NumPy arrays.

mmdetection3d stores its lists of frames as pickles, which can call any function when they are loaded. Here, any name
other than those needed for NumPy arrays is rejected before it is imported. The opcodes are checked beforehand, because
Python's unpickler allocates memory before it checks the data: five bytes that store a value at memo index 2^28 allocate
four gigabytes.
"""

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError

__all__ = ["read_plain_pickle"]

_LARGEST = 4 << 30  # bytes of a file


def read_plain_pickle(path: str | Path) -> Any:
    """Read a pickle of plain data.

    Raises:
        DataError: the file is missing or truncated, or contains another type, which the message names.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise DataError(f"{path}: has {size} bytes; the limit is {_LARGEST}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        _check_opcodes(data)
        return _Plain(data).load()
    except _RefusedError as error:
        raise DataError(
            f"{path}: contains {error}; only containers, numbers, strings and NumPy arrays are supported"
        ) from None
    except Exception as error:  # a malformed stream can raise anything
        text = " ".join(str(error).split())
        raise DataError(f"{path}: damaged, truncated or not a pickle ({type(error).__name__}: {text})") from error


_PLAIN = rb"[()01N\]}abdelstuR\x85-\x89\x8f-\x91\x93\x94]"  # no NEWOBJ, INST, OBJ, persistent or extension codes
_STEP = 1000
_LENGTHS = {
    0x58: 4, 0x54: 4, 0x42: 4, 0x8B: 4, 0x55: 1, 0x43: 1, 0x8C: 1, 0x8A: 1, 0x8D: 8, 0x8E: 8, 0x96: 8,
}  # fmt: skip
"""Opcodes followed by a length, with the number of bytes of the length; that many bytes of data follow."""


def _steps(size: int) -> re.Pattern[bytes]:
    """A pattern for many opcodes of fixed length at once; memo indices must not exceed the size of the file."""
    small, large = rb"..[\x00-\x%02x]\x00", rb"...[\x00-\x%02x]"  # numbers are little-endian
    number = small % (size >> 16) if size < 1 << 24 else large % min(size >> 24, 255)
    digits = rb"\d{1,%d}\n" % len(str(size))
    fixed = (
        _PLAIN, rb"[Khq\x80].", rb"M..", rb"[Jj].{4}", rb"[G\x95].{8}", rb"r" + number, rb"[pg]" + digits,
        rb"[IFLVS][^\n]*\n", rb"c[^\n]*\n[^\n]*\n",
    )  # fmt: skip
    # without a limit on repetitions the matcher would store millions of steps
    return re.compile(rb"(?:" + rb"|".join(fixed) + rb"){1,%d}" % _STEP, re.DOTALL)


def _check_opcodes(data: bytes) -> None:
    """Check the opcodes of a pickle.

    Raises:
        ValueError: an opcode that pickles of plain data do not contain, or a length that exceeds the data.
    """
    steps, at, end = _steps(len(data)), 0, len(data)
    while at < end:
        if found := steps.match(data, at):
            at = found.end()
            continue
        code = data[at]
        if code == 0x2E:
            return
        width = _LENGTHS.get(code)
        if width is None:
            raise ValueError(f"the opcode {data[at : at + 5]!r} at byte {at} is not allowed in plain data")
        at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")
    raise ValueError("ends before the STOP opcode")


class _RefusedError(Exception):
    """The pickle contains a type that is not allowed."""


class _MemoryBudget:
    """Remaining bytes that may be allocated. A pickle can copy a value many times at a cost of a few bytes each."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _RefusedError("arrays, sets or bytes larger than the file")


class _Array:
    """Placeholder for an array until its content is read; NumPy's own would accept any dtype built by the pickle."""

    def __init__(self, room: _MemoryBudget, value: np.ndarray | None = None) -> None:
        self.room, self.value = room, value

    def __setstate__(self, state: Any) -> None:
        if self.value is not None:
            raise _RefusedError("a modified array")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, str)):
            raise _RefusedError("an array of objects")
        self.room.take(len(data))
        if isinstance(data, str):
            data = data.encode("latin1")
        self.value = _from_bytes(data, dtype, tuple(shape), "F" if fortran else "C")


def _dtype(room: _MemoryBudget, name: Any, *_: Any) -> Any:
    kind = np.dtype(name) if isinstance(name, str) else None
    if kind is None or kind.kind not in "biufcSU":
        raise _RefusedError(f"arrays of {name!r}")
    return _Dtype(kind)


class _Dtype:
    """A dtype of numbers or text; its byte order is set later."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        _, order, subtype, names, fields, *_ = state
        if subtype is not None or names is not None or fields is not None:
            raise _RefusedError("structured arrays")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


def _reconstruct(room: _MemoryBudget, cls: Any, *_: Any) -> _Array:
    if not (isinstance(cls, _Maker) and cls._function is _ndarray):
        raise _RefusedError("an array of an unknown type")
    return _Array(room)


def _frombuffer(room: _MemoryBudget, data: Any, dtype: Any, shape: Any, order: str = "C") -> _Array:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise _RefusedError("an array of objects")
    room.take(len(data))
    return _Array(room, _from_bytes(data, dtype, tuple(shape), order))


def _scalar(room: _MemoryBudget, dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _Dtype):
        raise _RefusedError("a number of an unknown type")
    room.take(len(data))
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.dtype, 1)[0]


def _from_bytes(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy()  # type: ignore[call-overload]


def _ndarray(room: _MemoryBudget, *_: Any) -> Any:
    raise _RefusedError("an array constructed in an unsupported way")


def _set(room: _MemoryBudget, items: Any = ()) -> set:
    if not isinstance(items, (list, tuple)):
        raise _RefusedError("a set constructed in an unsupported way")
    room.take(len(items))
    return set(items)


def _bytes(room: _MemoryBudget, *content: Any) -> bytes:
    if content:
        raise _RefusedError("bytes constructed in an unsupported way")
    return b""


class _Maker:
    """A function that a pickle may call; unlike for a plain function, the pickle cannot set its attributes."""

    __slots__ = ("_function", "_room")

    def __init__(self, function: Callable[..., Any], room: _MemoryBudget) -> None:
        self._function, self._room = function, room

    def __call__(self, *args: Any) -> Any:
        return self._function(self._room, *args)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("a modified function")


_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric", "numpy")
_NAMES = {
    "_reconstruct": _reconstruct, "scalar": _scalar, "_frombuffer": _frombuffer, "dtype": _dtype, "ndarray": _ndarray
}  # fmt: skip
_BUILTINS = {"set": _set, "frozenset": _set, "bytes": _bytes}  # protocol 2 stores empty bytes as a call


class _Plain(pickle.Unpickler):
    """Resolves only the names used to pickle NumPy arrays, sets and bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # for NumPy arrays pickled by Python 2
        self.room = _MemoryBudget(2 * len(data) + 4096)  # bytes stored as text exist as both for a while

    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _NAMES:
            return _Maker(_NAMES[name], self.room)
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _Maker(_BUILTINS[name], self.room)
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 stores bytes
            return _Maker(_encode, self.room)
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("a reference to data outside the file")

    def load(self) -> Any:
        content = super().load()  # kept alive, so that no id is reused during the comparisons
        return _resolve(content, {})


def _encode(room: _MemoryBudget, text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("encoded text")
    room.take(len(text))
    return text.encode("latin1")


def _resolve(value: Any, seen: dict[int, Any]) -> Any:
    """Replace placeholders by arrays."""
    if isinstance(value, _Array):
        if value.value is None:
            raise _RefusedError("an array without content")
        return value.value
    if isinstance(value, (_Dtype, _Maker)):
        raise _RefusedError("a type")
    if id(value) in seen:
        return seen[id(value)]
    if isinstance(value, list):
        seen[id(value)] = value
        value[:] = [_resolve(entry, seen) for entry in value]
    elif isinstance(value, dict):
        seen[id(value)] = value
        for key in list(value):
            if _resolve(key, seen) is not key:
                raise _RefusedError("a key that is not a plain value")
            value[key] = _resolve(value[key], seen)
    elif isinstance(value, tuple):
        new = tuple(_resolve(entry, seen) for entry in value)
        # stored, so that nested tuples of the same tuple are visited once instead of 2^n times
        seen[id(value)] = value if all(a is b for a, b in zip(new, value, strict=True)) else new
        return seen[id(value)]
    elif isinstance(value, (set, frozenset)):
        seen[id(value)] = value
        for entry in value:
            if _resolve(entry, seen) is not entry:
                raise _RefusedError("a set of values that are not plain")
    return value
