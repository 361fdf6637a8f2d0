"""Download zip archives and unpack them, treating both the network and the archive as untrusted."""

import errno
import hashlib
import http.client
import lzma
import os
import stat
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rich import progress
from rich.console import Console

from visionattn._version import __version__
from visionattn.errors import DataError

__all__ = ["check_sha256", "download", "unpack"]

_CHUNK = 1 << 18
_RETRY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_REMEDY = "check the connection and the proxy, or download the file by other means and pass it as `archive`"


def download(
    url: str,
    target: Path,
    *,
    max_bytes: int,
    sha256: str | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
    backoff: float = 1.0,
) -> Path:
    """Download `url` to `target`, which is created only when the download is complete.

    Args:
        url: an http or https address.
        target: the file to write; its folder must exist.
        max_bytes: limit on the size, checked against the announced size and the received bytes.
        sha256: expected hexadecimal digest of the file.
        timeout: seconds without data after which an attempt fails.
        attempts: maximum number of attempts; only temporary failures are retried, not those such as 404.
        backoff: seconds to wait after the first failure, doubled after each further one.

    Raises:
        DataError: the download failed; the message has the address, the reason and a remedy.
    """
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https"):
        raise DataError(
            f"`url` must be an http or https address, got {url!r}; alternatively, pass a downloaded file as `archive`"
        )
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.part-", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        for attempt in range(attempts):
            try:
                _attempt(url, temporary, max_bytes, timeout)
                break
            except (OSError, http.client.HTTPException, EOFError) as error:
                final = isinstance(error, urllib.error.HTTPError) and error.code not in _RETRY_STATUS
                if isinstance(error, OSError) and error.errno in (
                    errno.ENOSPC,
                    errno.EDQUOT,
                ):
                    raise DataError(f"cannot store {url} in {target.parent}: {error.strerror}") from error
                if final or attempt == attempts - 1:
                    tried = "" if final or attempts == 1 else f" ({attempts} attempts)"
                    raise DataError(f"cannot download {url}: {_reason(error)}{tried}; {_REMEDY}") from error
                time.sleep(backoff * 2**attempt)
        if sha256 is not None:
            check_sha256(temporary, sha256, url)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _attempt(url: str, target: Path, max_bytes: int, timeout: float) -> None:
    console = Console(stderr=True)
    request = urllib.request.Request(url, headers={"User-Agent": f"visionattn/{__version__}"})
    with urllib.request.urlopen(request, timeout=timeout) as response, target.open("wb") as file:
        announced = response.headers.get("Content-Length", "")
        expected = int(announced) if announced.isdecimal() and len(announced) < 20 else None
        if expected is not None and expected > max_bytes:
            raise _too_large(url, expected, max_bytes)
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        received = 0
        with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("download", total=expected)
            while chunk := response.read(_CHUNK):
                received += len(chunk)
                if received > max_bytes:
                    raise _too_large(url, received, max_bytes)
                file.write(chunk)
                bar.update(task, advance=len(chunk))
        if expected is not None and received != expected:
            raise EOFError(f"the connection closed after {received:,} of {expected:,} bytes")


def check_sha256(file: Path, sha256: str, name: str | None = None) -> None:
    """Compare a file's SHA-256 with the hexadecimal digest `sha256`; raise `DataError` if they differ."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256.strip().lower():
        raise DataError(
            f"{name or file}: `sha256` is {sha256.strip().lower()}, but the file has {digest.hexdigest()}; "
            "do not use it unless you know why it changed"
        )


def _too_large(url: str, size: int, limit: int) -> DataError:
    return DataError(
        f"{url}: the size is at least {size:,} bytes, but this dataset has at most {limit:,}; "
        "open the address in a browser to see what it returns"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server returned {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        inner = error.reason
        return f"no connection ({getattr(inner, 'strerror', None) or inner})"
    if isinstance(error, TimeoutError):
        return "timeout while waiting for data"
    if isinstance(error, http.client.IncompleteRead):
        return "the transfer was incomplete"
    return str(error) or type(error).__name__


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
