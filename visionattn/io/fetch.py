"""Download files, treating the network as untrusted."""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

from rich import progress
from rich.console import Console

from visionattn._version import __version__
from visionattn.errors import DataError

__all__ = ["check_sha256", "download", "is_page", "reason_of", "sha256_of"]

_CHUNK = 1 << 18
_RETRY_STATUS = {408, 416, 425, 429, 500, 502, 503, 504}
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
    partial: Path | None = None,
    remedy: str = _REMEDY,
) -> Path:
    """Download `url` to `target`, which is created only when the download is complete.

    An interrupted transfer is continued (HTTP Range) if the server names the version of the file, by a strong ETag or
    the time of its last change, and still has this version. Otherwise it starts again.

    Args:
        url: an http or https address.
        target: the file to write; its folder must exist.
        max_bytes: limit on the size, checked against the announced size and the received bytes.
        sha256: expected hexadecimal digest of the file.
        timeout: seconds without data after which an attempt fails.
        attempts: maximum number of attempts in a row that do not bring the download forward; only temporary failures
            are retried, not those such as 404.
        backoff: seconds to wait after the first failure, doubled after each further one.
        partial: file for the received bytes, which remains after a failure, so that a later call continues; by default
            they are deleted.
        remedy: end of the message of a failure.

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
    with contextlib.ExitStack() as stack:
        if partial is None:
            folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.part-", dir=target.parent)
            partial = Path(stack.enter_context(folder), "data")
        _transfer(url, partial, max_bytes, timeout, attempts, backoff, remedy)
        try:
            if sha256 is not None:
                check_sha256(partial, sha256, url)
            os.replace(partial, target)
        finally:
            _discard(partial)
    return target


def _transfer(
    url: str, partial: Path, max_bytes: int, timeout: float, attempts: int, backoff: float, remedy: str
) -> None:
    """Call `_attempt` until the file is complete."""
    failures = 0
    while True:
        before = _resumable(partial, url)[0]
        try:
            return _attempt(url, partial, max_bytes, timeout, remedy)
        except (OSError, http.client.HTTPException, EOFError) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code not in _RETRY_STATUS
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DataError(f"cannot store {url} in {partial.parent}: {error.strerror}") from error
            failures = 1 if _resumable(partial, url)[0] >= before + _CHUNK else failures + 1
            if final or failures >= attempts:
                tried = "" if final or attempts == 1 else f" ({attempts} attempts)"
                raise DataError(f"cannot download {url}: {reason_of(error)}{tried}; {remedy}") from error
            time.sleep(backoff * 2 ** (failures - 1))


def _note(partial: Path) -> Path:
    """The file that says of which address and version the received bytes are."""
    return partial.with_name(f"{partial.name}.json")


def _resumable(partial: Path, url: str) -> tuple[int, str]:
    """Return how many bytes of a file were received that can be continued, and the version of the file."""
    try:
        note = json.loads(_note(partial).read_text(encoding="utf-8"))
        if note["url"] == url and isinstance(note["version"], str):
            return partial.stat().st_size, note["version"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _note(partial).unlink(missing_ok=True)


def _version(headers: Message) -> str:
    """Return what identifies this version of the file in the header If-Range, or an empty text."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _attempt(url: str, partial: Path, max_bytes: int, timeout: float, remedy: str) -> None:
    console = Console(stderr=True)
    start, version = _resumable(partial, url)
    headers = {"User-Agent": f"visionattn/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the range is empty if the bytes are complete; otherwise they are of another file
            if start and error.headers.get("Content-Range", "").replace(" ", "") == f"bytes*/{start}":
                return
            _discard(partial)
        raise
    with response:
        if response.status == 206:
            part = re.match(r"bytes (\d{1,19})-", response.headers.get("Content-Range", ""))
            if part is None or int(part[1]) != start or _version(response.headers) not in ("", version):
                _discard(partial)
                raise EOFError("the server continued with another part or version of the file")
        else:
            start = 0
        announced = response.headers.get("Content-Length", "")
        expected = start + int(announced) if announced.isdecimal() and len(announced) < 20 else None
        if expected is not None and expected > max_bytes:
            _discard(partial)
            raise _too_large(url, expected, max_bytes)
        chunk = response.read(_CHUNK)
        if not start and is_page(chunk, response.headers.get_content_type()):  # keeps what was received before
            raise DataError(f"{url}: the server returned a web page, not a file; open it in a browser; {remedy}")
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.DownloadColumn(),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
        )
        received = start
        if not start:
            _discard(partial)
            if version := _version(response.headers):
                _note(partial).write_text(json.dumps({"url": url, "version": version}), encoding="utf-8")
        bar = progress.Progress(*columns, console=console, disable=not console.is_terminal)
        with partial.open("ab") as file, bar:
            task = bar.add_task("download", total=expected, completed=start)
            while chunk:
                received += len(chunk)
                if received > max_bytes:
                    _discard(partial)
                    raise _too_large(url, received, max_bytes)
                file.write(chunk)
                bar.update(task, advance=len(chunk))
                chunk = response.read(_CHUNK)
        if expected is not None and received != expected:
            raise EOFError(f"the connection closed after {received:,} of {expected:,} bytes")


def is_page(start: bytes, content_type: str = "") -> bool:
    """Return True for a web page, such as the error or login page that a server returns in place of a file."""
    begins = start[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype html", b"<html"))
    return begins or content_type == "text/html"


def sha256_of(file: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(file: Path, sha256: str, name: str | None = None) -> None:
    """Compare a file's SHA-256 with the hexadecimal digest `sha256`; raise `DataError` if they differ."""
    digest, wanted = sha256_of(file), sha256.strip().lower()
    if digest != wanted:
        raise DataError(
            f"{name or file}: `sha256` is {wanted}, but the file has {digest}; "
            "do not use it unless you know why it changed"
        )


def _too_large(url: str, size: int, limit: int) -> DataError:
    return DataError(
        f"{url}: the size is at least {size:,} bytes, but the file may have at most {limit:,}; "
        "open the address in a browser to see what it returns"
    )


def reason_of(error: Exception) -> str:
    """Return the reason of a failed request in one line."""
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
