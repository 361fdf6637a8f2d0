"""Extract tensors and plain values from checkpoints of any origin, without executing code from them.

Reads ``.pth`` files of PyTorch in both formats and pickles of NumPy arrays, as saved by mmcv, mmengine, detectron2 and
others, with any objects among their metadata. `visionattn.io.inert_pickle` parses the pickles; this module understands
the descriptions of tensors, arrays, numbers and containers, and drops all others with a report.
"""

import io
import math
import mmap
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from visionattn.errors import CheckpointError
from visionattn.io.inert_pickle import Mapping_, PickleError, Reference, parse
from visionattn.io.inert_values import Values, storage_type
from visionattn.io.weights import MAGIC, ZIP, check_file, entry_of, read, state_dict_of, verify, write_safetensors

__all__ = ["ConvertedFile", "convert_file", "read_any"]

_LONGEST = 4096  # numbers of an array in the metadata of a safetensors file


@dataclass
class ConvertedFile:
    """Result of `convert_file`.

    Attributes:
        out: the written file.
        tensors: number of weights.
        numbers: number of values in the weights.
        dropped: types of objects that were dropped, and their number.
        left_out: entries of the checkpoint that the file does not have, since safetensors files have only weights and
            metadata.
    """

    out: Path
    tensors: int
    numbers: int
    dropped: dict[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def convert_file(path: str | os.PathLike, out: str | os.PathLike | None = None) -> ConvertedFile:
    """Write the tensors and plain values of a checkpoint to a file that every command reads.

    Args:
        path: the checkpoint.
        out: a ``.safetensors`` file, with the weights and the metadata, or a ``.pth`` file, which also has the
            optimizer and other entries. By default the path with the suffix ``.safetensors``, which must not exist.

    Raises:
        CheckpointError: the checkpoint cannot be read, has no weights, or the file cannot be written.
    """
    path = Path(path).expanduser()
    target = Path(out).expanduser() if out is not None else path.with_suffix(".safetensors")
    if target.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"`out` {target}: must end in .safetensors or .pth")
    if target.exists() and (out is None or target.samefile(path)):
        raise CheckpointError(f"{target}: exists; give another file with `out`")
    content, dropped = read_any(path)
    weights = state_dict_of(content)
    if not weights:
        raise CheckpointError(f"{path}: has no weights by name; it may be a pickled model, which cannot be converted")
    left_out: tuple[str, ...] = ()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".safetensors":
            meta = content.get("meta") if isinstance(content.get("meta"), dict) else {}
            simple = {k: v for k, v in content.items() if isinstance(v, (str, int, float))}
            write_safetensors(temporary, weights, _json({**simple, **meta}), half=False)
            used = {"meta", entry_of(content)[0], *simple}
            left_out = tuple(str(k) for k, v in content.items() if k not in used and not isinstance(v, Tensor))
        else:
            torch.save(content, temporary)
            read(temporary)  # whatever it contains, it must be readable
        os.replace(temporary, target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return ConvertedFile(target, len(weights), sum(t.numel() for t in weights.values()), dropped, left_out)


def read_any(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, int]]:
    """Read the tensors and plain values of a checkpoint, with arrays as tensors.

    Returns:
        The checkpoint, and the number of dropped objects by their types.

    Raises:
        CheckpointError: the file is missing, damaged, or no checkpoint.
    """
    path = Path(path).expanduser()
    start = check_file(path)
    if path.suffix == ".safetensors":
        return read(path), {}
    if start.startswith(ZIP) and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: truncated, since the end of the zip file is missing; copy or download it again")
    try:
        if zipfile.is_zipfile(path):
            content, values = _read_zip(path)
        else:
            with path.open("rb") as file:
                content, values = _read_stream(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)
        plain = values.plain(content)
    except (PickleError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: damaged, truncated or not a checkpoint ({text})") from error
    if not isinstance(plain, dict):
        kind = "an object of an unknown class" if values.is_dropped(plain) else f"a {type(plain).__name__}"
        raise CheckpointError(f"{path}: contains {kind}, not a dict of weights")
    return plain, dict(values.dropped)


def _read_zip(path: Path) -> tuple[Any, Values]:
    verify(path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        main = next((name for name in names if name.endswith("data.pkl") and name.count("/") <= 1), None)
        if main is None:
            raise PickleError("a zip file without data.pkl, such as TorchScript of another version")
        start = main.removesuffix("data.pkl")
        order = archive.read(f"{start}byteorder") if f"{start}byteorder" in names else b"little"
        if order.strip() != b"little":
            raise PickleError(f"its byte order is {order[:20]!r}")
        content = parse(io.BytesIO(archive.read(main)))
        folder = f"{start}data/"
        storages = {n.removeprefix(folder): bytearray(archive.read(n)) for n in names if n.startswith(folder)}
    return content, Values(storages.get, path.stat().st_size)


def _read_stream(stream: BinaryIO, path: Path) -> tuple[Any, Values]:
    """Read a pickle, or the sequence of pickles and storages that PyTorch before 1.6 wrote."""
    size = path.stat().st_size
    content = parse(stream)
    if content != MAGIC:
        return content, Values(lambda key: None, size)
    version, info, content, keys = (parse(stream) for _ in range(4))
    if version != 1001 or not isinstance(info, Mapping_) or not isinstance(keys, list):
        raise PickleError(f"the format version {version!r} is not known")
    if dict(info.pairs).get("little_endian") is not True:
        raise PickleError("its byte order is not little-endian")
    widths = _item_sizes(content)
    storages: dict[str, bytearray] = {}
    for key in keys:
        head = stream.read(8)
        count = int.from_bytes(head, "little")
        if key not in widths or count * widths[key] > size:
            raise PickleError(f"the storage {str(key)[:40]!r} is larger than the file, or not used")
        storages[key] = bytearray(stream.read(count * widths[key]))
        if len(head) != 8 or len(storages[key]) != count * widths[key]:
            raise PickleError("ends within a tensor")
    return content, Values(storages.get, size)


def _item_sizes(content: Any) -> dict[str, int]:
    """Return the bytes per number of each storage that a parsed pickle refers to."""
    seen: set[int] = set()
    waiting, found = [content], {}
    while waiting:
        value = waiting.pop()
        if isinstance(value, (str, bytes, int, float, type(None))) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Reference):
            key, dtype = storage_type(value)
            found[key] = 1 if dtype is None else dtype.itemsize
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif isinstance(value, Mapping_):
            waiting.extend(part for pair in value.pairs for part in pair)
        elif hasattr(value, "arguments"):
            waiting.extend([*value.arguments, value.state, *value.entries])
            waiting.extend(part for pair in value.pairs for part in pair)
    return found


def _json(value: Any) -> Any:
    """Return the part of the metadata that JSON can represent."""
    if isinstance(value, dict):
        kept = {str(key): _json(entry) for key, entry in value.items()}
        return {key: entry for key, entry in kept.items() if entry is not _OMITTED}
    if isinstance(value, (list, tuple)):
        return [None if entry is _OMITTED else entry for entry in map(_json, value)]
    if isinstance(value, Tensor):
        return _json(value.tolist()) if value.numel() <= _LONGEST and not value.is_complex() else _OMITTED
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else _OMITTED


_OMITTED = object()
