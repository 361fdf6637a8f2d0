"""Reads pickled data without running anything: plain containers, numbers, strings and NumPy arrays, and nothing else.

mmdetection3d writes its lists of frames as pickles, and a pickle can call any function when it is read. Here a name
that is not of a NumPy array is refused before it is looked up.
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
    """The content of a pickle of plain data.

    Raises:
        DataError: the file is missing or cut short, or needs any other type, which is named.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _LARGEST:
            raise DataError(f"{path}: has {size} bytes; {_LARGEST} is the most")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        _check_opcodes(data)
        return _Plain(data).load()
    except _RefusedError as error:
        raise DataError(
            f"{path}: holds {error}, which is refused: only containers, numbers, strings and NumPy arrays are read"
        ) from None
    except Exception as error:  # a malformed stream can raise anything
        text = " ".join(str(error).split())
        raise DataError(f"{path}: is no readable pickle, or is cut short ({type(error).__name__}: {text})") from error


_PLAIN = rb"[()01N\]}abdelstuR\x85-\x89\x8f-\x91\x93\x94]"  # no NEWOBJ, INST, OBJ, persistent or extension codes
_STEP = 1000
_LENGTHS = {
    0x58: 4, 0x54: 4, 0x42: 4, 0x8B: 4, 0x55: 1, 0x43: 1, 0x8C: 1, 0x8A: 1, 0x8D: 8, 0x8E: 8, 0x96: 8,
}  # fmt: skip
"""Codes that are followed by a length of so many bytes, and then by as many bytes as that says."""


def _steps(size: int) -> re.Pattern[bytes]:
    """Many instructions of fixed length at once; those that keep a value have numbers of the size of the file."""
    small, large = rb"..[\x00-\x%02x]\x00", rb"...[\x00-\x%02x]"  # with the upper bytes of a number last
    number = small % (size >> 16) if size < 1 << 24 else large % min(size >> 24, 255)
    digits = rb"\d{1,%d}\n" % len(str(size))
    fixed = (
        _PLAIN, rb"[Khq\x80].", rb"M..", rb"[Jj].{4}", rb"[G\x95].{8}", rb"r" + number, rb"[pg]" + digits,
        rb"[IFLVS][^\n]*\n", rb"c[^\n]*\n[^\n]*\n",
    )  # fmt: skip
    # without an end to the repetition the matcher would keep each step of millions
    return re.compile(rb"(?:" + rb"|".join(fixed) + rb"){1,%d}" % _STEP, re.DOTALL)


def _check_opcodes(data: bytes) -> None:
    """Look through the instructions of a pickle.

    Raises:
        ValueError: one that pickles of plain data do not have, or one that claims more than the data holds.
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
            raise ValueError(f"the instruction {data[at : at + 5]!r} at byte {at} is not of plain data")
        at += 1 + width + int.from_bytes(data[at + 1 : at + 1 + width], "little")
    raise ValueError("ends in the middle")


class _RefusedError(Exception):
    """A type that is not plain."""


class _Room:
    """Bytes that may still be made. A pickle can name what it has read again and again, at some bytes for each copy."""

    def __init__(self, left: int) -> None:
        self.left = left

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise _RefusedError("arrays, sets or bytes that are larger than the file")


class _Array:
    """Stands for an array until its content is there; NumPy's own would take any dtype that a pickle builds."""

    def __init__(self, room: _Room, value: np.ndarray | None = None) -> None:
        self.room, self.value = room, value

    def __setstate__(self, state: Any) -> None:
        if self.value is not None:
            raise _RefusedError("a changed array")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, str)):
            raise _RefusedError("an array of objects")
        self.room.take(len(data))
        if isinstance(data, str):
            data = data.encode("latin1")
        self.value = _from_bytes(data, dtype, tuple(shape), "F" if fortran else "C")


def _dtype(room: _Room, name: Any, *_: Any) -> Any:
    kind = np.dtype(name) if isinstance(name, str) else None
    if kind is None or kind.kind not in "biufcSU":
        raise _RefusedError(f"arrays of {name!r}")
    return _Dtype(kind)


