"""Summarize the data in a folder, as far as the choice of a config needs it."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.formats.detect import Found, detect, detect_all
from visionattn.data.formats.similar import TooFewImagesError
from visionattn.data.mask_folders import check_masks, pair_masks, read_names
from visionattn.data.recipes import DataSummary
from visionattn.engine.auto.mask_splits import complete_masks
from visionattn.engine.config.custom_data import SPLITS, load_coco
from visionattn.engine.config.custom_folders import class_names, find_class_folders
from visionattn.engine.config.custom_formats import convert_folder, convert_mask_folder
from visionattn.engine.config.custom_masks import find_masks, read_classes, under
from visionattn.errors import DataError
from visionattn.io.images import image_size
from visionattn.io.inputs import IMAGE_SUFFIXES, walk_files

__all__ = ["recognize", "summarize"]

PREFERRED = {"voc-masks": ("maps", "masks", "boxes"), "class-folders": ("labels", "boxes")}
"""Annotations that a folder is used for first, if the user names no task; of other formats, see `ORDER`."""
ORDER = ("masks", "boxes", "maps", "labels")
MASKED = 0.5
"""Fraction of objects with masks from which those without are ignored regions, and the folder has masks."""
MEASURED = 300
"""Number of images whose size is read where the annotations have none."""
NAME = "--data"


def recognize(root: Path, block: Mapping[str, Any]) -> tuple[Found, dict[str, Any], list[str]]:
    """Return the format of a folder, the keys of ``custom_data`` with it, and lines about formats that are not used.

    Args:
        root: the folder.
        block: keys of ``custom_data`` that the user has set; ``format`` chooses a format.

    Raises:
        DataError: see `visionattn.data.formats.detect.detect`.
    """
    if not root.is_dir():
        raise DataError(f"`data` {root}: {'is a file' if root.is_file() else 'does not exist'}; give a folder")
    if not os.access(root, os.R_OK | os.X_OK):
        raise DataError(f"`data` {root}: cannot be read; check its permissions")
    if block.get("format"):
        return Found(block["format"], "as given"), dict(block), []
    formats = detect_all(root)
    if len(formats) < 2:
        return detect(root), dict(block), []
    kind, *others = formats
    note = f"also has annotations in the format {', '.join(others)}, not used; custom_data.format selects it"
    return Found(kind, formats[kind]), {**block, "format": kind}, [note]


def summarize(root: Path, found: Found, given: Mapping[str, Any], wanted: str | None) -> DataSummary:
    """Read the annotations and describe them.

    Args:
        root: the folder.
        found: its format.
        given: keys of ``custom_data`` that the user has set.
        wanted: the annotations to use; None chooses.

    Raises:
        DataError: the folder does not have these annotations, or they are malformed.
    """
    order = PREFERRED.get(found.kind, ORDER)
    if wanted == "labels" or (wanted is None and order[0] == "labels"):
        return _labels(root, found, given)
    if wanted == "maps" or found.kind == "masks" or (wanted is None and order[0] == "maps"):
        return _maps(root, found, given)
    return _objects(root, found, given, wanted)


def _objects(root: Path, found: Found, given: Mapping[str, Any], wanted: str | None) -> DataSummary:
    block: dict[str, Any] = {"root": str(root), "train_ann": "", "val_ann": "", **given}
    notes = []
    try:
        convert_folder(block, root, NAME)
    except TooFewImagesError:
        block["val_share"] = 0
        notes.append("too few different images to set some aside: validated on the training images, so that the "
                     "scores are too high")  # fmt: skip
        convert_folder(block, root, NAME)
    content = load_coco(under(root, block["train_ann"]))
    used = given.get("classes")
    names = [str(c["name"]) for c in content["categories"]]
    names = [name for name in names if name in map(str, used)] if isinstance(used, (list, tuple)) else names
    row = {c["id"]: names.index(str(c["name"])) for c in content["categories"] if str(c["name"]) in names}
    place = {image["id"]: index for index, image in enumerate(content["images"])}
    objects = [o for o in content.get("annotations", ()) if _is_used(o, row, place)]
    masked = sum(bool(o.get("segmentation")) for o in objects)
    if wanted != "boxes" and MASKED * len(objects) <= masked < len(objects) and "boxes_as_ignored" not in given:
        summary = _objects(root, found, {**given, "boxes_as_ignored": True}, wanted)
        note = f"{len(objects) - masked} of {len(objects)} objects have no mask: ignored in training"
        return replace(summary, notes=(note, *summary.notes))
    labels = [row[o["category_id"]] for o in objects]
    if absent := [name for index, name in enumerate(names) if index not in set(labels)]:
        notes.append(f"no training image has an object of {', '.join(absent[:8])}")
    masks = {"masks"} if objects and masked == len(objects) else set()
    return DataSummary(
        root,
        found.kind,
        frozenset({"boxes", *masks, *({"maps"} if found.maps else ())}),
        {key: value for key, value in block.items() if value not in (None, "")},
        tuple(names),
        {split: _count(under(root, block[f"{split}_ann"])) for split in SPLITS if block.get(f"{split}_ann")},
        np.array([[image["width"], image["height"]] for image in content["images"]], float).reshape(-1, 2),
        np.array([o["bbox"][2:] for o in objects], float).reshape(-1, 2),
        np.array([place[o["image_id"]] for o in objects], int),
        np.array(labels, int),
        masked,
        notes=tuple(notes),
    )


def _is_used(record: Mapping[str, Any], row: Mapping[Any, int], place: Mapping[Any, int]) -> bool:
    """Return True for objects of the classes. Malformed ones, in files that the user names, are reported later."""
    known = record.get("category_id") in row and record.get("image_id") in place
    return known and not record.get("iscrowd") and len(record.get("bbox") or ()) == 4


def _count(file: Path) -> int:
    return len(load_coco(file)["images"])


def _maps(root: Path, found: Found, given: Mapping[str, Any]) -> DataSummary:
    block: dict[str, Any] = {"root": str(root), "train_mask": None, **given}
    inner = convert_mask_folder(block, root, NAME)
    added, notes = complete_masks(block, inner) if inner == root else ({}, [])
    block |= added
    splits = find_masks(dict(block), inner, NAME)
    classes, _ = read_classes(block, inner)
    pairs = {}
    for split in ("train", "val"):
        part = splits[split]
        pairs[split] = pair_masks(part.images, part.masks, read_names(part.names) if part.names else None)
    counts = check_masks(pairs["train"], classes)[: len(classes)]
    return DataSummary(
        root, found.kind, frozenset({"maps"}), {**given, **added, "root": str(root)}, tuple(classes),
        {split: len(found_pairs) for split, found_pairs in pairs.items()},
        _sizes([image for image, _ in pairs["train"]]), pixels=counts, notes=tuple(notes),
    )  # fmt: skip


def _labels(root: Path, found: Found, given: Mapping[str, Any]) -> DataSummary:
    block: dict[str, Any] = {"root": str(root), "train_boxes": None, **given}
    splits = find_class_folders(block, root, NAME)
    files = {split: list(walk_files(splits[split].images, IMAGE_SUFFIXES)) for split in ("train", "val")}
    if not files["train"]:
        raise DataError(f"{splits['train'].images}: the folders of the classes contain no image")
    notes = []
    counts = Counter(path.parent.name for path in files["train"])
    classes = class_names(block, splits["train"].images)
    if empty := [name for name in classes if not counts[name]]:
        notes.append(f"no training image of {', '.join(empty[:8])}")
    return DataSummary(
        root, found.kind, frozenset({"labels"}), {**given, "root": str(root)}, tuple(classes),
        {split: len(found_files) for split, found_files in files.items()}, _sizes(files["train"]), notes=tuple(notes),
    )  # fmt: skip


def _sizes(files: list[Path]) -> np.ndarray:
    """Return width and height of some of the images, ``[N, 2]``."""
    step = max(1, len(files) // MEASURED)
    found = [image_size(path) for path in files[::step]]
    return np.array([(h, w) if turned else (w, h) for w, h, turned in found], float).reshape(-1, 2)
