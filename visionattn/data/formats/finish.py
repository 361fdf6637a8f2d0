"""Check what a reader has found against the images, and turn it into COCO records."""

import math
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.coco import rle_runs, segmentation_fault
from visionattn.data.formats.common import Annotated, Images, Item, Raw, Report
from visionattn.data.formats.geometry import (
    area_of,
    around,
    clip_box,
    clip_polygon,
    decode,
    encode,
    mask_box,
    turn_points,
)
from visionattn.errors import DataError
from visionattn.io.console import track
from visionattn.io.images import image_header

__all__ = ["Dataset", "Picture", "finish"]


@dataclass
class Picture:
    """An image and its objects.

    Attributes:
        path: the file.
        split: name of the split, "" if the data has none.
        width: in pixels, with the EXIF orientation applied.
        height: likewise.
        objects: COCO annotations with ``category_id``, ``bbox``, ``area``, ``iscrowd`` and ``segmentation``.
        embedded: returns the content of the file if it only exists in its annotation.
    """

    path: Path
    split: str
    width: int
    height: int
    objects: list[dict[str, Any]]
    embedded: Callable[[], bytes] | None = None


@dataclass
class Dataset:
    """The content of a folder.

    Attributes:
        kind: its format.
        root: the folder.
        categories: COCO categories with ``id`` and ``name``.
        pictures: the images.
        report: what was dropped or changed.
    """

    kind: str
    root: Path
    categories: list[dict[str, Any]]
    pictures: list[Picture]
    report: Report

    def splits(self) -> dict[str, list[Picture]]:
        """Return the images of each split; train, val and test come first."""
        names = dict.fromkeys(picture.split for picture in self.pictures)
        order = sorted(names, key=lambda name: ("train", "", "val", "test", name).index(name))
        return {name: [p for p in self.pictures if p.split == name] for name in order}

    def tasks(self) -> list[str]:
        """Return the tasks that the annotations fit: boxes, and masks if each object has one."""
        objects = [o for picture in self.pictures for o in picture.objects]
        return ["boxes", "masks"] if objects and all(o["segmentation"] for o in objects) else ["boxes"]


def finish(kind: str, root: Path, raw: Raw, images: Images) -> Dataset:
    """Check the images and objects of a reader; images that cannot be used are left out and counted.

    Raises:
        DataError: nothing usable is left, or there are no classes.
    """
    report = images.report
    labels = {item.label for annotated in raw.images for item in annotated.items}
    classes = [*raw.classes, *sorted(labels - set(raw.classes))]
    if not classes:
        raise DataError(f"{root}: no object has a class ({kind})")
    ids = [*raw.ids] if raw.ids is not None else list(range(1, len(raw.classes) + 1))
    ids += range(max(ids, default=0) + 1, max(ids, default=0) + 1 + len(classes) - len(ids))
    number = dict(zip(classes, ids, strict=True))
    pictures, used, seen = [], set(), {}
    for annotated in track(raw.images, "reading images", len(raw.images)):
        where = (annotated.split, str(annotated.image))
        if where in seen:
            report.add("images that are annotated twice, of which the first was used", annotated.where)
            continue
        seen[where] = annotated
        used.add(annotated.image)
        picture = _picture(annotated, number, images)
        if picture is not None:
            pictures.append(picture)
    for path, count in Counter(path for _, path in seen).items():
        if count > 1:
            report.add("images that are in several splits, kept in each", images.where(Path(path)))
    stems = Counter((p.split, str(p.path.parent), p.path.stem.lower()) for p in pictures)
    names = Counter((split, stem) for split, _, stem in stems)
    for (split, folder, stem), count in stems.items():
        if count > 1 or names[split, stem] > 1:
            where = f"{images.where(Path(folder))}: {stem}"
            report.add("image names that differ only in their folder, suffix or case, kept", where)
    for path in images.paths:
        if path not in used:
            report.add("images without an annotation, not used", images.where(path))
    if not pictures:
        raise DataError(f"{root}: no image with annotations is left ({kind}); {'; '.join(report.lines()[:3])}")
    categories = [{"id": number[name], "name": name} for name in classes]
    return Dataset(kind, images.root, categories, pictures, report)


def _picture(annotated: Annotated, number: dict[str, int], images: Images) -> Picture | None:
    report, where = images.report, annotated.where
    try:
        if annotated.embedded is None:
            width, height, orientation = image_header(annotated.image)
        else:
            width, height, orientation = _embedded_header(annotated.embedded(), where)
    except DataError as error:
        report.add("images that cannot be read, left out", str(error))
        return None
    stored, given = (width, height), annotated.size
    if orientation >= 5:
        width, height = height, width
    turn = 1
    if given is not None and given != (width, height):
        shown = f"{where}: says {given[0]} x {given[1]}, the image is {width} x {height}"
        if given == stored:
            turn = orientation
            report.add("images annotated as stored, whose objects were turned with the EXIF orientation", shown)
        elif annotated.trust_size:
            report.add("images whose size contradicts the annotation, left out with their objects", shown)
            return None
        else:
            report.add("sizes in annotations that contradict the image, not used", shown)
    elif orientation != 1:
        report.add("images with an EXIF orientation; annotations must be those of the upright image", where)
    if not annotated.items:
        report.add("images without objects, kept", where)
    objects = []
    for item in annotated.items:
        made = _object(item, annotated.relative, (width, height), turn, stored, report)
        if made is not None:
            objects.append({"category_id": number[item.label], **made})
    same = Counter((o["category_id"], str(o["bbox"]), str(o["segmentation"])) for o in objects)
    for _ in range(sum(same.values()) - len(same)):
        report.add("objects that occur twice in an image, kept", where)
    return Picture(annotated.image, annotated.split, width, height, objects, annotated.embedded)


