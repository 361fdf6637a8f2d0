"""Read XML files of CVAT: "CVAT for images 1.1", and boxes, polygons and masks of "CVAT for video 1.1".

An own parser, since datumaro 1.13 keeps the boxes of objects that have left the video (``outside="1"``) and stores
32-bit numbers, and supervision has no reader.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from visionattn.data.formats.common import Annotated, Images, Item, Raw, clean_label, split_name
from visionattn.errors import DataError
from visionattn.io.inputs import walk_files
from visionattn.io.xml import Element, read_xml

__all__ = ["read_cvat"]

MASK_PIXELS = 178_956_970
READ = ("box", "polygon", "mask")


def read_cvat(root: Path, images: Images) -> Raw:
    """Read all XML files of CVAT in a folder, in the subsets of the export, or in splits by the names of the files.

    Raises:
        DataError: a file is malformed; the message has the line.
    """
    classes: list[str] = []
    found: list[Annotated] = []
    for file in walk_files(root, {".xml"}):
        tree = read_xml(file)
        if tree.tag != "annotations":
            images.report.add("XML files that are not of CVAT, not used", images.where(file))
            continue
        for element in tree.findall("meta//labels/label"):
            name = clean_label(element.findtext("name") or "", images.report, images.where(file))
            if name and name not in classes and element.findtext("parent") is None:  # a part of a skeleton has one
                classes.append(name)
        names = [file.stem, *reversed(file.relative_to(images.root).parts[:-1])]
        split = split_name(names)
        for element in tree.findall("image"):
            if (one := _read_image(element, file, split, images)) is not None:
                found.append(one)
        found += _frames(tree, file, split, images)
    return Raw(classes, found)


def _read_image(element: Element, file: Path, split: str, images: Images) -> Annotated | None:
    name, subset = element.get("name") or "", element.get("subset") or ""
    where = images.where(file, element.line)
    base = file.parent
    folders = [base / "images" / subset, base / "images", base / subset, base]
    image = images.find(name, folders, where)
    if image is None:
        images.report.add("annotations without an image, left out", f"{where}: {name}")
        return None
    own = split_name([subset]) or (subset if subset.lower() != "default" else "") or split
    try:
        size = int(element.get("width", "")), int(element.get("height", ""))
    except ValueError:
        raise DataError(f"{file}:{element.line}: an image needs a width and a height") from None
    items = [item for shape in element if (item := _item(shape, shape.get("label"), file, images))]
    return Annotated(image, own, where, items, size=size)


def _frames(tree: Element, file: Path, split: str, images: Images) -> Iterator[Annotated]:
    """Yield the frames of an annotated video, whose objects are tracks."""
    shapes: dict[int, list[Item]] = {}
    lines: dict[int, int] = {}
    for track in tree.findall("track"):
        for shape in track:
            try:
                frame = int(shape.get("frame", ""))
            except ValueError:
                raise DataError(f"{file}:{shape.line}: a shape of a track needs the number of its frame") from None
            shapes.setdefault(frame, [])
            lines.setdefault(frame, shape.line)
            if shape.get("outside") == "1":
                continue
            if (item := _item(shape, track.get("label"), file, images)) is not None:
                shapes[frame].append(item)
    for frame, items in sorted(shapes.items()):
        where = images.where(file, lines[frame])
        names, folders = [f"frame_{frame:06d}{suffix}" for suffix in (".png", ".PNG", ".jpg")], [file.parent / "images"]
        image = next((p for name in names if (p := images.find(name, folders, where, anywhere=False))), None)
        if image is None:
            images.report.add("annotations without an image, left out", f"{where}: frame {frame}")
            continue
        yield Annotated(image, split, where, items)


def _item(shape: Element, label: str | None, file: Path, images: Images) -> Item | None:
    where, report = images.where(file, shape.line), images.report
    if shape.tag not in READ:
        report.add("image tags, not read" if shape.tag == "tag" else f"{shape.tag} shapes, not read", where)
        return None
    label = clean_label(label or "", report, where)
    if not label:
        report.add("objects without a class, dropped", where)
        return None
    try:
        if shape.tag == "box":
            x0, y0, x1, y1 = (float(shape.get(key, "")) for key in ("xtl", "ytl", "xbr", "ybr"))
            angle = float(shape.get("rotation", "0"))
            if angle % 360:
                report.add("rotated boxes, converted to polygons", where)
                return Item(label, where, polygons=[_rotated(x0, y0, x1, y1, angle)])
            if x1 < x0 or y1 < y0:
                report.add("boxes with exchanged corners, corrected", where)
            return Item(label, where, [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)])
        if shape.tag == "polygon":
            points = [[float(v) for v in point.split(",")] for point in shape.get("points", "").split(";")]
            if any(len(point) != 2 for point in points):
                raise ValueError
            return Item(label, where, polygons=[[v for point in points for v in point]])
        left, top, width, height = (int(float(shape.get(key, ""))) for key in ("left", "top", "width", "height"))
        runs = np.array([int(run) for run in shape.get("rle", "").split(",")], np.int64)
    except (ValueError, OverflowError):
        raise DataError(
            f"{file}:{shape.line}: a {shape.tag} has a coordinate that is missing or not a number"
        ) from None
    if not 0 < width * height <= MASK_PIXELS or width < 0 or (runs < 0).any() or (runs > width * height).any():
        raise DataError(f"{file}:{shape.line}: a mask has an invalid size or run length")
    if int(runs.sum()) != width * height:
        raise DataError(f"{file}:{shape.line}: the runs of a mask have {runs.sum()} pixels, not {width} x {height}")
    mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)  # row by row, background first
    return Item(label, where, mask=mask, corner=(left, top))


def _rotated(x0: float, y0: float, x1: float, y1: float, degrees: float) -> list[float]:
    """Return the corners of a box rotated clockwise around its center."""
    cx, cy, cos, sin = (x0 + x1) / 2, (y0 + y1) / 2, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x - cx, y - cy) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
    return [v for x, y in corners for v in (cx + x * cos - y * sin, cy + x * sin + y * cos)]
