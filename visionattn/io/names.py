"""Names of files that stand in annotation files, and where they may lead.

A list of images may come from anywhere, so a name in it is not a path to open as it stands: it is taken below the
folder of the data, never with ``..``. Links that lie in that folder are followed, as whoever laid them out has put them
there; a list cannot make one, and `visionattn.io.fetch.unpack` does not.
"""

from pathlib import Path, PurePosixPath, PureWindowsPath

from visionattn.errors import DataError

__all__ = ["leads_out", "place"]


def leads_out(name: str) -> bool:
    """Whether a name is not plainly one below a folder: absolute, with a drive, or with a part ``..``.

    ``a/../b`` counts too: where ``a`` is a link, it is not ``b``.
    """
    parts = PureWindowsPath(name)  # takes both kinds of slashes
    return PurePosixPath(name).is_absolute() or bool(parts.root or parts.drive) or ".." in parts.parts


def place(name: str, root: str | Path | None, where: str) -> Path:
    """The file that a list names.

    Args:
        name: as it stands in the list.
        root: the folder of the data, which the name must not leave. None where none is set: then absolute names are
            taken as they are, and relative ones are returned as they are.
        where: the list and its line, for messages.

    Raises:
        DataError: the name is none, or leads out of the folder.
    """
    if not isinstance(name, str) or not _usable(name):
        raise DataError(f"{where}: {name!r:.120} is not the name of a file")
    inside = root is not None and Path(name).is_absolute() and Path(name).is_relative_to(root)
    if (root is None or inside) and Path(name).is_absolute() and ".." not in Path(name).parts:
        return Path(name)
    if leads_out(name):
        place_ = "its folder" if root is None else str(root)
        raise DataError(f"{where}: {name!r:.120} leads out of {place_}; use names below that folder, without '..'")
    return Path(name) if root is None else Path(root) / name


def _usable(name: str) -> bool:
    """Whether the file system can be asked for it; JSON can write halves of surrogate pairs."""
    try:
        parts = name.encode("utf-8", "surrogateescape").split(b"/")
    except UnicodeEncodeError:
        return False
    return bool(name.strip()) and "\0" not in name and len(name) < 4096 and all(len(part) < 256 for part in parts)
