"""Read COCO JSON files with boxes, polygons or run-length encodings.

An own parser, since the files are only copied with their category ids, and what readers skip must be counted.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from visionattn.data.coco import segmentation_fault
from visionattn.data.formats.common import Annotated, Images, Item, Raw, clean_label, json_file, split_name
from visionattn.errors import DataError
from visionattn.io.inputs import walk_files

__all__ = ["is_coco", "read_coco"]

KNOWN = {"id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"}


def is_coco(content: Any) -> bool:
    """Return True for the content of a COCO file with categories."""
    return isinstance(content, dict) and all(
        isinstance(content.get(k), list) for k in ("images", "annotations", "categories")
    )


def read_coco(root: Path, images: Images) -> Raw:
    """Read all COCO files of a folder; the names of the files, or else of their folders, give the splits.

    Raises:
        DataError: a file is malformed, or two files annotate the same images.
    """
    ids: dict[str, int] = {}
    found: list[Annotated] = []
    owners: dict[tuple[str, Path], Path] = {}
    for file in _files(root, images):
        where = images.where(file)
        content = json_file(file, images.report, where)
        if not is_coco(content) or not content["categories"]:
            images.report.add("JSON files without COCO categories, not used", where)
            continue
        names = _categories(content["categories"], file, ids, images)
        split = split_name([file.stem, *reversed(file.relative_to(images.root).parts[:-1])])
        for annotated in _read(file, content, names, split, images):
            other = owners.setdefault((split, annotated.image), file)
            if other != file:
                raise DataError(
                    f"{file}: annotates the same images as {images.where(other)}, such as {annotated.image.name}; move "
                    "one of the files to another folder, or set `custom_data.train_ann` and `custom_data.val_ann`"
                )
            found.append(annotated)
    return Raw(list(ids), found, ids=list(ids.values()))


def _files(root: Path, images: Images) -> list[Path]:
    files = list(walk_files(root, {".json"}))
    if any(file.name.startswith("instances_") for file in files):  # the official set has captions and keypoints as well
        for file in files:
            if not file.name.startswith("instances_"):
                images.report.add("JSON files beside instances_*.json, not used", images.where(file))
        files = [file for file in files if file.name.startswith("instances_")]
    return files


def _categories(records: list[Any], file: Path, ids: dict[str, int], images: Images) -> dict[Any, str]:
    """Return the class of each category id of a file; ``ids`` receives the id of each class in the result."""
    names: dict[Any, str] = {}
    for record in records:
        usable = (
            isinstance(record, dict) and isinstance(record.get("name"), (str, int)) and type(record.get("id")) is int
        )
        if not usable:
            raise DataError(f"{file}: each category needs a whole number as its id, and a name")
        name = clean_label(str(record["name"]), images.report, images.where(file))
        if record["id"] in names or name in names.values() or not name:
            raise DataError(f"{file}: the category {record['id']}, {name!r}, occurs twice or has no name")
        names[record["id"]] = name
        if name not in ids:
            ids[name] = record["id"] if record["id"] not in ids.values() else max(ids.values()) + 1
        if ids[name] != record["id"]:
            images.report.add("category ids that differ between files, changed", f"{images.where(file)}: {name}")
    return names


def _read(file: Path, content: dict[str, Any], names: dict[Any, str], split: str, images: Images) -> list[Annotated]:
    report, where = images.report, images.where(file)
    extra = Counter(key for a in content["annotations"] if isinstance(a, dict) for key in a.keys() - KNOWN)
    for key, count in sorted(extra.items()):
        report.add(f"keys of annotations that are not read ({key})", where, count)
    by_id: dict[Any, Annotated] = {}
    known: set[Any] = set()
    folders = [file.parent, file.parent / "images", *(file.parent / "images" / name for name in (split,) if name)]
    for number, record in enumerate(content["images"], 1):
        at = f"{where}: image {number}"
        if not isinstance(record, dict) or not isinstance(record.get("id"), (int, str)):
            raise DataError(f"{file}: image {number} has no usable id")
        if record["id"] in known:
            raise DataError(f"{file}: the image id {record['id']!r} is used twice")
        known.add(record["id"])
        name = record.get("file_name")
        image = images.find(name, folders, at) if isinstance(name, str) else None
        if image is None:
            report.add("annotations without an image, left out", f"{at}: {str(name)[:100]}")
            continue
        given = (record.get("width"), record.get("height"))
        size = given if all(type(n) is int and n > 0 for n in given) else None
        if size is None:
            report.add("annotations without a size, checked without it", at)
        by_id[record["id"]] = Annotated(image, split, at, [], size=size)
    for number, record in enumerate(content["annotations"], 1):
        at = f"{where}: annotation {number}"
        image_id = record.get("image_id") if isinstance(record, dict) else None
        if not isinstance(image_id, (int, str)) or image_id not in known:
            report.add("annotations of images that the file does not list, dropped", at)
        elif record.get("category_id") not in names if isinstance(record.get("category_id"), int) else True:
            report.add("annotations of categories that the file does not list, dropped", at)
        elif image_id in by_id and (item := _item(record, names, by_id[image_id], at, images)) is not None:
            by_id[image_id].items.append(item)
    return list(by_id.values())


def _item(record: dict[str, Any], names: dict[Any, str], image: Annotated, at: str, images: Images) -> Item | None:
    item = Item(names[record["category_id"]], at, crowd=bool(record.get("iscrowd")))
    box = record.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box):
        item.box = box
    shape = record.get("segmentation")
    size = image.size or (None if isinstance(shape, dict) else (1 << 20, 1 << 20))  # an RLE is checked with the image
    if shape and size is not None and (fault := segmentation_fault(shape, size)):
        images.report.add("segmentations that cannot be read, dropped", f"{at}: {fault}")
        shape = None
    if isinstance(shape, dict):
        item.mask = shape
    elif shape:
        item.polygons = shape
    if item.box is None and not shape:
        images.report.add("annotations without a usable box, dropped", at)
        return None
    return item
