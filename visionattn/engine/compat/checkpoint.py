"""Checkpoints of tensors and plain metadata: read with ``weights_only=True``, written atomically.

All weights files are opened by `visionattn.io.weights.read`. `install` replaces the loaders and the writer of mmengine
by `load` and `write`, so that mmdet and mmseg use them too.
"""

import os
import re
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mm
from torch import Tensor

from visionattn.errors import CheckpointError
from visionattn.io.cache import fetch, name_of
from visionattn.io.weights import read, state_dict_of

__all__ = [
    "adopted_arguments",
    "candidates",
    "install",
    "load",
    "meta_of",
    "newest",
    "plain",
    "read",
    "state_dict_of",
    "write",
    "write_text",
]


def meta_of(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metadata of a checkpoint; empty if there are none, or if they are malformed."""
    meta = checkpoint.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def adopted_arguments(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments that a backbone had adopted from published weights when a checkpoint was saved.

    Args:
        checkpoint: as returned by `read`; its metadata may contain anything.

    Returns:
        Values by key of the config, such as ``{"model.backbone.padding": "masked"}``.
    """
    given = meta_of(checkpoint).get("adopted")
    pairs = given.items() if isinstance(given, Mapping) else ()
    return {key: value for key, value in pairs if _is_word(key, _ARGUMENT) and _is_word(value, r"[\w-]{1,40}")}


_ARGUMENT = r"model\.(\w+\.)*backbone\.(?!type$|model_name$|pretrained$|init_cfg$)\w+"


def _is_word(value: Any, pattern: str) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


# --- writing ---------------------------------------------------------------------------------------------------


def plain(value: Any, where: str = "checkpoint") -> Any:
    """Convert a value to tensors, numbers, strings, lists, tuples and dicts.

    Args:
        value: also NumPy arrays, mmengine's log history, sets, dtypes, devices and paths, nested to any depth.
        where: name of the value, for error messages.

    Raises:
        CheckpointError: the value contains an object of another class.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        # Subclasses (enums, str subclasses) would be pickled by reference to their class.
        if type(value) in (type(None), bool, int, float, str, bytes):
            return value
        base = next(t for t in (bool, int, float, str, bytes) if isinstance(value, t))
        return base(value)
    if isinstance(value, Tensor):
        value = value.detach()
        value = (value.as_subclass(Tensor) if type(value) is not Tensor else value).cpu()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole else value.clone()  # torch.save writes the whole storage of a view
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype == object or value.dtype.kind in "US":
            return plain(value.tolist(), where)
        return torch.from_numpy(np.ascontiguousarray(value).copy())
    if isinstance(value, HistoryBuffer):
        values, counts = value.data
        return {
            "values": torch.tensor(np.asarray(values, dtype=np.float64)),
            "counts": torch.tensor(np.asarray(counts, dtype=np.float64)),
        }
    if isinstance(value, Mapping):
        result: dict = OrderedDict() if isinstance(value, OrderedDict) else {}
        for key, item in value.items():
            result[plain(key, where)] = plain(item, f"{where}.{key}")
        if hasattr(value, "_metadata"):  # module versions, which load_state_dict reads
            result._metadata = plain(value._metadata, where)  # type: ignore[attr-defined]
        return result
    if isinstance(value, tuple):
        return tuple(plain(item, where) for item in value)
    if isinstance(value, (list, set, frozenset)) or type(value).__name__ == "deque":
        return [plain(item, where) for item in value]
    if isinstance(value, (torch.dtype, torch.device, os.PathLike)):
        return str(value)
    raise CheckpointError(
        f"{where} contains a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved safely; "
        "remove it from the checkpoint or convert it to numbers and strings"
    )


def write(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Save a checkpoint atomically: at any time, ``path`` is either the old file or the complete new one.

    The content is written to a temporary file in the same folder, flushed to the disk, checked to contain no class
    other than tensors, and renamed to ``path``. Then the folder is flushed to the disk.

    Args:
        checkpoint: values that `plain` can convert.
        path: file to write. Missing folders are created.

    Raises:
        CheckpointError: the checkpoint contains other objects, or the file cannot be written.
    """
    content = plain(checkpoint)
    with _replacing(path) as (stream, temporary):
        torch.save(content, stream)
        stream.flush()
        if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(temporary):
            raise CheckpointError(f"{path}: not saved, reading it back would require the type {unsafe[0]}")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file atomically, as `write` does."""
    with _replacing(path) as (stream, _):
        stream.write(text.encode())


@contextmanager
def _replacing(path: str | os.PathLike) -> Iterator[tuple[IO[bytes], str]]:
    """Yield a temporary file that replaces ``path`` atomically if the block raises no error."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            yield stream, temporary
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp creates files that only their owner can read
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    except RuntimeError as error:  # raised by the zip writer of PyTorch if the disk is full
        raise CheckpointError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- finding ---------------------------------------------------------------------------------------------------

NUMBERED = re.compile(r"^(epoch|iter)_(\d+)\.pth$")


def candidates(folder: str | os.PathLike) -> list[Path]:
    """Return the numbered checkpoints (``iter_200.pth``, ``epoch_3.pth``) in a folder, newest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(int(m[2]), p) for p in folder.iterdir() if (m := NUMBERED.match(p.name))]
    # Epoch and iteration numbers cannot be compared with each other; files of both types are merged by their mtime.
    units: dict[str, list[tuple[int, Path]]] = {}
    for number, path in found:
        units.setdefault(path.name.split("_")[0], []).append((number, path))
    queues = [[p for _, p in sorted(group, reverse=True)] for group in units.values()]
    ordered: list[Path] = []
    while any(queues):
        queue = max((q for q in queues if q), key=lambda q: q[0].stat().st_mtime_ns)
        ordered.append(queue.pop(0))
    return ordered


def newest(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """Find the newest readable checkpoint in a folder.

    Returns:
        Its path, or None if no checkpoint is readable, and the error message of each newer file.
    """
    reasons = []
    for path in candidates(folder):
        try:
            read(path)
        except CheckpointError as error:
            reasons.append(str(error))
        else:
            return path, reasons
    return None, reasons


# --- replacements for mmengine ---------------------------------------------------------------------------------


def _with_history(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Convert the log history in a checkpoint to the class that mmengine's message hub expects."""
    hub = checkpoint.get("message_hub")
    scalars = hub.get("log_scalars") if isinstance(hub, dict) else None
    if isinstance(scalars, dict):
        for name, item in scalars.items():
            plain_history = isinstance(item, dict) and set(item) == {"values", "counts"}
            if plain_history and all(isinstance(part, Tensor) and part.ndim == 1 for part in item.values()):
                scalars[name] = HistoryBuffer(item["values"].tolist(), item["counts"].tolist())
    return checkpoint


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local file; replaces the function of mmengine."""
    return _with_history(read(filename, map_location))


def load_from_http(
    filename: str, map_location: Any = None, model_dir: str | None = None, progress: bool = False
) -> dict[str, Any]:
    """Download a checkpoint unless it was downloaded before, and read it; replaces the function of mmengine.

    Args:
        filename: URL. If its last part is ``NAME-<first digits of the SHA-256>.pth``, the digest is checked.
        map_location: see `torch.load`.
        model_dir: folder for the file; by default that of `visionattn.io.cache.models_dir`.
        progress: has no effect; a progress bar is shown on a terminal.

    Raises:
        CheckpointError: the file cannot be downloaded or read.
    """
    if filename.startswith("file://"):
        return load_from_local(url2pathname(urlsplit(filename).path), map_location)
    digest = re.search(r"-([a-f0-9]{8,64})\.\w+$", filename.split("?")[0])
    folder = Path(model_dir) if model_dir else None
    file = fetch([filename], name_of(filename), folder=folder, sha256=digest[1] if digest else None)
    return load_from_local(str(file), map_location)


def _load_named(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Load a checkpoint named in the tables of mmengine (``torchvision://``, ``open-mmlab://``, ``mmcls://``)."""
    scheme, name = filename.split("://", 1)
    if scheme in ("torchvision", "modelzoo"):
        table = mm.get_torchvision_models()
    elif scheme == "mmcls":
        table = mm.get_mmcls_models()
    else:
        table = mm.get_external_models()
        name = mm.get_deprecated_model_names().get(name, name)
    if name not in table:
        raise CheckpointError(f"{filename}: unknown checkpoint name; give a path or a URL")
    loader = load_from_http if re.match(r"https?://", table[name]) else load_from_local
    checkpoint = loader(table[name], map_location)
    return mm._process_mmcls_checkpoint(checkpoint) if scheme == "mmcls" else checkpoint


def _refuse_remote(filename: str, map_location: Any = None) -> dict[str, Any]:
    raise CheckpointError(f"{filename}: this file system is not supported; copy the file to this machine")


LOADERS: dict[tuple[str, ...], Callable[[str, Any], dict[str, Any]]] = {
    (r"pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"): _refuse_remote,
    ("http://", "https://"): load_from_http,
    ("torchvision://", "modelzoo://", "open-mmlab://", "openmmlab://", "mmcls://"): _load_named,
    ("",): load_from_local,
}
"""Loaders by regular expressions for the start of a path."""


def load(filename: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a checkpoint from any source that mmengine's ``CheckpointLoader`` supports, without unpickling objects.

    Args:
        filename: a path, a URL, or a name such as ``torchvision://resnet50``.
        map_location: see `torch.load`.

    Raises:
        CheckpointError: the checkpoint cannot be found, downloaded or read safely.
    """
    name = str(filename)
    loader = next(f for patterns, f in LOADERS.items() if any(re.match(p, name) for p in patterns))
    return loader(name, map_location)


def save_checkpoint(
    checkpoint: Mapping[str, Any],
    filename: str,
    file_client_args: Mapping[str, Any] | None = None,
    backend_args: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint with `write`; replaces the function of mmengine.

    Raises:
        CheckpointError: see `write`; or a storage other than the local file system is requested.
    """
    check_backend(file_client_args, backend_args)
    write(checkpoint, filename)


def check_backend(file_client_args: Mapping[str, Any] | None, backend_args: Mapping[str, Any] | None) -> None:
    """Raise `CheckpointError` unless mmengine's storage arguments denote the local file system."""
    for name, value in (("file_client_args", file_client_args), ("backend_args", backend_args)):
        if (value or {}).get("backend", "local") not in ("local", "disk"):
            raise CheckpointError(f"`{name}` must be None or name the backend 'local', got {dict(value)!r}")


_STOCK_WRITER = mm.save_checkpoint


def install() -> None:
    """Replace the loaders and the writer of mmengine. Calling it again has no further effect."""
    for patterns, loader in LOADERS.items():
        mm.CheckpointLoader.register_scheme(patterns, loader, force=True)
    mm.load_from_local, mm.load_from_http = load_from_local, load_from_http
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "mmengine" and getattr(module, "save_checkpoint", None) is _STOCK_WRITER:
            module.save_checkpoint = save_checkpoint
