"""Validate COCO annotation files and segmentations.

The dataset readers of mmdet drop invalid boxes silently or fail later in a worker process; here every annotation is
checked before training starts. Format: https://cocodataset.org/#format-data
"""

import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.io.names import escapes_folder

__all__ = ["CocoSummary", "check_coco", "rle_runs", "segmentation_fault"]

# The official COCO train2017 has two boxes of zero height among 860,001, which readers skip. Such a small fraction is
# accepted; in a file with fewer than 100,000 annotations a single one is a problem.
_ZERO_SIZE_SHARE = 1e-5
_MAX_MASK_PIXELS = 2**32 - 1
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


@dataclass(frozen=True)
class CocoSummary:
    """Contents of a valid annotation file."""

    images: int
    annotations: int
    categories: tuple[str, ...]
    """Category names in the order of the file."""
    empty_images: int
    """Number of images without annotations."""
    crowds: int
    """Number of annotations with ``iscrowd`` set."""
    zero_size: int
    """Number of accepted boxes of zero size; 0 for files with fewer than 100,000 annotations."""

    def __str__(self) -> str:
        return f"{self.images} images, {self.annotations} annotations, {len(self.categories)} categories"


class _Problems:
    """Counts all problems and keeps the first ones."""

    def __init__(self, ann_file: Path, limit: int) -> None:
        self.ann_file, self.limit, self.count = ann_file, limit, 0
        self.kept: list[tuple[str, str]] = []

    def add(self, text: str, remedy: str) -> None:
        self.count += 1
        if len(self.kept) < self.limit:
            self.kept.append((text, remedy))

    def raise_if_any(self) -> None:
        if not self.count:
            return
        text, remedy = self.kept[0]
        more = self.count - 1
        rest = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
        error = DataError(f"{self.ann_file}: {text}{rest}; {remedy}")
        error.problems = [text for text, _ in self.kept]  # type: ignore[attr-defined]
        raise error


def check_coco(
    ann_file: str | Path,
    image_dir: str | Path,
    *,
    max_problems: int = 10,
    tolerance: float = 1.0,
    allow_empty: bool = False,
) -> CocoSummary:
    """Check a COCO annotation file and that its images exist.

    The checks: the file is JSON with the keys of COCO; ids are unique and refer to existing records; boxes have a
    positive size and are inside their image; polygons and RLE masks are well formed and match the size of the image;
    every image is in `image_dir`. Images are not opened.

    Args:
        ann_file: the annotation file (instances: boxes, with or without masks).
        image_dir: the folder that ``file_name`` is relative to.
        max_problems: number of problems to keep in ``error.problems``; all are counted.
        tolerance: number of pixels by which a box may exceed its image, for boxes that were rounded.
        allow_empty: accept a file without annotations.

    Raises:
        DataError: the file is invalid; the message has the first problem, the number of others and a remedy. The
            attribute ``problems`` of the error lists the first `max_problems` of them.
    """
    ann_file, image_dir = Path(ann_file), Path(image_dir)
    data = _load(ann_file)
    if not image_dir.is_dir():
        raise DataError(f"image folder {image_dir} does not exist; use the folder with the images of {ann_file}")
    problems = _Problems(ann_file, max(1, max_problems))
    categories = _check_categories(data["categories"], problems)
    sizes = _check_images(data["images"], image_dir, problems)
    names = {record["id"]: record.get("file_name") for record in data["images"] if _has_id(record)}
    checker = _AnnotationChecker(sizes, names, categories, tolerance, problems)
    for annotation in data["annotations"]:
        checker.check(annotation)
    checker.finish(len(data["annotations"]))
    if not data["annotations"] and not allow_empty:
        problems.add("it has no annotations", "use a file with annotated images")
    problems.raise_if_any()
    return CocoSummary(
        images=len(sizes),
        annotations=len(data["annotations"]),
        categories=tuple(categories.values()),
        empty_images=len(sizes.keys() - checker.annotated),
        crowds=checker.crowds,
        zero_size=len(checker.zero_size),
    )


