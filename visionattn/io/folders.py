"""Folders created atomically: filled in a temporary folder, which is then renamed."""

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionattn.errors import DataError
from visionattn.io.json import read_json

__all__ = ["STAMP", "cache_dir", "is_current", "new_folder", "write_json"]

STAMP = "visionattn_data.json"
_STALE_SECONDS = 3600


def cache_dir() -> Path:
    """The folder for generated and downloaded files.

    ``$VISIONATTN_CACHE``, or ``visionattn`` in ``$XDG_CACHE_HOME``, which is ``~/.cache`` by default.
    """
    if named := os.environ.get("VISIONATTN_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "visionattn")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as compact JSON; NaN and infinity raise `ValueError`, since they are not valid JSON."""
    path.write_text(json.dumps(value, allow_nan=False, separators=(",", ":")), encoding="utf-8")


def is_current(folder: Path, stamp: dict[str, Any]) -> bool:
    """Return True if `folder` was created by `new_folder` with this stamp and no files are missing."""
    found = _read_stamp(folder)
    return found is not None and found["stamp"] == stamp and _count_files(folder) >= found["files"]


@contextlib.contextmanager
def new_folder(target: Path, stamp: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to fill, which is renamed to `target` when the block ends without an error.

    A folder that `new_folder` created before is replaced, unless files were added to its top level; any other
    non-empty folder raises an error. A killed process leaves only a hidden folder beside `target`, which a later call
    removes.

    Args:
        target: the folder to create, including its parents.
        stamp: the settings that the content depends on (JSON values), compared by `is_current`.

    Raises:
        DataError: `target` contains other files or cannot be written.
    """
    target = Path(os.path.abspath(target.expanduser()))
    _refuse_foreign(target)
    prefix = f".{target.name}.building-"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_stale(target.parent, prefix)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    try:
        yield temporary
        top = sorted(entry.name for entry in temporary.iterdir())
        record = {"stamp": stamp, "files": _count_files(temporary) + 1, "top": [*top, STAMP]}
        write_json(temporary / STAMP, record)
        temporary.chmod(0o777 & ~_umask())  # mkdtemp creates it with access for the user only
        _move_into_place(temporary, target, stamp)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_into_place(temporary: Path, target: Path, stamp: dict[str, Any]) -> None:
    old = None
    try:
        if target.exists():
            if any(target.iterdir()):
                old = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-", dir=target.parent))
                os.replace(target, old)  # replaces an empty folder
            else:
                target.rmdir()  # Windows cannot rename to an existing folder, even an empty one
        os.rename(temporary, target)
    except OSError:  # at any step
        if not is_current(target, stamp):  # another process may have created the same folder
            raise
    finally:
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    if target.is_symlink() and not target.exists():
        raise DataError(f"{target}: a broken link; remove it or choose another folder")
    if not target.exists():
        return
    if not target.is_dir():
        raise DataError(f"{target}: is a file, not a folder; choose another folder")
    names = {entry.name for entry in target.iterdir()}
    record = _read_stamp(target)
    foreign = sorted(names - set(record["top"] if record else ()))
    if foreign:
        raise DataError(
            f"{target}: contains files that visionattn did not create (such as {foreign[0]!r}); "
            "choose an empty or new folder"
        )


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    try:
        record = read_json(folder / STAMP)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("files"), int) or "stamp" not in record:
        return None
    return record if isinstance(record.get("top"), list) else None


def _count_files(folder: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(folder))


def _clear_stale(parent: Path, prefix: str) -> None:
    for entry in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(entry)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(target: Path, error: OSError) -> DataError:
    reason = error.strerror or str(error)
    return DataError(f"{target}: cannot be written ({reason}); choose another folder or set VISIONATTN_CACHE")
