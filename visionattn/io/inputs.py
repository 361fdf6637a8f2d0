"""Find input files: paths, folders and glob patterns expanded into lists of files."""

import contextlib
import glob
import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
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
    "iterate_inputs",
    "live_name",
    "live_source",
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


LIVE = re.compile(r"(rtsps?|rtmps?|rtp|srt|tcp|udp)://")


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        path: the file; for cameras and streams, a name for the results.
        is_video: it is a video.
        address: index of a camera, or address of a stream.
    """

    path: Path
    is_video: bool = False
    address: str | None = None

    @property
    def label(self) -> str:
        """Name in records and messages; an address without its password."""
        return str(self.path) if self.address is None else live_name(self.address)


def live_source(item: str | Path) -> Source | None:
    """Return the source for the index of a camera or the address of a stream, None for other inputs."""
    text = str(item)
    if LIVE.match(text):
        return Source(Path(re.sub(r"[^\w.-]+", "_", live_name(text)).strip("_")), True, text)
    if text.isdecimal() and len(text) < 3 and not Path(text).exists():
        return Source(Path(f"camera_{text}"), True, text)
    return None


def live_name(address: str) -> str:
    """Return the address without user name and password; ``camera 0`` for the index of a camera."""
    return f"camera {address}" if address.isdecimal() else re.sub(r"(?<=://)[^/]*@", "", address)


def find_inputs(inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Source]:
    """Find images and videos, see `find_files`, cameras and streams, see `live_source`.

    Issues a warning with the number of image files in unsupported formats that folders and patterns contain. HEIC is
    supported if the package pillow-heif is installed.
    """
    live = [source for item in inputs if (source := live_source(item))]
    inputs = [item for item in inputs if not live_source(item)]
    if live and not inputs:
        return live
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
    return [*(Source(path, path.suffix.lower() in VIDEO_SUFFIXES) for path in files), *live]


def iterate_inputs(inputs: Sequence[str | Path], exclude: Path | None = None) -> Iterator[Source]:
    """Yield images, videos and tar archives in the order of `find_inputs`, without a list of all of them.

    A file that several inputs contain is yielded once.

    Raises:
        DataError: a path does not exist, or a folder or pattern has no matching files.
    """
    readable = {suffix for suffix, kind in OPTIONAL_SUFFIXES.items() if kind in known_formats()}
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES | readable | {".tar", ".tgz"}
    seen: set[str] = set()
    for item in inputs:
        for path in _expand(str(item), suffixes, exclude, "image, video or tar archive"):
            if len(inputs) > 1:
                if (real := os.path.realpath(path)) in seen:
                    continue
                seen.add(real)
            yield Source(path, path.suffix.lower() in VIDEO_SUFFIXES)


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


def _expand(item: str, suffixes: Collection[str], exclude: str | Path | None, what: str) -> Iterator[Path]:
    path, looked_for, count = Path(item), f"looked for {' '.join(sorted(suffixes))}", 0
    if path.is_dir():
        for count, file in enumerate(walk_files(path, suffixes, exclude=exclude), 1):  # noqa: B007  used below
            yield file
        if not count:
            raise DataError(f"{item}: the folder contains no {what} ({looked_for})")
        return
    if path.exists():
        yield path
        return
    if not glob.has_magic(item):
        raise DataError(f"{item}: no such file or folder")
    matches = sorted(glob.glob(item, recursive=True))
    if not matches:
        raise DataError(f"{item}: the glob pattern has no matches; check the pattern and the current folder")
    excluded = None if exclude is None else os.path.realpath(exclude)
    for match in map(Path, matches):
        if match.is_dir():
            files: Iterable[Path] = walk_files(match, suffixes, exclude=exclude)
        else:
            files = [match] if _matches(match, suffixes) and not _inside(os.path.realpath(match), excluded) else []
        for file in files:
            count += 1
            yield file
    if not count:
        raise DataError(f"{item}: the glob pattern matches no {what} ({looked_for})")


def _matches(path: Path, suffixes: Collection[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _inside(real: str, folder: str | None) -> bool:
    return folder is not None and Path(real).is_relative_to(folder)
