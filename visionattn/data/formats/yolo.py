"""Read YOLO annotations: one text file per image, with a line for each object.

A line is ``class center_x center_y width height`` or ``class x1 y1 x2 y2 x3 y3 ...`` (polygons, and the corners of
rotated boxes), as fractions of the size of the upright image. Three layouts are known: ``data.yaml`` as Ultralytics,
Roboflow and CVAT write it; ``obj.data`` and ``obj.names`` of Darknet and CVAT's "YOLO 1.1"; and folders with
``classes.txt``. The splits are folders or lists of images.

An own parser, since datumaro 1.13 rejects label files with polygons, and supervision 0.31 counts neither boxes outside
of the image nor label files without one.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from visionattn.data.formats.common import (
    SPLITS,
    Annotated,
    Images,
    Item,
    Raw,
    clean_label,
    split_name,
    text_lines,
)
from visionattn.errors import DataError
from visionattn.io.inputs import walk_files

__all__ = ["find_names", "read_yolo"]

NAME_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "labels.txt")
LARGEST_YAML = 4 << 20
FARTHEST = 10
"""Values above are pixels: annotations that leave their image rarely reach to ten times its size."""


def find_names(root: Path) -> Path | None:
    """Return the file with the class names of a YOLO folder: a YAML file with ``names``, or a list; None without."""
    files = sorted(walk_files(root, {".yaml", ".yml"}), key=lambda path: (len(path.parts), path.stem != "data", path))
    for file in files:
        if len(file.relative_to(root).parts) <= 3 and re.search(rb"^names\s*:", _head(file), re.M):
            return file
    lists = [p for p in walk_files(root, {".txt", ".names", ".labels"}) if p.name in NAME_FILES]
    return min(lists, key=lambda path: (len(path.parts), NAME_FILES.index(path.name)), default=None)


def _head(file: Path) -> bytes:
    with open(file, "rb") as stream:
        return stream.read(LARGEST_YAML)


def read_yolo(root: Path, images: Images) -> Raw:
    """Read a folder in one of the layouts.

    Raises:
        DataError: there are no class names, or a line is malformed; the message has the file and line.
    """
    names = find_names(root)
    if names is None:
        raise DataError(f"{root}: has no class names; add data.yaml with `names:`, or classes.txt with one per line")
    settings = _read_yaml(names, images) if names.suffix in (".yaml", ".yml") else _read_lists(names, images)
    classes = [clean_label(name, images.report, images.where(names)) for name in settings["names"]]
    if twice := next((name for name in classes if classes.count(name) > 1), None):
        raise DataError(f"{names}: the class name {twice!r} occurs twice")
    points = settings.get("kpt_shape")
    members = list(_members(names, settings, images))
    if not members and Path(settings["path"]).is_dir() and Path(settings["path"]).is_absolute():
        raise DataError(f"{names}: its images are in {settings['path']!r:.200}; give that folder, with this file in it")
    found, used = [], set()
    for split, image, where in members:
        label = _label_file(image, images.root)
        if label is None:
            images.report.add("images without a label file, used as images without objects", images.where(image))
            found.append(Annotated(image, split, where, [], relative=True))
            continue
        used.add(label)
        items = list(_items(label, classes, points, images))
        found.append(Annotated(image, split, images.where(label), items, relative=True))
    _report_rest(names.parent if names.parent.name != "labels" else names.parent.parent, used, members, images)
    return Raw(classes, found, ids=list(range(len(classes))))


def _read_yaml(file: Path, images: Images) -> dict[str, Any]:
    """Return ``names`` as a list, the paths of the splits by name, and other keys; all values are text."""
    if file.stat().st_size > LARGEST_YAML:
        raise DataError(f"{file}: is larger than {LARGEST_YAML >> 20} MB")
    text = "\n".join(text_lines(file, images.report, images.where(file)))
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.BaseLoader)):
            raise DataError(f"{file}: has YAML aliases (*name), which are refused; write the values out")
        content = yaml.load(text, Loader=yaml.BaseLoader)  # all scalars as text: the class `no` is not False
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{file}{line}: is not valid YAML ({str(error).splitlines()[0]})") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise DataError(f"{file}: the keys of `names` must be 0, 1, 2, ... without gaps")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise DataError(f"{file}: `names` must be a list of class names, or a table of 0: name, 1: name, ...")
    if content.get("nc", str(len(names))) != str(len(names)):
        images.report.add("`nc` that is not the number of names, not used", images.where(file))
    shape = content.get("kpt_shape")
    try:
        points = None if shape is None else int(shape[0]) * int(shape[1])
    except (ValueError, TypeError, LookupError, KeyError) as error:
        raise DataError(f"{file}: `kpt_shape` must be [points, values of each], got {str(shape)[:60]!r}") from error
    base = content.get("path", "")
    splits = {split: content[key] for split, keys in SPLITS.items() for key in keys if content.get(key)}
    return {"names": names, "splits": splits, "path": base if isinstance(base, str) else "", "kpt_shape": points}


def _read_lists(file: Path, images: Images) -> dict[str, Any]:
    names = [line for line in text_lines(file, images.report, images.where(file)) if line.strip()]
    if not names:
        raise DataError(f"{file}: is empty; write one class name per line")
    splits = {}
    for data in sorted(file.parent.glob("*.data")):
        lines = [line.partition("=") for line in text_lines(data, images.report, images.where(data))]
        pairs = {key.strip(): value.strip() for key, sign, value in lines if sign}
        splits |= {split: pairs[key] for split, keys in SPLITS.items() for key in keys if pairs.get(key)}
    if not splits:
        top = file.parent.parent if file.parent.name == "labels" else file.parent
        splits = {s: f"{key}.txt" for s, keys in SPLITS.items() for key in keys if (top / f"{key}.txt").is_file()}
    return {"names": names, "splits": splits, "path": ""}


def _members(names: Path, settings: dict[str, Any], images: Images) -> Iterator[tuple[str, Path, str]]:
    """Yield split, image, and the place that names it."""
    any_found = False
    for split, given in settings["splits"].items():
        for value in given if isinstance(given, list) else [given]:
            found = None
            if isinstance(value, str):
                found = _resolve(value, names.parent, settings["path"], images)
            if found is None:
                images.report.add("splits whose folder or list does not exist", f"{images.where(names)}: {split}")
                continue
            any_found = True
            if found.is_dir():
                yield from ((split, path, images.where(path)) for path in images.paths if path.is_relative_to(found))
            else:
                yield from ((split, *pair) for pair in _listed(found, settings["path"], images))
    if not any_found:
        for path in images.paths:
            yield split_name(reversed(path.relative_to(images.root).parts[:-1])), path, images.where(path)


def _resolve(value: str, folder: Path, base: str, images: Images) -> Path | None:
    """Return the folder or list of a split; Roboflow writes paths that leave the folder by one ``..`` too many."""
    value = value.replace("\\", "/").rstrip("/")
    parts = [part for part in value.split("/") if part not in ("", ".", "..")]
    tries = [os.path.normpath(os.path.join(folder, base, value)), os.path.normpath(os.path.join(folder, value))]
    tries += [os.path.join(folder, *parts[skip:]) for skip in range(len(parts) + (not parts))]
    for number, path in enumerate(map(Path, tries)):
        if path.exists() and path.is_relative_to(images.root):
            if number >= 2:
                images.report.add(
                    "paths of splits that do not exist as written, found in the folder",
                    f"{value}: {images.where(path)}",
                )
            return path
    return None


def _listed(file: Path, base: str, images: Images) -> Iterator[tuple[Path, str]]:
    for number, line in enumerate(text_lines(file, images.report, images.where(file)), 1):
        name, where = line.strip(), images.where(file, number)
        if not name:
            continue
        path = Path(name)
        if path.is_absolute() and ".." not in path.parts and path.is_file() and not path.is_relative_to(images.root):
            images.report.add("images of lists outside of the folder, used", f"{where}: {name}")
            yield path, where
            continue
        found = images.find(name, [Path(os.path.normpath(file.parent / base)), file.parent], where)
        if found is None:
            images.report.add("images in lists that do not exist, left out", f"{where}: {name}")
        else:
            yield found, where


def _label_file(image: Path, root: Path) -> Path | None:
    """Return the label file of an image: in the folder ``labels`` beside ``images``, or beside the image.

    Images inside the root have their labels there as well.
    """
    top = root if image.is_relative_to(root) else Path(image.anchor)
    parts = image.with_suffix(".txt").parts
    tries = []
    for at in range(len(parts) - 2, 0, -1):  # the last `images` in the path, as Ultralytics
        if parts[at].lower() in ("images", "jpegimages", "img", "imgs"):
            tries.append(Path(*parts[:at], "labels", *parts[at + 1 :]))
    tries += [Path(*parts), Path(*parts[:-2], "labels", parts[-1]), Path(*parts[:-1], "labels", parts[-1])]
    if len(parts) > 3:
        tries.append(Path(*parts[:-3], "labels", *parts[-2:]))
    inside = (path for path in tries if path.is_relative_to(top) and path.name not in NAME_FILES)
    return next((path for path in inside if path.is_file()), None)


def _items(file: Path, classes: list[str], points: int | None, images: Images) -> Iterator[Item]:
    where = images.where(file)
    for number, line in enumerate(text_lines(file, images.report, where), 1):
        if not line.strip():
            continue
        at, place = f"{file}:{number}", images.where(file, number)
        try:
            values = [float(field) for field in line.split()]
        except ValueError:
            raise DataError(f"{at}: {line.strip()[:60]!r} is not a line of numbers") from None
        label, values = values[0], values[1:]
        if not 0 <= label < len(classes) or label != int(label):
            last = len(classes) - 1
            raise DataError(f"{at}: the class {label:g} has no name; the {len(classes)} names are 0 to {last}")
        if any(abs(value) > FARTHEST for value in values):
            raise DataError(f"{at}: {line.strip()[:60]!r} is in pixels; YOLO has fractions of the image size")
        name = classes[int(label)]
        if points is not None and len(values) == 4 + points:
            images.report.add("objects whose keypoints are not read", place)
            values = values[:4]
        if len(values) == 4:
            yield Item(name, place, box=values, centered=True)
        elif len(values) >= 6 and len(values) % 2 == 0:
            yield Item(name, place, polygons=[values])
        else:
            raise DataError(
                f"{at}: has {len(values)} values after the class; a box has 4 and a polygon at least 3 pairs"
            )


def _report_rest(root: Path, used: set[Path], members: list[tuple[str, Path, str]], images: Images) -> None:
    """Report label files without an image, and images that share a label file."""
    owners: dict[Path, Path] = {}
    for _, image, _ in members:
        stem = image.with_suffix("")
        if owners.setdefault(stem, image) != image:
            images.report.add("images that share a label file", f"{images.where(image)}, {owners[stem].name}")
    folders = {path.parent for path in used}
    for path in walk_files(root, {".txt"}):
        if path in used or path.name in NAME_FILES:
            continue
        numbers = re.match(rb"(?:\xef\xbb\xbf)?\s*(\d+(\s+[-+.\deE]+){4,}\s*(\n|$)|$)", _head(path)[:65536])
        if numbers and (path.parent in folders or "labels" in path.parts):
            images.report.add("label files without an image, not used", images.where(path))
