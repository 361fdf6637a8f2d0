"""Recognize the annotation format of a folder."""

import mmap
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from visionattn.data.formats.class_folders import read_class_folders, split_folders
from visionattn.data.formats.coco_files import read_coco
from visionattn.data.formats.common import Images, Raw, Report
from visionattn.data.formats.cvat import read_cvat
from visionattn.data.formats.finish import Dataset, finish
from visionattn.data.formats.labelme import read_labelme
from visionattn.data.formats.voc import read_voc
from visionattn.data.formats.voc_masks import read_voc_masks
from visionattn.data.formats.yolo import find_names, read_yolo
from visionattn.errors import DataError
from visionattn.io.inputs import walk_files

__all__ = ["KINDS", "Found", "detect", "detect_all", "read_folder"]

READERS: dict[str, Callable[[Path, Images], Raw]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "voc-masks": read_voc_masks,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "class-folders": read_class_folders,
}
KINDS = tuple(READERS)
"""Formats that can be converted."""
MASKS = (
    "masks",
    "annotations",
    "labels",
    "ann_dir",
    "SegmentationClass",
    "train/masks",
    "train/annotations",
    "train/labels",
)
MOST = 500
"""Number of files of a type that are looked at."""


@dataclass(frozen=True)
class Found:
    """The format of a folder.

    Attributes:
        kind: one of `KINDS`, or ``"masks"`` for images and index masks, which need no conversion.
        reason: what it was recognized by.
        maps: whether the folder has a class for each pixel, as semantic segmentation needs it.
        labels: whether the folder has a class for each image, as localization needs it.
    """

    kind: str
    reason: str
    maps: bool = False
    labels: bool = False


def detect(root: str | Path) -> Found:
    """Recognize the annotation format of a folder.

    Raises:
        DataError: the folder does not exist, has no known annotations, or annotations in several formats.
    """
    root = Path(os.path.abspath(Path(root).expanduser()))
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder")
    found = dict(_annotations(root))
    if len(found) > 1:
        several = "; ".join(f"{kind} ({reason})" for kind, reason in found.items())
        raise DataError(f"{root}: has annotations in several formats: {several}; choose one with `kind`")
    classes = next((p for p in walk_files(root, {".png"}) if p.parent.name == "SegmentationClass"), None)
    masks = next((f for f in MASKS if (root / f).is_dir() and _first(root / f, ".png")), None)
    if found:
        kind, reason = next(iter(found.items()))
        return Found(kind, reason, maps=masks is not None or (kind == "voc" and classes is not None))
    if classes is not None:
        return Found("voc-masks", f"masks such as {classes.relative_to(root)}", maps=True)
    if masks is not None:
        return Found("masks", f"index masks in {masks}", maps=True)
    if _has_labels(root):
        raise DataError(f"{root}: has YOLO label files but no class names; add classes.txt with one name per line")
    if folders := split_folders(root):
        names = ", ".join(str(folder.relative_to(root)) for folder in folders.values())
        return Found("class-folders", f"one subfolder per class in {names}", labels=True)
    raise DataError(
        f"{root}: no annotations found; known are COCO JSON, YOLO (data.yaml or classes.txt), VOC XML and masks, "
        "LabelMe JSON, CVAT XML, and folders of classes (train/CLASS/IMAGE, val/CLASS/IMAGE) (docs/data.md)"
    )


def detect_all(root: str | Path) -> dict[str, str]:
    """Return every format that a folder has annotation files of, in the order of `KINDS`, with what it has.

    Masks and folders of classes (train/CLASS/IMAGE, val/CLASS/IMAGE) are not annotation files.
    """
    found = dict(_annotations(Path(os.path.abspath(Path(root).expanduser()))))
    return {kind: found[kind] for kind in KINDS if kind in found}


def _annotations(root: Path) -> Iterator[tuple[str, str]]:
    """Yield each format of annotation files with its reason."""
    if (names := find_names(root)) is not None and (names.suffix != ".txt" or _has_labels(root)):
        yield "yolo", f"class names in {names.relative_to(root)}"
    seen = set()
    for path in _first(root, ".xml"):
        head = _head(path)
        kind = (
            "cvat" if re.search(r"<annotations[\s>]", head) else "voc" if re.search(r"<annotation[\s>]", head) else ""
        )
        if kind and kind not in seen:
            seen.add(kind)
            yield kind, f"XML files such as {path.relative_to(root)}"
    for path in _first(root, ".json"):
        kind = _json_kind(path)
        if kind and kind not in seen:
            seen.add(kind)
            yield kind, f"JSON files such as {path.relative_to(root)}"


def _first(root: Path, suffix: str) -> list[Path]:
    return sorted(walk_files(root, {suffix}), key=lambda path: len(path.parts))[:MOST]


def _has_labels(root: Path) -> bool:
    return any(re.match(r"\s*\d+(\s+[-+.\deE]+){4}", _head(path)) for path in _first(root, ".txt"))


def _head(path: Path) -> str:
    with open(path, "rb") as stream:
        content = stream.read(4096)
    return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "ignore")


def _json_kind(path: Path) -> str:
    if path.stat().st_size == 0:
        return ""
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'"shapes"', 0, 1 << 26) >= 0 and content.find(b'"imagePath"') >= 0:
            return "labelme"
        keys = (b'"images"', b'"annotations"', b'"categories"')
        return "coco" if all(content.find(key) >= 0 for key in keys) and content.find(b'"segments_info"') < 0 else ""


def read_folder(root: str | Path, kind: str | None = None) -> Dataset:
    """Read the images and objects of a folder, and check them against the image files.

    Args:
        root: the folder.
        kind: one of `KINDS`; None recognizes it.

    Raises:
        DataError: see `detect`; or a file is malformed, or nothing usable is left.
    """
    root = Path(os.path.abspath(Path(root).expanduser()))
    if kind is None:
        kind = detect(root).kind
    if kind not in READERS:
        if kind == "masks":
            raise DataError(
                f"{root}: has index masks, which need no conversion; train with a config for masks, such as "
                "semantic-fpn_dinat-pico_masks_custom"
            )
        raise DataError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}")
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder")
    images = Images(root, Report())
    return finish(kind, root, READERS[kind](root, images), images)
