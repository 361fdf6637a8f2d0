"""Validate COCO panoptic annotations and their maps."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.coco import (
    _check_categories,
    _check_images,
    _has_id,
    _hashable,
    _load,
    _Problems,
    _short,
)
from visionattn.errors import DataError
from visionattn.io.images import open_image

__all__ = ["PanopticSummary", "check_panoptic"]

MAX_DECODED = 2000
"""Maximum number of maps whose pixels are read, evenly spaced: all of COCO's would take an hour."""


@dataclass(frozen=True)
class PanopticSummary:
    """Contents of a valid panoptic annotation file."""

    images: int
    segments: int
    things: tuple[str, ...]
    stuff: tuple[str, ...]
    """Category names in the order of the file, which lists the things first."""
    crowds: int

    def __str__(self) -> str:
        kinds = f"{len(self.things)} things and {len(self.stuff)} stuffs"
        return f"{self.images} images, {self.segments} segments of {kinds}"


def check_panoptic(
    ann_file: str | Path, image_dir: str | Path, map_dir: str | Path, *, max_problems: int = 10
) -> PanopticSummary:
    """Check a COCO panoptic annotation file, that its images exist, and its maps.

    The checks: the file has the keys of COCO's panoptic format; thing categories precede stuff categories, as in
    mmdet's numbering; every image is in `image_dir` and has one annotation, whose map is in `map_dir` with the name of
    the image and suffix .png, as mmdet requires; ids are unique and categories exist; a map has the size of its image
    and contains exactly the ids of the image's segments, in addition to 0. The pixels of at most `MAX_DECODED` maps are
    read.

    Args:
        ann_file: the annotation file.
        image_dir: the folder that an image's ``file_name`` is relative to.
        map_dir: the folder of the maps.
        max_problems: number of problems to keep in ``error.problems``; all are counted.

    Raises:
        DataError: the file is invalid; the message has the first problem, the number of others and a remedy.
    """
    ann_file, image_dir, map_dir = Path(ann_file), Path(image_dir), Path(map_dir)
    data = _load(ann_file)
    for folder, what in ((image_dir, "image"), (map_dir, "map")):
        if not folder.is_dir():
            raise DataError(f"{what} folder {folder} does not exist; use the folder with the {what}s of {ann_file}")
    problems = _Problems(ann_file, max(1, max_problems))
    categories = _check_categories(data["categories"], problems)
    _check_order(data["categories"], problems)
    sizes = _check_images(data["images"], image_dir, problems)
    names = {record["id"]: record.get("file_name") for record in data["images"] if _has_id(record)}
    sound, annotated, segments, crowds = [], set(), 0, 0
    for annotation in data["annotations"]:
        fault = _annotation_fault(annotation, names, annotated, categories)
        if fault:
            problems.add(*fault)
            continue
        annotated.add(annotation["image_id"])
        segments += len(annotation["segments_info"])
        crowds += sum(bool(s.get("iscrowd")) for s in annotation["segments_info"])
        if annotation["image_id"] in sizes:
            sound.append((annotation, sizes[annotation["image_id"]]))
    if not problems.count:  # otherwise the missing annotation may be one already reported
        for name in (names[image_id] for image_id in names if image_id not in annotated):
            problems.add(f"image {_short(name)} has no annotation", "add one, or remove the image")
    chosen = set(range(0, len(sound), -(-len(sound) // MAX_DECODED) or 1))
    with ThreadPoolExecutor(8) as pool:
        faults = pool.map(lambda i: _map_fault(map_dir, *sound[i], i in chosen), range(len(sound)))
        for fault in filter(None, faults):
            problems.add(*fault)
    problems.raise_if_any()
    kinds = [[c["name"] for c in data["categories"] if bool(c["isthing"]) == kind] for kind in (True, False)]
    return PanopticSummary(len(sizes), segments, tuple(kinds[0]), tuple(kinds[1]), crowds)


def _check_order(records: list, problems: _Problems) -> None:
    kinds = [record.get("isthing") if isinstance(record, dict) else None for record in records]
    for record, kind in zip(records, kinds, strict=True):
        if kind not in (0, 1):
            name = record.get("name") if isinstance(record, dict) else record
            problems.add(
                f"category {_short(name)} has isthing {_short(kind)}", "set isthing to 1 for things and 0 for stuff"
            )
            return
    if kinds != sorted(kinds, reverse=True):
        late = records[kinds.index(0) + kinds[kinds.index(0) :].index(1)]["name"]
        problems.add(f"the thing {_short(late)} comes after a category of stuff", "list the categories of things first")


def _annotation_fault(
    annotation: Any, names: dict[Any, Any], annotated: set[Any], categories: dict[Any, str]
) -> tuple[str, str] | None:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("segments_info"), list):
        return "an annotation has no list segments_info", "use a panoptic annotation file, not one of instances"
    image_id = annotation.get("image_id")
    if not _hashable(image_id) or image_id not in names:
        return f"an annotation has image_id {_short(image_id)}, which does not exist", "add the image or remove it"
    name = names[image_id]
    if image_id in annotated:
        return f"image {_short(name)} has more than one annotation", "keep one, with all segments of the image"
    expected = Path(str(name).replace(".jpg", ".png")).name
    if annotation.get("file_name") != expected:
        found = _short(annotation.get("file_name"))
        return f"the map of image {_short(name)} is named {found}", f"name it {expected}, where mmdet looks for it"
    seen = set()
    for segment in annotation["segments_info"]:
        fault = _segment_fault(segment, seen, categories)
        if fault:
            return f"image {_short(name)}: {fault[0]}", fault[1]
        seen.add(segment["id"])
    return None


def _segment_fault(segment: Any, seen: set[int], categories: dict[Any, str]) -> tuple[str, str] | None:
    number = segment.get("id") if isinstance(segment, dict) else None
    if type(number) is not int or not 0 < number < 1 << 24:
        return f"a segment has id {_short(number)}", "ids are whole numbers in 1..16777215, as the map codes them"
    if number in seen:
        return f"segment {number} is listed more than once", "list each segment once"
    category = segment.get("category_id")
    if not _hashable(category) or category not in categories:
        return f"segment {number} has category_id {_short(category)}, which does not exist", "add the category"
    for key in ("bbox", "area"):
        if key not in segment:
            return f"segment {number} has no {key}", "write id, category_id, iscrowd, bbox and area of each"
    return None


def _map_fault(folder: Path, annotation: dict, size: tuple[int, int], decode: bool) -> tuple[str, str] | None:
    path = folder / annotation["file_name"]
    again = "write it again from the source"
    try:
        with open_image(path) as image:
            if image.size != size:
                return f"map {path} is {image.size[0]}x{image.size[1]}, but its image is {size[0]}x{size[1]}", again
            if image.mode != "RGB":
                return f"map {path} has mode {image.mode}", "ids are coded as colours of an 8-bit RGB image"
            if not decode:
                return None
            codes = np.asarray(image).astype(np.int32) @ np.array([1, 256, 65536], np.int32)
    except FileNotFoundError:
        return f"map {path} is missing", "add it, or remove its annotation"
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ..., depending on the damage
        return f"map {path} cannot be read ({' '.join(str(error).split())[:100]})", again
    shown = set(np.unique(codes).tolist()) - {0}
    listed = {segment["id"] for segment in annotation["segments_info"]}
    return next(_id_faults(path, shown, listed), None)


def _id_faults(path: Path, shown: set[int], listed: set[int]) -> Iterator[tuple[str, str]]:
    remedy = "the map's red + 256 green + 65536 blue must be the ids of segments_info"
    if listed - shown:
        yield f"segment {min(listed - shown)} is not in the map {path}", remedy
    if shown - listed:
        yield f"map {path} contains the id {min(shown - listed)}, which is not a segment of its image", remedy
