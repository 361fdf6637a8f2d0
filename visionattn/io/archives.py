"""Unpack zip archives, treating them as untrusted."""

import lzma
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from visionattn.errors import DataError

__all__ = ["unpack"]

_CHUNK = 1 << 18


def unpack(
    archive: Path,
    target: Path,
    *,
    wanted: Callable[[str], bool],
    max_bytes: int,
    max_files: int,
) -> int:
    """Unpack the wanted files of a zip archive into the folder `target` and return their number.

    Only regular files are written, never links. An entry with a path outside `target` makes the whole archive invalid,
    even if the entry is not wanted. The size limit applies to the bytes written, not to the sizes in the archive.

    Args:
        archive: a .zip file.
        target: an existing folder.
        wanted: returns True for the path of an entry that is to be unpacked.
        max_bytes: limit on the total size of the unpacked files.
        max_files: limit on the number of entries.

    Raises:
        DataError: the file is not a zip archive, is damaged or too large, or has an unsafe entry.
    """
    if not archive.is_file():
        raise DataError(f"{archive}: the archive does not exist; `archive` must be the path of a downloaded .zip file")
    if not zipfile.is_zipfile(archive):
        with archive.open("rb") as stream:
            start = stream.read(16)
        raise DataError(f"{archive}: not a complete zip archive (it starts with {start!r}); download it again")
    try:
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            if len(entries) > max_files:
                raise DataError(
                    f"{archive}: contains {len(entries):,} entries, but this dataset has at most {max_files:,}; "
                    "it is not the expected archive"
                )
            for entry in entries:
                _refuse_unsafe(archive, entry.filename)
            return _unpack_entries(file, archive, target, wanted, max_bytes)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{archive}: damaged or not supported ({error}); download it again") from error


def _unpack_entries(
    file: zipfile.ZipFile, archive: Path, target: Path, wanted: Callable[[str], bool], max_bytes: int
) -> int:
    written = count = 0
    for entry in file.infolist():
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 if the archive was not created on Unix
        if entry.is_dir() or kind not in (0, stat.S_IFREG) or not wanted(entry.filename):
            continue
        path = target.joinpath(*PurePosixPath(entry.filename).parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with file.open(entry) as source, path.open("xb") as copy:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > max_bytes:
                        raise DataError(
                            f"{archive}: unpacks to more than {max_bytes:,} bytes, the maximum for this dataset; "
                            "it is not the expected archive"
                        )
                    copy.write(chunk)
        except FileExistsError:
            raise DataError(f"{archive}: contains {entry.filename!r} twice; download it again") from None
        except OSError as error:
            raise DataError(f"cannot unpack {entry.filename!r} to {target}: {error.strerror}") from error
        count += 1
    return count


def _refuse_unsafe(archive: Path, name: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        raise DataError(
            f"{archive}: contains {name!r}, which would be written outside the target folder; do not use this archive"
        )
