"""Checkpoints of plain tensors and plain metadata: read with ``weights_only=True``, written atomically.

`read`, from `visionattn.io.weights`, is the only function that opens a weights file. `install` puts
`read` and `write` in place of mmengine's loaders and writer, so that code of mmdet and mmseg goes through them.
"""

import os
import re
import sys
import tempfile
import urllib.error
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mm
from torch import Tensor, nn

from visionattn.errors import CheckpointError
from visionattn.io.weights import read

__all__ = ["candidates", "fit", "install", "newest", "plain", "read", "state_dict_of", "write", "write_text"]


def state_dict_of(checkpoint: Mapping[str, Any]) -> "OrderedDict[str, Tensor]":
    """The weights in a checkpoint, whichever of the usual keys they are under, without DDP's ``module.``."""
    weights: Any = checkpoint
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            weights = checkpoint[key]
            break
    named = ((k, v) for k, v in weights.items() if isinstance(k, str) and isinstance(v, Tensor))
    return OrderedDict((re.sub(r"^module\.", "", k), v) for k, v in named)


# --- fitting ---------------------------------------------------------------------------------------------------


def fit(model: nn.Module, checkpoint: Mapping[str, Any], path: str | os.PathLike, strict: bool = True) -> list[str]:
    """Load a checkpoint's weights into a model.

    Args:
        model: receives the weights.
        checkpoint: what `read` returned.
        path: its file, for messages.
        strict: every tensor of either side must have its match of the same shape on the other.

    Returns:
        One line for each tensor that did not fit; always empty if ``strict``.

    Raises:
        CheckpointError: ``strict`` and something does not fit, or not a single tensor fits.
    """
    weights = state_dict_of(checkpoint)
    if hasattr(model, "own_names"):  # a model whose authors published checkpoints under other names
        weights = model.own_names(weights)
    own = model.state_dict()
    problems, usable = [], OrderedDict()
    for name, tensor in own.items():
        if name not in weights:
            if not name.endswith("num_batches_tracked"):
                problems.append(f"{name} is missing from the file")
        elif weights[name].shape != tensor.shape:
            problems.append(f"{name} is {list(weights[name].shape)} in the file and {list(tensor.shape)} in the model")
        else:
            usable[name] = weights[name]
    problems += [f"{name} is in the file but not in the model" for name in weights if name not in own]
    if problems and (strict or not usable):
        shown = "; ".join(problems[:3])
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{path}: does not fit the model: {shown}{more}. {_origin(checkpoint)}")
    try:
        model.load_state_dict(usable, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the model ({str(error).splitlines()[-1].strip()})") from error
    return problems


def _origin(checkpoint: Mapping[str, Any]) -> str:
    """Where a checkpoint seems to come from, as advice."""
    meta = checkpoint.get("meta") if isinstance(checkpoint.get("meta"), Mapping) else {}
    about = meta.get("dataset_meta")
    classes = about.get("classes") if isinstance(about, Mapping) else None
    classes = list(classes) if isinstance(classes, (list, tuple)) else []
    known = []
    if meta.get("config_name"):
        known.append(f"by the config {meta['config_name']}")
    if classes:
        shown = ", ".join(map(str, classes[:5])) + (", ..." if len(classes) > 5 else "")
        known.append(f"for the {len(classes)} classes {shown}")
    if known:
        return f"It was saved {' '.join(known)}; name the config that it was trained with"
    return "Name the config that it was trained with"


# --- writing ---------------------------------------------------------------------------------------------------


def plain(value: Any, where: str = "checkpoint") -> Any:
    """Turn a value into tensors, numbers, strings, lists, tuples and dicts, or raise `CheckpointError`."""
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
        return value if whole else value.clone()  # torch.save would write all that a view is a view of
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
        f"{where} holds a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved safely; "
        "keep it out of the checkpoint or turn it into numbers and strings"
    )


