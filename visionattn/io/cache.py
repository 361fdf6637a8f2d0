"""The cache of downloaded weights: one folder, for any number of processes, and checks of the files in it.

Beside each file, ``NAME.json`` records its address, size, time and SHA-256. Later uses compare size and time, which
costs nothing; if one differs, the file is hashed again. Bit errors that change neither are found when the weights are
read, by the checksums in the file (`visionattn.io.weights`). A file that is made from another one has the SHA-256 of
that one in its record, and is hashed at each use.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from visionattn.errors import CheckpointError, DataError
from visionattn.io.fetch import download, sha256_of
from visionattn.io.folders import cache_dir
from visionattn.io.links import link_note, needs_browser
from visionattn.io.weights import check_format

__all__ = ["derived", "fetch", "models_dir", "name_of", "recorded_sha256"]

MAX_BYTES = 16 << 30


def models_dir() -> Path:
    """The folder of downloaded weights: ``models`` in `visionattn.io.folders.cache_dir`."""
    return cache_dir() / "models"


def name_of(url: str) -> str:
    """Return a file name for the weights at an address; other addresses have other names, even if they end alike."""
    last = re.split(r"[?#]", url, maxsplit=1)[0].rsplit("/", 1)[-1]
    base = Path(re.sub(r"[^\w.-]", "_", unquote(last)).lstrip("."))
    return f"{base.stem[:80] or 'weights'}-{hashlib.sha256(url.encode()).hexdigest()[:8]}{base.suffix[:16] or '.pth'}"


def fetch(
    urls: Sequence[str],
    name: str,
    *,
    folder: Path | None = None,
    sha256: str | None = None,
    instead: str = "give its path",
) -> Path:
    """Return a file of weights in the cache, and download it if it is not there.

    An interrupted download is continued by the next call. Of several processes that need the same file, one downloads
    it, and the others wait.

    Args:
        urls: addresses of the file, tried in this order.
        name: its name in the cache.
        folder: the folder of the cache; by default `models_dir`.
        sha256: published hexadecimal digest of the file, or its first digits.
        instead: what to do with a file that is elsewhere, for the message of a failed download.

    Raises:
        CheckpointError: the file cannot be downloaded, or a file in the cache is not the one that was downloaded. The
            message has the addresses, the reasons and the path where to put the file.
    """
    target = (folder or models_dir()) / name
    try:
        if target.is_file():
            return _checked(target, sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            if target.is_file():  # another process has downloaded it
                return _checked(target, sha256)
            if urls and all(map(needs_browser, urls)):
                raise CheckpointError(
                    f"{target.stem}: open {urls[0]} in a browser, and save the file as {target}, or {instead}"
                )
            return _download(urls, target, sha256, instead)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be stored ({error.strerror or error}); VISIONATTN_CACHE names another folder"
        ) from error


def _download(urls: Sequence[str], target: Path, sha256: str | None, instead: str) -> Path:
    complete, partial = (target.with_name(f".{target.name}.{end}") for end in ("new", "part"))
    reasons = []
    for url in urls:
        try:
            if urlsplit(url).scheme == "file":  # as with torch.hub
                shutil.copyfile(url2pathname(urlsplit(url).path), complete)
            else:
                download(url, complete, max_bytes=MAX_BYTES, partial=partial, remedy="")
            check_format(complete)
            found = sha256_of(complete)
            if sha256 and not found.startswith(sha256.lower()):
                raise DataError(f"{url}: its SHA-256 is {found}, but the published one is {sha256}")
        except (DataError, CheckpointError) as error:
            note = f" ({link_note(url)})" if link_note(url) else ""
            reasons.append(str(error).removesuffix("; ").replace(str(complete), url) + note)
            complete.unlink(missing_ok=True)
            continue
        _record(target, complete, found, url)
        os.replace(complete, target)
        return target
    raise CheckpointError(
        f"{target.stem}: {'; '.join(reasons) or 'has no address'}; save the file as {target}, or {instead}"
    )


def recorded_sha256(name: str) -> str | None:
    """Return the SHA-256 of a file in the cache that was recorded at its first use, or None."""
    found = _read_record(models_dir() / name).get("sha256")
    return found if isinstance(found, str) else None


def derived(source: Path, target: Path, make: Callable[[Path, Path], Any]) -> Path:
    """Return a file that is made from one in the cache, and make it again unless both are as recorded.

    Args:
        source: the file in the cache, as `fetch` returned it.
        target: the file that is made from it.
        make: writes the target, given source and target.

    Raises:
        CheckpointError: the file cannot be stored; and what `make` raises.
    """
    origin = _read_record(source).get("sha256") or sha256_of(source)
    try:
        if not _is_made_from(target, origin):
            with _locked(target):
                if not _is_made_from(target, origin):  # another process has not made it
                    make(source, target)
                    _record(target, target, sha256_of(target), None, origin)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be stored ({error.strerror or error}); VISIONATTN_CACHE names another folder"
        ) from error
    return target


def _is_made_from(target: Path, origin: str) -> bool:
    record = _read_record(target)
    return target.is_file() and record.get("source_sha256") == origin and record.get("sha256") == sha256_of(target)


# --- what is in the cache --------------------------------------------------------------------------------------


def _record_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _read_record(target: Path) -> dict[str, Any]:
    try:
        record = json.loads(_record_of(target).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _record(target: Path, file: Path, sha256: str, url: str | None, source_sha256: str | None = None) -> None:
    """Write what later uses of `target` compare; `file` is the file itself, perhaps under another name."""
    stat = file.stat()
    content = {"url": url, "sha256": sha256, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    if source_sha256:
        content["source_sha256"] = source_sha256
    temporary = target.with_name(f".{target.name}.{os.getpid()}.json")
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, _record_of(target))


def _checked(target: Path, sha256: str | None) -> Path:
    """Return a file of the cache if it is as recorded, or has no record because a person saved it there."""
    record, stat = _read_record(target), target.stat()
    known = str(record.get("sha256", ""))
    wanted = (sha256 or known).lower()
    if known.startswith(wanted) and (record.get("bytes"), record.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
        return target
    check_format(target)
    found = sha256_of(target)
    if not found.startswith(wanted):
        source = "the published one" if sha256 else "when it was downloaded, it"
        keep = "" if sha256 else f", or delete {_record_of(target)} to keep it"
        raise CheckpointError(
            f"{target}: damaged or replaced: its SHA-256 is {found[:16]}..., {source} was {wanted[:16]}...; "
            f"delete it, so that it is downloaded again{keep}"
        )
    with contextlib.suppress(OSError):  # a folder of an administrator
        _record(target, target, found, record.get("url"))
    return target


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Let one process at a time into the block; the lock ends with its process."""
    with target.with_name(f".{target.name}.lock").open("ab") as stream:
        if not _try_lock(stream):
            print(f"waiting for another process that writes {target.name}", file=sys.stderr)
            while not _try_lock(stream):
                time.sleep(0.1)
        yield


def _try_lock(stream: IO[bytes]) -> bool:
    try:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except (BlockingIOError, PermissionError):  # held by another process, on Linux and on Windows
        return False
    except OSError:  # a file system without locks
        return True
    return True