class _Dtype:
    """A dtype of numbers or text, whose byte order comes later."""

    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        _, order, subtype, names, fields, *_ = state
        if subtype is not None or names is not None or fields is not None:
            raise _RefusedError("arrays of records")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


def _reconstruct(room: _Room, cls: Any, *_: Any) -> _Array:
    if not (isinstance(cls, _Maker) and cls._function is _ndarray):
        raise _RefusedError("an array of an unknown kind")
    return _Array(room)


def _frombuffer(room: _Room, data: Any, dtype: Any, shape: Any, order: str = "C") -> _Array:
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)):
        raise _RefusedError("an array of objects")
    room.take(len(data))
    return _Array(room, _from_bytes(data, dtype, tuple(shape), order))


def _scalar(room: _Room, dtype: Any, data: Any = b"") -> Any:
    if not isinstance(dtype, _Dtype):
        raise _RefusedError("a number of an unknown type")
    room.take(len(data))
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.dtype, 1)[0]


def _from_bytes(data: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order).copy()  # type: ignore[call-overload]


def _ndarray(room: _Room, *_: Any) -> Any:
    raise _RefusedError("an array of an unknown making")


def _set(room: _Room, items: Any = ()) -> set:
    if not isinstance(items, (list, tuple)):
        raise _RefusedError("a set of an unknown making")
    room.take(len(items))
    return set(items)


def _bytes(room: _Room, *content: Any) -> bytes:
    if content:
        raise _RefusedError("bytes of an unknown making")
    return b""


class _Maker:
    """A function that a pickle may call; unlike one, its attributes cannot be set from there."""

    __slots__ = ("_function", "_room")

    def __init__(self, function: Callable[..., Any], room: _Room) -> None:
        self._function, self._room = function, room

    def __call__(self, *args: Any) -> Any:
        return self._function(self._room, *args)

    def __setstate__(self, state: Any) -> None:
        raise _RefusedError("a changed function")


_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric", "numpy")
_NAMES = {
    "_reconstruct": _reconstruct, "scalar": _scalar, "_frombuffer": _frombuffer, "dtype": _dtype, "ndarray": _ndarray
}  # fmt: skip
_BUILTINS = {"set": _set, "frozenset": _set, "bytes": _bytes}  # protocol 2 writes empty bytes as a call


class _Plain(pickle.Unpickler):
    """Knows the names that NumPy's arrays are pickled by, and no other but sets."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")  # of NumPy's arrays from Python 2
        self.room = _Room(2 * len(data) + 4096)  # text that stands for bytes is both for a while

    def find_class(self, module: str, name: str) -> Any:
        if module in _MODULES and name in _NAMES:
            return _Maker(_NAMES[name], self.room)
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _Maker(_BUILTINS[name], self.room)
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes bytes
            return _Maker(_encode, self.room)
        raise _RefusedError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("a reference to something outside of the file")

    def load(self) -> Any:
        content = super().load()  # stays, so that no id of a part of it is given away while they are compared
        return _resolve(content, {})


def _encode(room: _Room, text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise _RefusedError("encoded text")
    room.take(len(text))
    return text.encode("latin1")


def _resolve(value: Any, seen: dict[int, Any]) -> Any:
    """The same content with real arrays in their places."""
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
                raise _RefusedError("a key that is no plain value")
            value[key] = _resolve(value[key], seen)
    elif isinstance(value, tuple):
        new = tuple(_resolve(entry, seen) for entry in value)
        # kept, for a tuple of tuples of tuples that are all the same one is looked at once and not 2^n times
        seen[id(value)] = value if all(a is b for a, b in zip(new, value, strict=True)) else new
        return seen[id(value)]
    elif isinstance(value, (set, frozenset)):
        seen[id(value)] = value
        for entry in value:
            if _resolve(entry, seen) is not entry:
                raise _RefusedError("a set of what is no plain value")
    return value