def _embedded_header(content: bytes, where: str) -> tuple[int, int, int]:
    with tempfile.NamedTemporaryFile() as file:  # the checks of `image_header` need a file
        file.write(content)
        file.flush()
        try:
            return image_header(Path(file.name))
        except DataError as error:
            raise DataError(f"{where}: embedded image: {str(error).replace(file.name + ': ', '')}") from error


def _object(
    item: Item, relative: bool, size: tuple[int, int], turn: int, stored: tuple[int, int], report: Report
) -> dict[str, Any] | None:
    """Return the COCO annotation of an object, or None if it is dropped."""
    width, height = size
    if item.mask is not None:
        return _masked(item, size, turn, stored, report)
    scale = (width, height) if relative else (1, 1)
    polygons = [[v * scale[i % 2] for i, v in enumerate(p)] for p in item.polygons]
    box = None if item.box is None else [v * scale[i % 2] for i, v in enumerate(item.box)]
    if box is not None and item.centered:
        box = [box[0] - box[2] / 2, box[1] - box[3] / 2, *box[2:]]
    if not all(math.isfinite(v) for p in [*polygons, box or []] for v in p):
        report.add("objects with coordinates that are not finite, dropped", item.where)
        return None
    if turn != 1:
        polygons = [turn_points(p, turn, *stored) for p in polygons]
        if box is not None:
            corners = turn_points([box[0], box[1], box[0] + box[2], box[1] + box[3]], turn, *stored)
            box = around([corners])
    short = [p for p in polygons if len(p) < 6 or area_of(p) == 0]
    for _ in short:
        report.add("polygons without an area, dropped", item.where)
    polygons = [p for p in polygons if p not in short]
    if box is None and not polygons:
        return None
    clipped = [clip_polygon(p, width, height) for p in polygons]
    own, box = box, around(polygons) if box is None else box
    inside = clip_box(box, width, height)
    if own is None and clipped != polygons and any(clipped):
        inside = around([p for p in clipped if p])
    if box[2] <= 0 or box[3] <= 0:
        report.add("boxes without an area, dropped", f"{item.where}: {_shown(box)}")
        return None
    if inside[2] <= 0 or inside[3] <= 0:
        report.add("objects outside of their image, dropped", f"{item.where}: {_shown(box)}")
        return None
    if inside is not box or clipped != polygons:
        report.add("objects partly outside of their image, clipped", f"{item.where}: {_shown(box)}")
    clipped = [p for p in clipped if len(p) >= 6 and area_of(p) > 0]
    area = sum(map(area_of, clipped)) if clipped else inside[2] * inside[3]
    return {"bbox": inside, "area": area, "segmentation": clipped, "iscrowd": int(item.crowd)}


def _masked(
    item: Item, size: tuple[int, int], turn: int, stored: tuple[int, int], report: Report
) -> dict[str, Any] | None:
    width, height = stored if turn != 1 else size
    if isinstance(item.mask, dict) and item.box is not None and turn == 1:
        return _encoded(item, size, report)
    full = np.zeros((height, width), bool)
    if isinstance(item.mask, dict):
        try:
            full = decode(item.mask, width, height)
        except ValueError as error:
            report.add("masks that do not fit their image, dropped", f"{item.where}: {error}")
            return None
    else:
        (x, y), (h, w) = item.corner, item.mask.shape
        part = item.mask[max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
        if part.shape != (h, w):
            report.add("objects partly outside of their image, clipped", f"{item.where}: {_shown([x, y, w, h])}")
        full[max(y, 0) : max(y, 0) + part.shape[0], max(x, 0) : max(x, 0) + part.shape[1]] = part
    if turn != 1:
        full = _turned(full, turn)
    if not full.any():
        report.add("masks without a pixel, dropped", item.where)
        return None
    kept = item.mask if isinstance(item.mask, dict) and turn == 1 else encode(full)
    area = int(full.sum())
    return {"bbox": mask_box(full), "area": area, "segmentation": kept, "iscrowd": int(item.crowd)}


def _encoded(item: Item, size: tuple[int, int], report: Report) -> dict[str, Any] | None:
    """Return the annotation of an object with a box and a run-length encoding, which is not decoded."""
    box = clip_box(item.box, *size)  # type: ignore[arg-type]
    area = 0 if (fault := segmentation_fault(item.mask, size)) else int(rle_runs(item.mask["counts"])[1::2].sum())
    if fault:
        report.add("masks that do not fit their image, dropped", f"{item.where}: {fault}")
    elif not area:
        report.add("masks without a pixel, dropped", item.where)
    elif not (box[2] > 0 and box[3] > 0):
        report.add("boxes without an area, dropped", f"{item.where}: {_shown(box)}")
    else:
        if box is not item.box:
            report.add("objects partly outside of their image, clipped", f"{item.where}: {_shown(item.box)}")
        return {"bbox": box, "area": area, "segmentation": item.mask, "iscrowd": int(item.crowd)}
    return None


def _turned(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation to a mask by moving the centers of its pixels."""
    height, width = mask.shape
    ys, xs = np.nonzero(mask)
    centers = np.array(turn_points(list(np.stack([xs + 0.5, ys + 0.5], 1).ravel()), orientation, width, height))
    out = np.zeros((width, height) if orientation >= 5 else (height, width), bool)
    places = np.floor(centers).astype(int).reshape(-1, 2)
    out[places[:, 1], places[:, 0]] = True
    return out


def _shown(box: list[float]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box) + "]"
