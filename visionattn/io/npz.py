"""Read untrusted NumPy ``.npz`` archives: without pickled objects and with a limit on memory."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from visionattn.errors import DataError

__all__ = ["LARGEST", "read_arrays"]

LARGEST = 1 << 30
"""Limit on the total size in bytes of the arrays read from an archive, which compression would not bound."""


def read_arrays(path: str | Path, names: Callable[[list[str]], Sequence[str]] | Sequence[str]) -> list[np.ndarray]:
    """Read some of the arrays in an archive.

    Args:
        path: the archive.
        names: names of the arrays, or a function that selects them from all names.

    Raises:
        DataError: the file is not an archive, an array is missing or contains objects, or the sizes in the headers
            exceed the size of the data or `LARGEST`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = names(list(members)) if callable(names) else names
            for name in wanted:
                if name not in members:
                    raise DataError(f"{path}: no array {name!r}; its arrays are {', '.join(members)[:200] or 'none'}")
            total = sum(members[name].file_size for name in wanted)
            if total > LARGEST:
                raise DataError(f"{path}: the arrays have {total} bytes; the limit is {LARGEST}")
            return [_read(archive, members[name], path) for name in wanted]
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # raised by the archive, its compression, or NumPy's header
        raise DataError(f"{path}: cannot be read as an .npz archive ({' '.join(str(error).split())[:200]})") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str | Path) -> np.ndarray:
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if claimed > info.file_size:
            raise DataError(f"{path}: the header declares {claimed} bytes, but the file has {info.file_size}")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
