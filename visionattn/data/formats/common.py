"""What the readers of all annotation formats share: objects, images, the report, and the search for image files."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visionattn.errors import DataError
from visionattn.io.inputs import IMAGE_SUFFIXES, OPTIONAL_SUFFIXES, walk_files
from visionattn.io.json import read_json

__all__ = ["Annotated", "Images", "Item", "Raw", "Report", "clean_label", "json_file", "split_name", "text_lines"]

SPLITS = {
    "train": ("train", "training", "trn", "train2017", "train2014"),
    "val": ("val", "valid", "validation", "dev", "val2017", "val2014"),
    "test": ("test", "testing", "test2017"),
}
"""Names of the splits in folders, lists and files."""
MASK_FOLDERS = {
    "SegmentationClass", "SegmentationObject", "SegmentationClassRaw", "SegmentationClassVisualization",
    "SegmentationObjectVisualization", "masks",
}  # fmt: skip
"""Folders of images that are annotations."""
LARGEST_TEXT, LARGEST_JSON = 64 << 20, 4 << 30
"""Limits on the size of files in bytes; LabelMe and COCO files can contain images and many masks."""


class Report:
    """What was dropped or changed: for each kind of change, the places where it was made."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}
        self.counts: Counter[str] = Counter()

    def add(self, what: str, where: str, count: int = 1) -> None:
        """Count changes; ``where`` is a file, with a line if there is one."""
        self.found.setdefault(what, []).append(where)
        self.counts[what] += count

    def lines(self) -> list[str]:
        """Return one line per kind of change, with its number and the first place."""
        return [f"{what}: {self.counts[what]}, such as {places[0]}" for what, places in self.found.items()]

    def text(self) -> str:
        """Return the complete list."""
        return "".join(
            f"{what}: {self.counts[what]}\n" + "".join(f"  {place}\n" for place in places)
            for what, places in self.found.items()
        )


@dataclass
class Item:
    """An object as a format has it, in pixels, or as fractions of the image size if the `Annotated` is ``relative``.

    Attributes:
        label: name of the class.
        where: file and line.
        box: [x, y, width, height]; None for the box around the mask.
        polygons: lists [x1, y1, x2, y2, ...].
        mask: bool ``[h, w]`` whose upper left pixel is ``corner``, or a COCO run-length encoding.
        corner: (x, y) in pixels.
        crowd: a region with several objects, ``iscrowd`` of COCO.
        centered: ``box`` has the center instead of the upper left corner.
    """

    label: str
    where: str
    box: list[float] | None = None
    polygons: list[list[float]] = field(default_factory=list)
    mask: Any = None
    corner: tuple[int, int] = (0, 0)
    crowd: bool = False
    centered: bool = False


@dataclass
class Annotated:
    """An image with its objects.

    Attributes:
        image: the file.
        split: ``"train"``, ``"val"``, ``"test"``, another name of the data, or "" if there are no splits.
        where: annotation file and line.
        items: the objects.
        size: (width, height) in the annotation, or None.
        relative: coordinates are fractions of the image size.
        embedded: returns the content of an image that exists only in the annotation; None for files.
        trust_size: objects are dropped with their image if ``size`` contradicts the image.
    """

    image: Path
    split: str
    where: str
    items: list[Item]
    size: tuple[int, int] | None = None
    relative: bool = False
    embedded: Callable[[], bytes] | None = None
    trust_size: bool = True


@dataclass
class Raw:
    """The content of a folder as a reader returns it.

    Attributes:
        classes: names in the order of the data; names of objects that are not in it are appended, sorted.
        images: the images in the order of the data.
        ids: category ids of ``classes``; by default 1, 2, ...
    """

    classes: list[str]
    images: list[Annotated]
    ids: list[int] | None = None


