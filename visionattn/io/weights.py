"""Read untrusted files of model weights without executing code.

`read` has no allow-list: a file that contains any callable or class other than PyTorch's own tensor types raises an
error that names the type.
"""

import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionattn.errors import CheckpointError, require

__all__ = ["check_tensor", "read", "write_safetensors"]

METADATA = "visionattn"
"""Key of the metadata in safetensors files."""
EXPANDED = 1 << 26
"""Bytes by which a tensor may exceed its storage, for buffers that are expanded views."""

REMEDY = (
    "if you trust its author, open it elsewhere and save only its tensors: "
    "torch.save(checkpoint['state_dict'], NEW_FILE)"
)


def read(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint file without executing code from it.

    Args:
        path: a ``.pth``/``.pt`` file of PyTorch or a ``.safetensors`` file.
        map_location: as for `torch.load`.

    Returns:
        The saved dict; for safetensors a dict of tensors, or, if the file has metadata of this package (see
        `write_safetensors`), a dict with ``state_dict`` and ``meta``.

    Raises:
        CheckpointError: the file is missing or truncated, contains other types than tensors and plain values, or
            contains tensors that exceed the size of the file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: the checkpoint file does not exist")
    if path.suffix == ".safetensors":
        device = "cpu" if not isinstance(map_location, (str, torch.device)) else str(map_location)
        try:
            tensors = dict(require("safetensors.torch").load_file(path, device=device))
            with require("safetensors").safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(METADATA)
        except Exception as error:  # safetensors raises its own class
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
        return tensors if text is None else {"state_dict": tensors, "meta": _metadata(path, text)}
    _verify(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ..., depending on the damage
        raise CheckpointError(_refusal(path, error)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: contains a {type(checkpoint).__name__}, not a dict of weights")
    for tensor in _tensors(checkpoint):
        check_tensor(tensor, path)
    return checkpoint


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers; each container is visited once, however often it is referenced."""
    seen, waiting = set(), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set, frozenset)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def check_tensor(tensor: Tensor, where: str | Path) -> None:
    """Raise `CheckpointError` for tensors that are larger than their storage, whose first copy could exhaust memory.

    A tensor with stride 0, or a sparse or meta tensor, can have any shape with a few stored bytes.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else str(tensor.layout).split(".")[-1]
        raise CheckpointError(f"{where}: contains a {kind} tensor; weights must be dense")
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > held + EXPANDED:
        raise CheckpointError(
            f"{where}: a tensor of shape {list(tensor.shape)} needs {claimed} bytes, but the file has {held}"
        )


def _verify(path: Path) -> None:
    """Verify the checksums and sizes of the records in a zip file written by `torch.save`.

    `torch.load` does not verify checksums, so bit errors in the weights would go unnoticed. PyTorch stores records
    uncompressed; compressed records, or records larger than the file, indicate a malicious file.
    """
    try:
        if not zipfile.is_zipfile(path):  # the format before PyTorch 1.6, which has no checksums
            return
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise CheckpointError(f"{path}: contains compressed records, which PyTorch never writes")
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise CheckpointError(f"{path}: the declared sizes of its records exceed the size of the file")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy or download it again") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged, wrong checksum of {damaged}; copy or download it again")


def _metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its metadata are not valid JSON") from error
    if not isinstance(meta, dict):
        raise CheckpointError(f"{path}: its metadata must be a JSON object")
    return meta


def write_safetensors(path: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write weights in half precision, with the metadata of their checkpoint.

    Args:
        path: the ``.safetensors`` file.
        state: the tensors by name. Floating-point tensors become float16.
        meta: plain values, such as ``{"dataset_meta": {"classes": [...]}}``.
    """
    tensors = {key: (x.half() if x.is_floating_point() else x).contiguous().clone() for key, x in state.items()}
    text = json.dumps(meta, allow_nan=False)
    require("safetensors.torch").save_file(tensors, path, metadata={METADATA: text, "format": "pt"})


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    for pattern in (
        r"Unsupported global: GLOBAL ([\w.]+)",
        r"Unsupported class ([\w.]+)",
        r"Trying to (?:instantiate unsupported class|call reduce for unrecognized function) ([\w.<> ]+)",
        r"blocked module\W+([\w.]+)",
        r"GLOBAL ([\w.]+)",
    ):
        if found := re.search(pattern, text):
            return f"{path}: contains the type {found[1]}, which could execute code; {REMEDY}"
    text = text.split("WeightsUnpickler error:")[-1].strip()
    reason = re.split(r"[.\n]", text)[0][:120] or type(error).__name__
    return f"{path}: truncated or not a PyTorch checkpoint ({reason}); copy or download it again"
