"""Find input files: paths, folders and glob patterns expanded into lists of files."""

import contextlib
import glob
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from visionattn.errors import DataError
from visionattn.io.console import count_of
from visionattn.io.images import known_formats

__all__ = [
    "IMAGE_SUFFIXES",
    "UNSUPPORTED_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Source",
    "find_files",
    "find_inputs",
    "walk_files",
]

# fmt: off
IMAGE_SUFFIXES = frozenset((
    ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif",
    ".tiff", ".webp",
))
VIDEO_SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"))
OPTIONAL_SUFFIXES = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF"}
"""Formats that only some installations of Pillow can read."""
UNSUPPORTED_SUFFIXES = frozenset((
    ".arw", ".cr2", ".cr3", ".dng", ".eps", ".exr", ".hdr", ".ico", ".jxl", ".nef", ".orf", ".pdf", ".psd", ".raw",
    ".rw2", ".svg", ".tga",
))
# fmt: on


@dataclass(frozen=True)
class Source:
    """One input file."""

    path: Path
    is_video: bool = False


def find_inputs(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Source]:
    """Find images and videos; see `find_files`.

    Issues a warning with the number of image files in unsupported formats that folders and patterns contain. HEIC is
    supported if the package pillow-heif is installed.
    """
    readable = {suffix for suffix, kind in OPTIONAL_SUFFIXES.items() if kind in known_formats()}
    missing = (UNSUPPORTED_SUFFIXES | OPTIONAL_SUFFIXES.keys()) - readable
    found: list[Path] = []
    for item in inputs:
        with contextlib.suppress(DataError):  # no such files, or a path that `find_files` rejects
            found += [path for path in _expand(str(item), missing, exclude, "") if str(path) != str(item)]
    if skipped := list(dict.fromkeys(found)):
        formats = " ".join(sorted({path.suffix.lower() for path in skipped}))
        hint = ", or install pillow-heif" if OPTIONAL_SUFFIXES.keys() & set(formats.split()) else ""
        warnings.warn(
            f"skipping {count_of(len(skipped), 'file')} in unsupported formats ({formats}), such as {skipped[0]}; "
            f"convert them to JPEG or PNG{hint}",
            stacklevel=2,
        )
    files = find_files(inputs, IMAGE_SUFFIXES | VIDEO_SUFFIXES | readable, exclude=exclude, what="image or video")
    return [Source(path, path.suffix.lower() in VIDEO_SUFFIXES) for path in files]


def find_files(
    inputs: Sequence[str | Path], suffixes: Collection[str], *, exclude: str | Path | None = None, what: str = "image"
) -> list[Path]:
    """Expand paths of files, folders and glob patterns into a list of files, in the given order.

    Folders are searched recursively, see `walk_files`. A file that is given by its path is included whatever its
    suffix is; files found by a glob pattern need one of ``suffixes``. Files that are links to the same file are
    included once.

    Args:
        inputs: paths of files and folders, or glob patterns (``**`` matches any number of folders).
        suffixes: lowercase suffixes with their dots, such as ``".png"``.
        exclude: a folder whose contents are ignored, such as the folder of the results.
        what: noun for one of the files, in the singular, for error messages.

    Raises:
        DataError: a path does not exist, or a folder or pattern has no matching files.
    """
    found: dict[str, Path] = {}
    for item in inputs:
        for path in _expand(str(item), suffixes, exclude, what):
            found.setdefault(os.path.realpath(path), path)
    if not found:
        raise DataError(f"`inputs` is empty; give at least one {what}, folder or glob pattern")
    return list(found.values())


def walk_files(folder: str | Path, suffixes: Collection[str], *, exclude: str | Path | None = None) -> Iterator[Path]:
    """Search a folder recursively, in sorted order, the files of each folder before those of its subfolders.

    Hidden files and folders are skipped. Links to folders are followed, but each folder is searched only once, so that
    circular links end.

    Args:
        folder: root folder of the search.
        suffixes: lowercase suffixes with their dots.
        exclude: a folder whose contents are ignored.
    """
    excluded = None if exclude is None else os.path.realpath(exclude)
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen or _inside(real, excluded):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for path in (Path(root, name) for name in sorted(files)) if _matches(path, suffixes))


def _expand(item: str, suffixes: Collection[str], exclude: str | Path | None, what: str) -> list[Path]:
    path, looked_for = Path(item), f"looked for {' '.join(sorted(suffixes))}"
    if path.is_dir():
        if files := list(walk_files(path, suffixes, exclude=exclude)):
            return files
        raise DataError(f"{item}: the folder contains no {what} ({looked_for})")
    if path.exists():
        return [path]
    if not glob.has_magic(item):
        raise DataError(f"{item}: no such file or folder")
    matches = sorted(Path(match) for match in glob.glob(item, recursive=True))
    if not matches:
        raise DataError(f"{item}: the glob pattern has no matches; check the pattern and the current folder")
    excluded = None if exclude is None else os.path.realpath(exclude)
    files = []
    for match in matches:
        if match.is_dir():
            files.extend(walk_files(match, suffixes, exclude=exclude))
        elif _matches(match, suffixes) and not _inside(os.path.realpath(match), excluded):
            files.append(match)
    if not files:
        raise DataError(f"{item}: the glob pattern matches no {what} ({looked_for})")
    return files


def _matches(path: Path, suffixes: Collection[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _inside(real: str, folder: str | None) -> bool:
    return folder is not None and Path(real).is_relative_to(folder)