def write(checkpoint: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Save a checkpoint so that the file is always the old one or the new one, whole.

    It goes to a temporary file in the same folder, is synced to the disk, checked to need no class beyond
    tensors, and renamed over ``path``; then the folder is synced.

    Raises:
        CheckpointError: something in it is not plain, or the disk is full or not writable.
    """
    content = plain(checkpoint)
    with _replacing(path) as (stream, temporary):
        torch.save(content, stream)
        stream.flush()
        if unsafe := torch.serialization.get_unsafe_globals_in_checkpoint(temporary):
            raise CheckpointError(f"{path}: not saved, it would need the type {unsafe[0]} to be read back")


def write_text(path: str | os.PathLike, text: str) -> None:
    """Replace a text file as `write` replaces a checkpoint."""
    with _replacing(path) as (stream, _):
        stream.write(text.encode())


@contextmanager
def _replacing(path: str | os.PathLike) -> Iterator[tuple[IO[bytes], str]]:
    """A temporary file that takes the place of ``path`` when the block ends well, atomically and durably."""
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
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only their owner may read
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error})") from error
    except RuntimeError as error:  # torch's zip writer on a full disk
        raise CheckpointError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- finding ---------------------------------------------------------------------------------------------------

NUMBERED = re.compile(r"^(epoch|iter)_(\d+)\.pth$")


def candidates(folder: str | os.PathLike) -> list[Path]:
    """The numbered checkpoints (``iter_200.pth``, ``epoch_3.pth``) of a folder, newest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    found = [(int(m[2]), p) for p in folder.iterdir() if (m := NUMBERED.match(p.name))]
    # Numbers order files of one kind; where a folder has both kinds, the time of writing decides between them.
    kinds: dict[str, list[tuple[int, Path]]] = {}
    for number, path in found:
        kinds.setdefault(path.name.split("_")[0], []).append((number, path))
    queues = [[p for _, p in sorted(group, reverse=True)] for group in kinds.values()]
    ordered: list[Path] = []
    while any(queues):
        queue = max((q for q in queues if q), key=lambda q: q[0].stat().st_mtime_ns)
        ordered.append(queue.pop(0))
    return ordered


def newest(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a folder that reads whole, and why each newer one was passed over.

    Returns:
        ``(path, reasons)``; the path is None where no checkpoint can be read.
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


# --- in mmengine's place ---------------------------------------------------------------------------------------


def _with_history(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Give the plain log history of a checkpoint the class that mmengine's message hub expects."""
    hub = checkpoint.get("message_hub")
    scalars = hub.get("log_scalars") if isinstance(hub, dict) else None
    if isinstance(scalars, dict):
        for name, item in scalars.items():
            plain_history = isinstance(item, dict) and set(item) == {"values", "counts"}
            if plain_history and all(isinstance(part, Tensor) and part.ndim == 1 for part in item.values()):
                scalars[name] = HistoryBuffer(item["values"].tolist(), item["counts"].tolist())
    return checkpoint


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """mmengine's loader of local files, by `read`."""
    return _with_history(read(filename, map_location))


def load_from_http(filename: str, map_location: Any = None, model_dir: str | None = None, **_: Any) -> dict:
    """Download a checkpoint once into PyTorch's hub folder, then `read` it."""
    folder = Path(model_dir or os.path.join(torch.hub.get_dir(), "checkpoints"))
    target = folder / Path(filename.split("?")[0]).name
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([a-f0-9]{8,})\.", target.name)
        try:
            torch.hub.download_url_to_file(filename, str(target), digest[1] if digest else None, progress=False)
        except (urllib.error.URLError, OSError, RuntimeError) as error:
            raise CheckpointError(
                f"{filename}: cannot be downloaded ({error}); fetch it by other means and name the file"
            ) from error
    return load_from_local(str(target), map_location)


def _load_named(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Checkpoints named in mmengine's tables (``torchvision://``, ``open-mmlab://``, ``mmcls://``)."""
    scheme, name = filename.split("://", 1)
    if scheme in ("torchvision", "modelzoo"):
        table = mm.get_torchvision_models()
    elif scheme == "mmcls":
        table = mm.get_mmcls_models()
    else:
        table = mm.get_external_models()
        name = mm.get_deprecated_model_names().get(name, name)
    if name not in table:
        raise CheckpointError(f"{filename}: no checkpoint of this name is known; give a file or an address")
    loader = load_from_http if re.match(r"https?://", table[name]) else load_from_local
    checkpoint = loader(table[name], map_location)
    return mm._process_mmcls_checkpoint(checkpoint) if scheme == "mmcls" else checkpoint


def _refuse_remote(filename: str, map_location: Any = None) -> dict[str, Any]:
    raise CheckpointError(f"{filename}: copy it to this machine first and name the file")


def save_checkpoint(checkpoint: Mapping[str, Any], filename: str, *_: Any, **__: Any) -> None:
    """mmengine's writer, by `write`."""
    write(checkpoint, filename)


_STOCK_WRITER = mm.save_checkpoint


def install() -> None:
    """Put `read` and `write` in the place of mmengine's own loaders and writer; safe to call again."""
    register = mm.CheckpointLoader.register_scheme
    register("", load_from_local, force=True)
    register(("http://", "https://"), load_from_http, force=True)
    register(
        ("torchvision://", "modelzoo://", "open-mmlab://", "openmmlab://", "mmcls://"),
        _load_named,
        force=True,
    )
    register(("pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"), _refuse_remote, force=True)
    mm.load_from_local, mm.load_from_http = load_from_local, load_from_http
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "mmengine" and getattr(module, "save_checkpoint", None) is _STOCK_WRITER:
            module.save_checkpoint = save_checkpoint