def _load(ann_file: Path) -> dict[str, list]:
    try:
        data = json.loads(ann_file.read_bytes())
    except FileNotFoundError:
        raise DataError(f"annotation file {ann_file} does not exist; check ann_file and data_root") from None
    except OSError as error:
        raise DataError(f"annotation file {ann_file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{ann_file} is not JSON text; export the annotations as COCO JSON in UTF-8") from error
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno}: {error.msg})" if hasattr(error, "lineno") else ""
        raise DataError(f"{ann_file} is not valid JSON{where}; it may be truncated: copy or export it again") from error
    if not isinstance(data, dict):
        raise DataError(
            f"{ann_file} is not in COCO layout: its top level is a {type(data).__name__}, not an object with "
            "images, annotations and categories; export it as COCO instances"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            what = "has no" if key not in data else "needs a list as its"
            raise DataError(f'{ann_file} is not in COCO layout: it {what} "{key}"; export it as COCO instances')
    for key in ("images", "categories"):
        if not data[key]:
            raise DataError(f'{ann_file}: "{key}" is empty; use a file that lists {key}')
    return data


def _check_categories(records: list, problems: _Problems) -> dict[Any, str]:
    found: dict[Any, str] = {}
    remedy = "give every category a unique id and name"
    for position, record in enumerate(records):
        if not _has_id(record):
            problems.add(f"category number {position + 1} has no usable id", remedy)
        elif type(record["id"]) is not int:
            problems.add(f"category id {_short(record['id'])} is not a whole number", "number the categories")
            found[record["id"]] = str(record.get("name"))  # so that its annotations are no further problems
        elif not isinstance(record.get("name"), str) or not record["name"]:
            problems.add(f"category {_short(record['id'])} has no name", remedy)
        elif record["id"] in found:
            problems.add(f"category id {_short(record['id'])} is used more than once", remedy)
        else:
            found[record["id"]] = record["name"]
    for name, count in Counter(found.values()).items():
        if count > 1:
            problems.add(f"category name {_short(name)} is used {count} times", remedy)
    return found


def _check_images(records: list, image_dir: Path, problems: _Problems) -> dict[Any, tuple[int, int]]:
    """Size `(width, height)` of each image with a valid record, by id."""
    sizes: dict[Any, tuple[int, int]] = {}
    named: list[str] = []
    seen: set[Any] = set()
    for position, record in enumerate(records):
        if not _has_id(record):
            problems.add(f"image number {position + 1} has no usable id", "give every image a unique id")
            continue
        image_id, name = record["id"], record.get("file_name")
        if image_id in seen:
            problems.add(
                f"image id {_short(image_id)} is used more than once (again for {_short(name)})",
                "give every image a unique id",
            )
            continue
        seen.add(image_id)
        width, height = record.get("width"), record.get("height")
        if not (_is_size(width) and _is_size(height)):
            problems.add(
                f"image {_short(name)} has width {_short(width)} and height {_short(height)}",
                "write the image's size in pixels",
            )
        else:
            sizes[image_id] = (width, height)
        if not isinstance(name, str) or not name or "\0" in name:
            problems.add(f"image {_short(image_id)} has file_name {_short(name)}", "write the image's file name")
        elif escapes_folder(name):
            problems.add(
                f"file_name {_short(name)} of image {_short(image_id)} is outside the image folder",
                "use names relative to the image folder, without '..'",
            )
        else:
            named.append(name)
    _check_files(named, image_dir, problems)
    return sizes


def _check_files(names: list[str], image_dir: Path, problems: _Problems) -> None:
    """Check that the images exist by listing each folder once; one stat per image is slow on network file systems."""
    listings: dict[str, set[str]] = {}
    missing: list[tuple[str, str, str]] = []
    for name in names:
        folder, base = os.path.split(os.path.normpath(name))
        if folder not in listings:
            listings[folder] = _listing(image_dir / folder)
        if base not in listings[folder]:
            missing.append((name, folder, base))
    if not missing:
        return
    if len(missing) == len(names):
        problems.add(
            f"none of its {len(names)} images is in {image_dir} (such as {_short(names[0])})",
            "use the folder that file_name is relative to",
        )
        return
    by_case = {folder: {entry.lower(): entry for entry in listings[folder]} for _, folder, _ in missing}
    for name, folder, base in missing:
        alike = by_case[folder].get(base.lower())
        hint = f" (there is {_short(alike)})" if alike else ""
        problems.add(
            f"image {_short(name)} is not in {image_dir}{hint}",
            "add the image, or remove it and its annotations from the file",
        )


def _listing(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except (OSError, ValueError):  # JSON can contain names that no file can have
        return set()


class _AnnotationChecker:
    """Checks annotations one by one."""

    def __init__(
        self,
        sizes: dict[Any, tuple[int, int]],
        names: dict[Any, Any],
        categories: dict[Any, str],
        tolerance: float,
        problems: _Problems,
    ) -> None:
        self.sizes, self.names, self.categories = sizes, names, categories
        self.tolerance, self.problems = tolerance, problems
        self.seen: set[Any] = set()
        self.annotated: set[Any] = set()
        self.crowds = 0
        self.zero_size: list[str] = []

    def check(self, annotation: Any) -> None:
        if not _has_id(annotation):
            position = len(self.seen) + 1
            self.problems.add(f"an annotation near number {position} has no usable id", "give each a unique id")
            return
        ann_id = annotation["id"]
        if ann_id in self.seen:
            self.problems.add(f"annotation id {_short(ann_id)} is used more than once", "give each a unique id")
            return
        self.seen.add(ann_id)
        missing = [key for key in _ANNOTATION_KEYS if key not in annotation]
        if missing:
            self._add(annotation, f"has no {_short(missing[0])}", f"write {', '.join(_ANNOTATION_KEYS)} for each")
            return
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if not _hashable(image_id) or image_id not in self.names:
            self._add(annotation, f"has image_id {_short(image_id)}, which does not exist", "add or remove it")
            return
        if not _hashable(category_id) or category_id not in self.categories:
            self._add(annotation, f"has category_id {_short(category_id)}, which does not exist", "add the category")
        self.annotated.add(image_id)
        self.crowds += bool(annotation["iscrowd"])
        size = self.sizes.get(image_id)
        if size is None:
            return  # the problem of the image is already counted
        self._check_box(annotation, size)
        segmentation = annotation.get("segmentation")
        if segmentation:
            fault = segmentation_fault(segmentation, size)
            if fault:
                self._add(annotation, f"segmentation {fault}", "correct the mask or remove the annotation")

    def _check_box(self, annotation: dict, size: tuple[int, int]) -> None:
        box, slack = annotation["bbox"], self.tolerance
        try:
            x, y, w, h = box
            inside = x >= -slack and y >= -slack and x + w <= size[0] + slack and y + h <= size[1] + slack
            if inside and w > 0 and h > 0 and annotation["area"] > 0:
                return
            finite = all(math.isfinite(value) for value in (x, y, w, h, annotation["area"]))
        except (TypeError, ValueError, OverflowError):
            self._add(
                annotation,
                f"box {_short(box)} with area {_short(annotation['area'])} is not made of numbers",
                "boxes are [x, y, width, height] in pixels: correct it",
            )
            return
        shown = "box [" + ", ".join(f"{value:.6g}" for value in (x, y, w, h)) + "]"
        remedy = "correct or remove the annotation"
        if not finite:
            self._add(annotation, f"{shown} or its area is not finite", remedy)
        elif w < 0 or h < 0:
            self._add(annotation, f"{shown} has a negative width or height", "boxes are [x, y, width, height]")
        elif not inside:
            out = max(-x, -y, x + w - size[0], y + h - size[1])
            self._add(
                annotation,
                f"{shown} is {out:.6g} px outside the {size[0]}x{size[1]} image",
                "boxes are [x, y, width, height] in pixels: correct it, or the image's width and height",
            )
        elif w == 0 or h == 0:
            self.zero_size.append(f"{self._label(annotation)}: {shown} has zero size")
        else:
            self._add(annotation, f"has area {annotation['area']:.6g}", "write the area in pixels, above 0")

    def finish(self, total: int) -> None:
        """Report the boxes of zero size, unless they are as rare as in the official COCO."""
        if len(self.zero_size) > total * _ZERO_SIZE_SHARE:
            for text in self.zero_size:
                self.problems.add(text, "correct or remove the annotation")

    def _label(self, annotation: dict) -> str:
        image_id = annotation.get("image_id")
        name = self.names.get(image_id) if _hashable(image_id) else None
        return f"annotation {_short(annotation['id'])}" + (f" of image {_short(name)}" if name else "")

    def _add(self, annotation: dict, text: str, remedy: str) -> None:
        self.problems.add(f"{self._label(annotation)}: {text}", remedy)


def _has_id(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("id"), int | str)


def _hashable(value: Any) -> bool:
    return isinstance(value, int | str)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _short(value: Any, limit: int = 80) -> str:
    """`repr` on one line, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """Check a COCO ``segmentation``, a list of polygons or an RLE, for an image of size `(width, height)`.

    Returns:
        A description of the problem, or None if it is valid.
    """
    if isinstance(segmentation, list):
        far = 2 * max(size)
        for polygon in segmentation:
            if not isinstance(polygon, list):
                return "is not a list of polygons [[x1, y1, x2, y2, ...], ...]"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"has a polygon of {len(polygon)} numbers; it needs three points or more, x and y each"
            try:
                if not math.isfinite(math.fsum(polygon)):
                    return "has a polygon with a value that is not finite"
                if max(polygon) > far or min(polygon) < -far:  # some rasterizers iterate over every row and column
                    return f"has a polygon that reaches more than {far} pixels from the corner of its image"
            except (TypeError, ValueError, OverflowError):
                return "has a polygon with a value that is not a finite number"
        return None
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        return "is neither a list of polygons nor an RLE with size and counts"
    if segmentation["size"] != [size[1], size[0]]:
        return f"is an RLE of size {segmentation['size']!r:.80}, but the image is [{size[1]}, {size[0]}]"
    pixels = size[0] * size[1]
    if pixels > _MAX_MASK_PIXELS:
        return f"is an RLE of {pixels} pixels, more than 32-bit run lengths can encode"
    try:
        runs = rle_runs(segmentation["counts"])
    except (AttributeError, TypeError, ValueError, OverflowError):
        return "has RLE counts that cannot be read"
    # a longer run could overflow in the sum or in the 32 bits of pycocotools
    if (runs < 0).any() or (runs > pixels).any() or int(runs.sum()) != pixels:
        return f"has RLE counts that do not add up to {size[0]}x{size[1]} pixels"
    return None


def rle_runs(counts: str | list) -> np.ndarray:
    """Run lengths of an RLE, `[n]` int64, from a list or from COCO's compressed text.

    Each character of the text has 5 bits of a signed number (bit 5: more characters follow); from the fourth number on
    it is the difference from the number two positions before. pycocotools decodes the text without validation.
    """
    if isinstance(counts, list):
        if any(isinstance(count, bool) or not isinstance(count, int) for count in counts):
            raise TypeError("counts are whole numbers")
        return np.array(counts, dtype=np.int64)
    chars = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not chars.size or (chars < 0).any() or (chars > 63).any() or chars[-1] & 32:
        raise ValueError("not RLE text")
    starts = np.concatenate([[0], np.flatnonzero((chars & 32) == 0)[:-1] + 1])
    lengths = np.diff(np.append(starts, chars.size))
    if lengths.max() > 7:
        raise ValueError("a run length does not fit 32 bits")
    place = 5 * (np.arange(chars.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((chars & 31) << place, starts)
    negative = (chars[starts + lengths - 1] & 16) != 0
    runs = runs - np.where(negative, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