class Images:
    """The image files of a folder, found by the names that annotation files give them.

    Args:
        root: the folder; files outside of it are refused.
        report: receives names that had to be changed.
    """

    def __init__(self, root: Path, report: Report) -> None:
        self.root, self.report = Path(os.path.abspath(root)), report
        found = walk_files(self.root, IMAGE_SUFFIXES | OPTIONAL_SUFFIXES.keys())
        self._masks: dict[Path, bool] = {}
        self.paths = [path for path in found if not self._in_masks(path.parent)]
        self._exact = {_key(str(path)): path for path in self.paths}
        self._names: dict[str, list[Path]] = defaultdict(list)
        self._stems: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self._names[_key(path.name).lower()].append(path)
            self._stems[_key(path.stem).lower()].append(path)

    def _in_masks(self, folder: Path) -> bool:
        """Return True for folders of masks; ``masks`` may also be the name of a class, without ``images`` beside it."""
        if folder not in self._masks:
            own = folder.name in MASK_FOLDERS and (folder.name != "masks" or (folder.parent / "images").is_dir())
            self._masks[folder] = folder != self.root and (own or self._in_masks(folder.parent))
            if own and folder.name == "masks" and folder != self.root:
                self.report.add("folders of masks beside images, not read", self.where(folder))
        return self._masks[folder]

    def where(self, path: Path, line: int | None = None) -> str:
        """Return a path relative to the folder, with its line."""
        path = Path(os.path.abspath(path))
        inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        return str(inside) if line is None else f"{inside}:{line}"

    def find(self, name: str, folders: Sequence[Path], where: str, anywhere: bool = True) -> Path | None:
        """Return the image with a name from an annotation file, or None.

        Searched are the given folders, the root, these with fewer leading folders of the name, and last all images
        with this file name or, in other cases or with another suffix, if only one exists.

        Args:
            name: a path as in the file, of Windows or POSIX.
            folders: the folders that it may be relative to.
            where: file and line for the report.
            anywhere: search all images for the file name as a last resort.
        """
        parts = self._parts(name, where)
        if not parts:
            return None
        for folder in (*folders, self.root):
            if (path := self._exact.get(_key(os.path.normpath(os.path.join(folder, *parts))))) is not None:
                return path
        parts = [part for part in parts if part != ".."]
        for skip in range(len(parts)):
            for folder in (*folders, self.root):
                if (path := self._exact.get(_key(os.path.join(folder, *parts[skip:])))) is not None:
                    return path
        if not anywhere:
            return None
        last = _key(parts[-1]).lower() if parts else ""
        same = self._names.get(last, [])
        alike = same or self._stems.get(last, []) or self._stems.get(os.path.splitext(last)[0], [])
        near = [path for path in alike if path.parent in folders] or alike
        if len(near) != 1:
            if near:
                self.report.add("image names that several images have, left out", f"{where}: {name}")
            return None
        self.report.add("images found under another name or in another folder", f"{where}: {name}: {near[0].name}")
        return near[0]

    def named_like(self, path: Path) -> Path | None:
        """Return the image with the name of a file except for its suffix.

        Of several, it is the one whose folders have the most names in common with those of the file.
        """
        found = self._stems.get(_key(path.stem).lower(), [])
        found = [p for p in found if _key(p.stem) == _key(path.stem)] or found
        folders = set(path.relative_to(self.root).parts[:-1])
        scores = [len(folders & set(p.relative_to(self.root).parts[:-1])) for p in found]
        best = [p for p, score in zip(found, scores, strict=True) if score == max(scores)]
        best = [p for p in best if p.parent == path.parent] or best
        if len(best) > 1:
            self.report.add("annotations for which several images have the name", self.where(path))
        return best[0] if best else None

    def _parts(self, name: str, where: str) -> list[str]:
        if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > 4096:
            return []
        windows = "\\" in name or re.match(r"[A-Za-z]:[\\/]", name)
        if windows:
            self.report.add("Windows paths, read with forward slashes", f"{where}: {name}")
        name = re.sub(r"^[A-Za-z]:/", "/", name.replace("\\", "/")) if windows else name
        if name.startswith("/") and not Path(name).is_relative_to(self.root) and not windows:
            self.report.add("absolute paths, of which the end was used", f"{where}: {name}")
        if Path(name).is_relative_to(self.root):
            name = str(Path(name).relative_to(self.root))
        return [part for part in name.split("/") if part not in ("", ".")]


def _key(path: str) -> str:
    """Unicode has two forms of many letters, and archives of macOS contain the other one."""
    return unicodedata.normalize("NFC", path)


def clean_label(name: str, report: Report, where: str) -> str:
    """Return the name of a class without surrounding white space, in the composed form of Unicode."""
    clean = unicodedata.normalize("NFC", name.strip().replace("\0", ""))
    if clean != name:
        report.add("class names with surrounding spaces or decomposed letters, changed", f"{where}: {name!r}")
    return clean


def split_name(names: Iterable[str]) -> str:
    """Return the split that one of the names of folders or files stands for, or ""."""
    for name in names:
        words = re.split(r"[^a-z0-9]+", name.lower())
        for split, known in SPLITS.items():
            if any(word in known for word in words):
                return split
    return ""


def text_lines(path: Path, report: Report, where: str) -> list[str]:
    """Return the lines of a text file in UTF-8, without a byte order mark.

    Raises:
        DataError: the file cannot be read, is too large, or is in another encoding.
    """
    try:
        if path.stat().st_size > LARGEST_TEXT:
            raise DataError(f"{path}: is larger than {LARGEST_TEXT >> 20} MB")
        content = path.read_bytes()
        bom = content.startswith(b"\xef\xbb\xbf")
        if bom:
            report.add("files that start with a byte order mark (BOM), which was skipped", where)
        return [line.rstrip("\r") for line in content[3 * bom :].decode("utf-8").split("\n")]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: is not text in UTF-8; convert it to UTF-8") from error


def json_file(path: Path, report: Report, where: str) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file cannot be read, is too large, or is not JSON; the message has the line.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise DataError(f"{path}: is larger than {LARGEST_JSON >> 30} GB")
        with open(path, "rb") as stream:
            if stream.read(3) == b"\xef\xbb\xbf":
                report.add("files that start with a byte order mark (BOM), which was skipped", where)
        return read_json(path, "utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        line = getattr(error, "lineno", None)
        raise DataError(f"{path}{f':{line}' if line else ''}: is not valid JSON in UTF-8 ({error})") from error
