"""Read untrusted files of model weights without executing code.

`read` has no allow-list: a file that contains any callable or class other than PyTorch's own tensor types raises an
error that names the type.
"""

import json
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionattn.errors import CheckpointError, require
from visionattn.io.fetch import is_page

__all__ = [
    "check_file",
    "check_finite",
    "check_format",
    "check_tensor",
    "entry_of",
    "is_averaged",
    "read",
    "state_dict_of",
    "verify",
    "write_safetensors",
]

METADATA = "visionattn"
"""Key of the metadata in safetensors files."""
MAGIC = 0x1950A86A20F9469CFC6C
"""First number of files before PyTorch 1.6."""
ZIP = b"PK\x03\x04"
"""Start of zip files, and so of the files of PyTorch since 1.6."""
EXPANDED = 1 << 26
"""Bytes by which a tensor may exceed its storage, for buffers that are expanded views."""

# timm, DeiT and BasicSR; then mmengine, mmcv, timm, detectron2, OpenPCDet and BasicSR.
_AVERAGED = ("state_dict_ema", "model_ema", "params_ema")
_ENTRIES = (*_AVERAGED, "state_dict", "model", "model_state_dict", "model_state", "params")

WRAPPER_PREFIXES = (r"^(module\.|_orig_mod\.)+", "")
"""Pattern and replacement that remove the prefixes of ``DistributedDataParallel`` and ``torch.compile``."""


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
    start = check_file(path)
    if path.suffix == ".safetensors":
        device = "cpu" if not isinstance(map_location, (str, torch.device)) else str(map_location)
        try:
            tensors = dict(require("safetensors.torch").load_file(path, device=device))
            with require("safetensors").safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get(METADATA)
        except Exception as error:  # safetensors raises its own class
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
        return tensors if text is None else {"state_dict": tensors, "meta": _metadata(path, text)}
    if path.suffix in (".pkl", ".pickle"):
        raise CheckpointError(f"{path}: {_pickle(path)}")
    verify(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ..., depending on the damage
        raise CheckpointError(_refusal(path, error, start)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: contains a {type(checkpoint).__name__}, not a dict of weights")
    for tensor in _tensors(checkpoint):
        check_tensor(tensor, path)
    return checkpoint


def check_file(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        CheckpointError: it is missing, empty, a folder, or a web page.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, not a file of weights")
    if not path.is_file():
        raise CheckpointError(f"{path}: the checkpoint file does not exist")
    with path.open("rb") as stream:
        start = stream.read(1024)
    if not start:
        raise CheckpointError(f"{path}: is empty; copy or download it again")
    if is_page(start):
        raise CheckpointError(f"{path}: is a web page, not a file of weights; open the address in a browser")
    return start


def check_format(file: Path) -> None:
    """Raise `CheckpointError` if a file cannot be weights of PyTorch or safetensors, judged by its first bytes."""
    start = check_file(file)
    # zip files of torch.save, pickles of older versions, and the header of safetensors
    if not (start.startswith((ZIP, b"\x80")) or start[8:9] == b"{"):
        raise CheckpointError(f"{file}: is not a file of weights (it starts with {start[:12]!r})")


def entry_of(checkpoint: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the entry of a checkpoint with its weights: the averaged ones if it has them.

    Returns:
        ``(key, entry)``, or an empty key and the checkpoint itself, which then has the tensors at the top level.
    """
    for key in _ENTRIES:
        entry = checkpoint.get(key)
        if not isinstance(entry, Mapping):
            continue
        if key not in _AVERAGED or any(isinstance(value, Tensor) for value in entry.values()):
            return key, entry
    return "", checkpoint


def is_averaged(key: str) -> bool:
    """Return True if the entry of a checkpoint with this key has weights averaged over the training."""
    return key in _AVERAGED


def state_dict_of(
    checkpoint: Mapping[str, Any], revise_keys: Sequence[tuple[str, str]] | None = None
) -> "OrderedDict[str, Tensor]":
    """Return the state dict in a checkpoint.

    Args:
        checkpoint: has the tensors in the entry that `entry_of` returns.
        revise_keys: regular expressions and their replacements in parameter names, applied in order. None removes
            the prefixes ``module.`` of ``DistributedDataParallel`` and ``_orig_mod.`` of ``torch.compile``.
    """
    _, weights = entry_of(checkpoint)
    named = {k: v for k, v in weights.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for pattern, replacement in [WRAPPER_PREFIXES] if revise_keys is None else revise_keys:
        named = {re.sub(pattern, replacement, k): v for k, v in named.items()}
    return OrderedDict(named)


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


def check_finite(
    given: Mapping[str, Tensor],
    where: str | Path = "the checkpoint",
    own: Mapping[str, Tensor] | None = None,
    names: Mapping[str, str] | None = None,
) -> None:
    """Raise `CheckpointError` for weights that are NaN or infinite, as those of a run that diverged.

    Args:
        given: the weights by their names in the model.
        where: the file, for the message.
        own: the model's state dict; tensors that the model does not have, or has with such values, are not checked.
        names: the names of the weights in the file, where they differ.
    """
    for name, tensor in given.items():
        checked = own is None or name in own
        if checked and not _is_finite(tensor) and (own is None or _is_finite(own[name])):
            raise CheckpointError(
                f"{where}: {(names or {}).get(name, name)} contains values that are NaN or infinite, as after a "
                "training run that diverged; use another checkpoint"
            )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    tensor = tensor.float() if tensor.element_size() == 1 else tensor  # PyTorch cannot sum 8-bit numbers
    # The sum needs no memory. It is not finite if a value is not, or if it overflows.
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def verify(path: Path) -> None:
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


def write_safetensors(path: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any], half: bool = True) -> None:
    """Write weights with the metadata of their checkpoint.

    Args:
        path: the ``.safetensors`` file.
        state: the tensors by name.
        meta: plain values, such as ``{"dataset_meta": {"classes": [...]}}``.
        half: convert floating-point tensors to float16.
    """
    halved = {key: x.half() if half and x.is_floating_point() else x for key, x in state.items()}
    tensors = {key: x.contiguous().clone() for key, x in halved.items()}
    text = json.dumps(meta, allow_nan=False)
    content = require("safetensors.torch").save(tensors, metadata={METADATA: text, "format": "pt"})
    path.write_bytes(content)  # `save_file` creates files that only their owner can read


def _remedy(path: Path) -> str:
    return f"extract its tensors without executing code: visionattn convert-checkpoint {path}"


def _pickle(path: Path) -> str:
    return f"is a pickle, as detectron2 writes; {_remedy(path)}"


def _refusal(path: Path, error: Exception, start: bytes) -> str:
    text = str(error)
    for pattern in (
        r"Unsupported global: GLOBAL ([\w.]+)",
        r"Unsupported class ([\w.]+)",
        r"Trying to (?:instantiate unsupported class|call reduce for unrecognized function) ([\w.<> ]+)",
        r"blocked module\W+([\w.]+)",
        r"GLOBAL ([\w.]+)",
    ):
        if found := re.search(pattern, text):
            return f"{path}: contains the type {found[1]}, which could execute code; {_remedy(path)}"
    if start.startswith(b"\x80") and MAGIC.to_bytes(10, "little") not in start[:32]:
        return f"{path}: {_pickle(path)}"
    text = text.split("WeightsUnpickler error:")[-1].strip()
    reason = re.split(r"[.\n]", text)[0][:120] or type(error).__name__
    return f"{path}: truncated or not a PyTorch checkpoint ({reason}); copy or download it again"
