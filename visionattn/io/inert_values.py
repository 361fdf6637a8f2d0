"""Convert the descriptions of a parsed pickle to tensors, numbers, strings, lists and dicts."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visionattn.errors import CheckpointError
from visionattn.io.inert_pickle import Call, Global, Mapping_, PickleError, Reference
from visionattn.io.weights import EXPANDED, check_tensor

__all__ = ["Values", "storage_type"]

_DEPTH = 100  # levels of nested containers
_NODES = 1_000_000  # values; a pickle may refer to one container many times, which is copied each time

_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128, "Untyped": None,
}  # fmt: skip
_TORCH_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

_DICTS = {
    "collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict", "__builtin__.dict",
    "mmengine.config.config.ConfigDict", "mmengine.config.ConfigDict", "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict", "addict.Dict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode",
    "detectron2.config.config.CfgNode", "easydict.EasyDict",
}  # fmt: skip
_LISTS = {
    "builtins.list", "builtins.tuple", "builtins.set", "builtins.frozenset", "__builtin__.list", "__builtin__.tuple",
    "__builtin__.set", "__builtin__.frozenset", "collections.deque", "torch.Size",
}  # fmt: skip
_NAMESPACES = {"argparse.Namespace", "types.SimpleNamespace"}
_HISTORY = {"mmengine.logging.history_buffer.HistoryBuffer", "mmengine.logging.HistoryBuffer"}
_PATHS = {f"pathlib.{kind}" for kind in ("PosixPath", "PurePosixPath", "WindowsPath", "Path")}
_NUMPY = ("numpy.core.multiarray.", "numpy._core.multiarray.", "numpy.core.numeric.", "numpy._core.numeric.")
_REBUILD = "torch._utils._rebuild_"


class _Dropped:
    """In the place of an object that is not plain."""


_DROPPED = _Dropped()


def storage_type(reference: Reference) -> tuple[str, torch.dtype | None]:
    """Return the key and the dtype of a storage; None for bytes.

    Raises:
        PickleError: the reference is not one of PyTorch's to a storage.
    """
    content = reference.content
    if not (isinstance(content, tuple) and len(content) >= 5 and content[0] == "storage"):
        raise PickleError("a reference to unknown data outside of the pickle")
    kind, key = content[1], content[2]
    name = kind.name.rsplit(".", 1)[-1].removesuffix("Storage") if isinstance(kind, Global) else ""
    if name not in _DTYPES or not isinstance(key, str) or (len(content) > 5 and content[5] is not None):
        raise PickleError(f"a storage of the type {getattr(kind, 'name', kind)!r}")
    return key, _DTYPES[name]


class Values:
    """Converts parsed values to plain ones.

    Args:
        storage: returns the bytes of a storage by its key, or None.
        size: bytes of the file. Arrays and tensors must not need much more.

    Attributes:
        dropped: types of objects that were dropped, and their number.
    """

    def __init__(self, storage: Callable[[str], bytearray | None], size: int) -> None:
        self.dropped: Counter[str] = Counter()
        self._storage, self._size = storage, size
        self._bytes_left, self._nodes = 4 * size + EXPANDED, 0
        self._tensors: dict[int, Any] = {}  # tensors by the identity of their descriptions, which the caller keeps

    def is_dropped(self, value: Any) -> bool:
        """Return True for the placeholder of a dropped object."""
        return value is _DROPPED

    def plain(self, value: Any, depth: int = 0) -> Any:
        """Convert a value of `visionattn.io.inert_pickle.parse`.

        Raises:
            PickleError: the value is nested too deeply, or larger than the file.
        """
        self._nodes += 1
        if depth > _DEPTH or self._nodes > _NODES:
            raise PickleError("values nested in themselves, or too many times in each other")
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (bytes, bytearray)):
            self._take(len(value))
            return bytes(value)
        if isinstance(value, (list, tuple)):
            entries = [self.plain(entry, depth + 1) for entry in value]
            return type(value)(entry for entry in entries if entry is not _DROPPED)
        if isinstance(value, Mapping_):
            return self._dict(value.pairs, depth)
        if isinstance(value, Call):
            return self._call(value, depth)
        if isinstance(value, Global) and value.name in _TORCH_DTYPES:
            return value.name
        return self._drop(value)

    def _dict(self, pairs: list[tuple[Any, Any]], depth: int) -> dict:
        result = {}
        for key, entry in pairs:
            key = self.plain(key, depth + 1)
            if not isinstance(key, (str, int, float, bool, bytes, type(None))):
                self._drop(Global("a key that is not plain"))
                continue
            entry = self.plain(entry, depth + 1)
            if entry is not _DROPPED:
                result[key] = entry
        return result

    def _drop(self, value: Any) -> _Dropped:
        for _ in range(_DEPTH):
            value = value.function if isinstance(value, Call) else value
        name = value.name if isinstance(value, Global) else "an unknown object"
        self.dropped[name if name.isprintable() else repr(name)] += 1
        return _DROPPED

    def _call(self, call: Call, depth: int) -> Any:
        name = call.function.name if isinstance(call.function, Global) else ""
        if name in _DICTS:
            given = [a for a in call.arguments if isinstance(a, (Mapping_, list))]
            pairs = given[0].pairs if given and isinstance(given[0], Mapping_) else []
            if given and isinstance(given[0], list):
                pairs = [tuple(p) for p in given[0] if isinstance(p, (list, tuple)) and len(p) == 2]
            return self._dict([*pairs, *call.pairs], depth)
        if name in _LISTS:
            first = call.arguments[0] if call.arguments and isinstance(call.arguments[0], (list, tuple)) else ()
            return self.plain([*first, *call.entries], depth)
        if name in _NAMESPACES and isinstance(call.state, Mapping_):
            return self._dict(call.state.pairs, depth)
        if name in _HISTORY and isinstance(call.state, Mapping_):
            names = {"_log_history": "values", "_count_history": "counts"}
            found = {names[k]: self.plain(v, depth + 1) for k, v in call.state.pairs if k in (*names,)}
            if len(found) == 2 and all(isinstance(v, Tensor) for v in found.values()):
                return {key: value.double() for key, value in found.items()}
            return self._drop(call)
        if name in _PATHS and all(isinstance(part, str) for part in call.arguments):
            return "/".join(call.arguments).replace("//", "/", 1)
        if name == "torch.device" and call.arguments and isinstance(call.arguments[0], str):
            return ":".join(str(part) for part in call.arguments[:2])
        if (data := self._bytes(call)) is not None:
            self._take(len(data))
            return data
        if id(call) not in self._tensors:
            try:
                self._tensors[id(call)] = self._array(call, name)
            except (ValueError, TypeError, OverflowError, RuntimeError, CheckpointError) as error:
                raise PickleError(f"an invalid tensor or array ({' '.join(str(error).split())[:100]})") from error
        found = self._tensors[id(call)]
        return self._drop(call) if found is None else found

    def _take(self, count: int) -> None:
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise PickleError("arrays or tensors that need more memory than the file has")

    def _bytes(self, value: Any) -> bytes | None:
        """Return the bytes that a value or a call describes, or None; protocol 2 stores bytes as text."""
        if isinstance(value, (bytes, bytearray)):
            return bytes(value)
        if not isinstance(value, Call) or not isinstance(value.function, Global):
            return None
        name, arguments = value.function.name, value.arguments
        if name in ("builtins.bytes", "__builtin__.bytes", "builtins.bytearray", "__builtin__.bytearray"):
            if not arguments:
                return b""
            if len(arguments) == 1:
                return self._bytes(arguments[0])
        elif name != "_codecs.encode":
            return None
        if len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] in ("latin1", "latin-1"):
            return arguments[0].encode("latin1")
        return None

    def _array(self, call: Call, name: str) -> Any:
        """Return a tensor, a number or a list of strings; None for other calls."""
        if name.startswith(_REBUILD) or name == "torch._tensor._rebuild_from_type_v2":
            return self._tensor(call, name)
        if not name.startswith(_NUMPY):
            return None
        kind, arguments = name.rsplit(".", 1)[-1], call.arguments
        if kind == "scalar" and arguments:
            dtype = self._dtype(arguments[0])
            data = self._buffer(arguments[1]) if len(arguments) > 1 else b"\0" * (dtype.itemsize if dtype else 0)
            return None if dtype is None else np.frombuffer(data, dtype, 1)[0].item()
        if kind == "_reconstruct" and isinstance(call.state, tuple) and len(call.state) >= 5:
            _, shape, dtype, fortran, data = call.state[-5:]
            return self._numpy(data, dtype, shape, "F" if fortran is True else "C")
        if kind == "_frombuffer" and len(arguments) >= 3:
            order = "F" if len(arguments) > 3 and arguments[3] == "F" else "C"
            return self._numpy(arguments[0], arguments[1], arguments[2], order)
        return None

    def _numpy(self, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
        dtype = self._dtype(dtype)
        if dtype is None or not isinstance(shape, tuple):
            return None
        data = self._buffer(data)
        array = np.frombuffer(data, dtype).reshape(shape, order=order)
        if dtype.kind in "SU":
            return array.tolist() if array.size < _NODES else None
        return torch.from_numpy(np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=True)))

    def _buffer(self, value: Any) -> bytes:
        data = value.encode("latin1") if isinstance(value, str) else self._bytes(value)  # text by Python 2
        if data is None:
            raise ValueError("an array of objects")
        self._take(len(data))
        return data

    def _dtype(self, value: Any) -> np.dtype | None:
        """Return the dtype of numbers or text that a value describes, or None."""
        if not isinstance(value, Call) or value.function != Global("numpy.dtype") or not value.arguments:
            return None
        name = value.arguments[0]
        if not isinstance(name, str) or len(name) > 12:
            return None
        try:
            dtype = np.dtype(name)
        except TypeError:
            return None
        if dtype.kind not in "biufcSU" or dtype.itemsize > 1 << 20 or dtype.char in "gG":
            return None
        order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "="
        return dtype.newbyteorder(">") if order == ">" else dtype

    def _tensor(self, call: Call, name: str) -> Tensor | None:
        arguments = call.arguments
        if name == "torch._tensor._rebuild_from_type_v2" and len(arguments) >= 3:  # a subclass of Tensor
            function = arguments[0].name if isinstance(arguments[0], Global) else ""
            return self._tensor(Call(arguments[0], list(arguments[2])), function)
        if name in (f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state") and arguments:
            inner = arguments[0]
            found = self.plain(inner) if isinstance(inner, Call) else None
            return found if isinstance(found, Tensor) else None
        if name == f"{_REBUILD}device_tensor_from_numpy" and arguments:
            found = self.plain(arguments[0])
            return found if isinstance(found, Tensor) else None
        if name not in (f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2", f"{_REBUILD}tensor_v3") or len(arguments) < 4:
            return None
        reference, offset, size, stride = arguments[:4]
        if not isinstance(reference, Reference):
            return None
        key, dtype = storage_type(reference)
        if dtype is None:  # bytes, with the dtype among the arguments
            dtype = next((_TORCH_DTYPES.get(a.name) for a in arguments[4:] if isinstance(a, Global)), None)
        data = self._storage(key)
        if data is None or dtype is None:
            raise ValueError("a tensor whose data is missing")
        return self._view(data, dtype, offset, tuple(size), tuple(stride))

    def _view(self, data: bytearray, dtype: torch.dtype, offset: Any, size: tuple, stride: tuple) -> Tensor:
        numbers = (offset, *size, *stride)
        if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError("the shape of a tensor is invalid")
        held = len(data) // dtype.itemsize
        count, last = 1, offset
        for n, step in zip(size, stride, strict=True):
            count *= n
            last += (n - 1) * step
        self._take(count * dtype.itemsize)
        if count == 0:
            return torch.empty(size, dtype=dtype)
        if last >= held:
            raise ValueError("a tensor that is larger than its data")
        found = torch.frombuffer(data, dtype=dtype, count=held).as_strided(size, stride, offset)
        check_tensor(found, "the file")
        return found
