"""Resolve file names found in annotation files.

Annotation files are untrusted, so the names in them are resolved below the data folder, and ``..`` is not allowed.
Links in the data folder are followed: an annotation file cannot create one, nor does `visionattn.io.archives.unpack`.
"""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from visionattn.errors import DataError

__all__ = ["escapes_folder", "place", "safe_name"]


def escapes_folder(name: str) -> bool:
    """Return True if a name may refer to a file outside its folder: absolute, with a drive, or with a part ``..``.

    This includes ``a/../b``, which is not ``b`` if ``a`` is a link.
    """
    parts = PureWindowsPath(name)  # accepts both kinds of slashes
    return PurePosixPath(name).is_absolute() or bool(parts.root or parts.drive) or ".." in parts.parts


def place(name: str, root: str | Path | None, where: str) -> Path:
    """Resolve the name of a file in an annotation file.

    Args:
        name: the name in the annotation file.
        root: the data folder, which must contain the file. With None, names are returned unchanged, including absolute
            ones.
        where: the annotation file and line, for error messages.

    Raises:
        DataError: the name is not a file name, or the file would be outside the data folder.
    """
    if not isinstance(name, str) or not _usable(name):
        raise DataError(f"{where}: {name!r:.120} is not a file name")
    inside = root is not None and Path(name).is_absolute() and Path(name).is_relative_to(root)
    if (root is None or inside) and Path(name).is_absolute() and ".." not in Path(name).parts:
        return Path(name)
    if escapes_folder(name):
        place_ = "its folder" if root is None else str(root)
        raise DataError(f"{where}: {name!r:.120} is outside {place_}; use names relative to that folder, without '..'")
    return Path(name) if root is None else Path(root) / name


def safe_name(text: str, default: str) -> str:
    """Return a name for a file or folder: letters, digits and ``-_. `` of a text, at most 80 characters.

    Args:
        text: any text.
        default: the name if no such character is left.
    """
    return re.sub(r"[^\w. -]", "_", text)[:80].strip(" .") or default


def _usable(name: str) -> bool:
    """Return True if a file system can have such a name; JSON strings may contain unpaired surrogates."""
    try:
        parts = name.encode("utf-8", "surrogateescape").split(b"/")
    except UnicodeEncodeError:
        return False
    return bool(name.strip()) and "\0" not in name and len(name) < 4096 and all(len(part) < 256 for part in parts)
