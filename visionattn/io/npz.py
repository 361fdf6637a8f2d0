"""NumPy's ``.npz`` archives from files that nobody vouches for: no objects, and no more memory than is allowed."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from visionattn.errors import DataError

__all__ = ["LARGEST", "read_arrays"]

LARGEST = 1 << 30
"""Bytes of all arrays that are read from an archive, whose compression could claim any size."""


def read_arrays(path: str | Path, names: Callable[[list[str]], Sequence[str]] | Sequence[str]) -> list[np.ndarray]:
    """Some of the arrays in an archive.

    Args:
        path: of the archive.
        names: of the arrays; or what picks them, given all names.

    Raises:
        DataError: the file is no such archive, lacks an array, holds objects, or its headers claim more than it holds
            or than `LARGEST`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = names(list(members)) if callable(names) else names
            for name in wanted:
                if name not in members:
                    raise DataError(f"{path}: has no array {name!r}; it has {', '.join(members)[:200] or 'none'}")
            total = sum(members[name].file_size for name in wanted)
            if total > LARGEST:
                raise DataError(f"{path}: claims arrays of {total} bytes; {LARGEST} is the most")
            return [_read(archive, members[name], path) for name in wanted]
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # of the archive, its compression, or NumPy's header
        raise DataError(f"{path}: is no readable archive ({' '.join(str(error).split())[:200]})") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str | Path) -> np.ndarray:
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        claimed = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if claimed > info.file_size:
            raise DataError(f"{path}: its header claims {claimed} bytes, of which {info.file_size} are there")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)
