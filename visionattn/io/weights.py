"""Weights files, read without running anything that they may carry.

`read` has no allow-list: a file that asks for any callable or class beyond PyTorch's own tensor types is refused, with
the offending type named.
"""

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visionattn.errors import CheckpointError, require

__all__ = ["check_tensor", "read"]

EXPANDED = 1 << 26
"""Bytes that a tensor may have beyond those stored: of buffers that are one row expanded."""

REMEDY = (
    "if you trust its author, open it elsewhere and save only its tensors: "
    "torch.save(checkpoint['state_dict'], NEW_FILE)"
)


def read(path: str | os.PathLike, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint file without running any code that it may carry.

    Args:
        path: a ``.pth``/``.pt`` file of PyTorch or a ``.safetensors`` file.
        map_location: as for `torch.load`.

    Returns:
        What was saved; for safetensors a dict of tensors.

    Raises:
        CheckpointError: the file is missing, cut short, holds more than tensors and plain values, or tensors that are
            not what its size says.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    if path.suffix == ".safetensors":
        device = "cpu" if not isinstance(map_location, (str, torch.device)) else str(map_location)
        try:
            return dict(require("safetensors.torch").load_file(path, device=device))
        except Exception as error:  # safetensors raises its own class, which says what is malformed
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    _verify(path)
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError, ... by the damage
        raise CheckpointError(_refusal(path, error)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: holds a {type(checkpoint).__name__}, not a dict of weights")
    for tensor in _tensors(checkpoint):
        check_tensor(tensor, path)
    return checkpoint


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers, each container looked at once however often it is named."""
    seen, waiting = set(), [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set, frozenset)) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)


def check_tensor(tensor: Tensor, where: str | Path) -> None:
    """Refuse tensors without memory of their own size; the first copy would fill the machine's.

    A few bytes with stride 0, or a sparse or meta tensor, can claim any shape.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        kind = "meta" if tensor.is_meta else "nested" if tensor.is_nested else str(tensor.layout).split(".")[-1]
        raise CheckpointError(f"{where}: refused, it holds a {kind} tensor; weights are dense")
    claimed, held = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if claimed > held + EXPANDED:
        raise CheckpointError(
            f"{where}: refused, a tensor of shape {list(tensor.shape)} claims {claimed} bytes, and {held} are there"
        )


def _verify(path: Path) -> None:
    """Check the checksums in a zip file of `torch.save`, which `torch.load` does not, and that it is what it claims.

    Bits that flipped on a disk would otherwise go into the weights. PyTorch stores records uncompressed, so a file
    with compressed ones, or ones that add up to more than the file, was made to fill the memory.
    """
    try:
        if not zipfile.is_zipfile(path):  # files of before PyTorch 1.6, which have no checksum
            return
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise CheckpointError(f"{path}: refused, it has compressed parts, which PyTorch never writes")
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise CheckpointError(f"{path}: refused, its parts claim to be larger than the file")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); copy or download it again") from error
    if damaged is not None:
        raise CheckpointError(f"{path}: damaged, the checksum of {damaged} is wrong; copy or download it again")


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
            return f"{path}: refused, it needs the type {found[1]}, which could run code; {REMEDY}"
    text = text.split("WeightsUnpickler error:")[-1].strip()
    reason = re.split(r"[.\n]", text)[0][:120] or type(error).__name__
    return f"{path}: cut short or not a PyTorch checkpoint ({reason}); copy or download it again"
