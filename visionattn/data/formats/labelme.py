"""Read LabelMe annotations: one JSON file per image, which may contain the image.

An own parser, since datumaro 1.13 reads the XML files of another program with this name, and supervision has no reader.
"""

import base64
import binascii
import io
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.formats.common import Annotated, Images, Item, Raw, Report, clean_label, json_file, split_name
from visionattn.errors import DataError, require
from visionattn.io.images import check_size
from visionattn.io.inputs import IMAGE_SUFFIXES, walk_files

__all__ = ["read_labelme"]

CIRCLE_POINTS = 64
MASK_PIXELS = 100_000_000


def read_labelme(root: Path, images: Images) -> Raw:
    """Read all LabelMe files of a folder, in the splits of the names of their folders.

    Raises:
        DataError: a file is malformed; the message has the number of the shape.
    """
    report, found = images.report, []
    for file in walk_files(root, {".json"}):
        where = images.where(file)
        content = json_file(file, report, where)
        if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            report.add("JSON files that are not of LabelMe, not used", where)
            continue
        split = split_name(reversed(file.relative_to(images.root).parts[:-1]))
        image, embedded = _image(file, content, images)
        if image is None:
            report.add("annotations without an image, left out", where)
            continue
        if any((content.get("flags") or {}).values()) if isinstance(content.get("flags"), dict) else False:
            report.add("flags of images, not read", where)
        items = list(_items(file, content["shapes"], images))
        given = (content.get("imageWidth"), content.get("imageHeight"))
        size = given if all(isinstance(n, int) and n > 0 for n in given) else None
        # LabelMe itself shows shapes in pixels of the image and corrects these numbers
        found.append(Annotated(image, split, where, items, size=size, embedded=embedded, trust_size=False))
    return Raw([], found)


def _image(file: Path, content: dict[str, Any], images: Images) -> tuple[Path | None, Any]:
    """Return the path of the image and, if the image is only embedded, a function that returns its content."""
    given, where = content.get("imagePath"), images.where(file)
    given = given if isinstance(given, str) else ""
    image = images.find(given, [file.parent], where, anywhere=False) or images.named_like(file)
    if image is not None:
        return image, None
    if isinstance(content.get("imageData"), str) and content["imageData"]:
        name = given.replace("\\", "/").rpartition("/")[2] or f"{file.stem}.jpg"
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
            name = f"{file.stem}.jpg"
        images.report.add("images embedded in annotations, written to files", where)
        return file.parent / name, partial(_embedded, file)
    return images.find(given, [file.parent], where), None


def _embedded(file: Path) -> bytes:
    text = json_file(file, Report(), str(file))["imageData"]
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{file}: imageData is not an image in base64 ({error})") from error


def _items(file: Path, shapes: list[Any], images: Images) -> Iterator[Item]:
    report, groups = images.report, {}
    for number, shape in enumerate(shapes, 1):
        at, where = f"{file}: shape {number}", f"{images.where(file)}: shape {number}"
        if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
            raise DataError(f"{at}: needs a text as its label")
        label = clean_label(shape["label"], report, where)
        kind = shape.get("shape_type") or "polygon"  # old files have polygons only
        if not label:
            report.add("objects without a class, dropped", where)
            continue
        if kind not in ("rectangle", "polygon", "circle", "mask"):
            report.add(f"shapes of the type {kind!r:.30}, not read", where)
            continue
        item = _item(label, kind, shape, at, where, images)
        group = shape.get("group_id")
        if item is None:
            continue
        if isinstance(group, (int, str)) and item.polygons and (label, group) in groups:
            report.add("shapes of one group and class, joined to one object", where)
            groups[label, group].polygons += item.polygons
            continue
        if isinstance(group, (int, str)) and item.polygons:
            groups[label, group] = item
            continue
        yield item
    yield from groups.values()


def _item(label: str, kind: str, shape: dict[str, Any], at: str, where: str, images: Images) -> Item | None:
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{at}: its points must be a list of [x, y]") from None
    if not all(math.isfinite(v) for point in points for v in point):
        raise DataError(f"{at}: has a coordinate that is not finite")
    if kind == "polygon":
        if len(points) < 3:
            images.report.add("polygons of less than 3 points, dropped", where)
            return None
        return Item(label, where, polygons=[[v for point in points for v in point]])
    if len(points) == 4 and kind == "rectangle":  # versions 5.5 and later may write all corners
        xs, ys = [x for x, _ in points], [y for _, y in points]
        if len(set(xs)) > 2 or len(set(ys)) > 2:
            return Item(label, where, polygons=[[v for point in points for v in point]])
        points = [(min(xs), min(ys)), (max(xs), max(ys))]
    if len(points) != 2:
        raise DataError(f"{at}: a {kind} has 2 points, got {len(points)}")
    (x0, y0), (x1, y1) = points
    if kind == "circle":
        radius = math.hypot(x1 - x0, y1 - y0)
        turns = [2 * math.pi * i / CIRCLE_POINTS for i in range(CIRCLE_POINTS)]
        images.report.add(f"circles, converted to polygons of {CIRCLE_POINTS} points", where)
        return Item(
            label, where, polygons=[[v for t in turns for v in (x0 + radius * math.cos(t), y0 + radius * math.sin(t))]]
        )
    if kind == "mask":
        return Item(label, where, mask=_mask(shape, at), corner=(round(min(x0, x1)), round(min(y0, y1))))
    return Item(label, where, [min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)])


def _mask(shape: dict[str, Any], at: str) -> np.ndarray:
    """Return the bool ``[h, w]`` mask that a shape has as a PNG file in base64."""
    try:
        content = base64.b64decode(shape["mask"])
        with require("PIL.Image").open(io.BytesIO(content), formats=("PNG",)) as image:
            check_size(at, image.width, image.height, MASK_PIXELS)
            return np.asarray(image.convert("L")) > 0
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types, depending on the damage
        raise DataError(f"{at}: its mask is not a PNG file in base64 ({str(error)[:100]})") from error
