"""Convert a folder of any known format to COCO JSON files."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionattn.data.formats.detect import detect, read_folder
from visionattn.data.formats.finish import Dataset, Picture
from visionattn.data.formats.similar import choose
from visionattn.errors import DataError
from visionattn.io.console import count_of
from visionattn.io.folders import is_current, new_folder, write_json
from visionattn.io.json import read_json

__all__ = ["Converted", "convert", "fingerprint"]

VERSION = 1
"""Increase it when the files change, so that folders in the cache are written again."""
SUMMARY, REPORT = "summary.json", "report.txt"


@dataclass(frozen=True)
class Converted:
    """The files of a conversion.

    Attributes:
        folder: the folder.
        kind: format of the source.
        annotations: COCO file of each split.
        images: image folder of each split, to which the names in the file are relative.
        tasks: ``"boxes"``, and ``"masks"`` if each object has one.
        lines: what was recognized, the number of images and objects, and what was dropped or changed.
    """

    folder: Path
    kind: str
    annotations: dict[str, Path]
    images: dict[str, Path]
    tasks: list[str]
    lines: list[str]


def convert(
    source: str | Path,
    out: str | Path,
    *,
    kind: str | None = None,
    val: float | None = None,
    seed: int = 0,
    copy: bool = False,
    ignore_boxes: bool = False,
    training: bool = False,
    reuse: bool = False,
) -> Converted:
    """Write ``train.json``, ``val.json``, ``test.json`` or other splits as the data has them, and ``report.txt``.

    Data without splits is written to ``train.json``. The JSON files name the images of the source; the source is not
    changed.

    Args:
        source: folder in one of the formats.
        out: folder to create.
        kind: one of `visionattn.data.formats.detect.KINDS`; None recognizes it.
        val: fraction of the training images to draw for validation, in (0, 1), unless the data has validation images.
            Near-duplicates are not separated.
        seed: of the random split.
        copy: copy the images to ``images/<split>``. Images that are embedded in their annotations are always written
            there, and then all others are copied as well.
        ignore_boxes: objects without a mask become regions that training and evaluation ignore (``iscrowd``), for
            instance segmentation.
        training: the images of the first split are for training if there is no split train.
        reuse: return the existing folder if its source has not changed.

    Raises:
        DataError: see `visionattn.data.formats.detect.read_folder`; or `out` cannot be written, or there are too few
            images to draw some.
    """
    source, out = Path(os.path.abspath(Path(source).expanduser())), Path(os.path.abspath(Path(out).expanduser()))
    if val is not None and not 0 < val < 1:
        raise DataError(f"`val` must be between 0 and 1, got {val}")
    if out == source or source.is_relative_to(out):
        raise DataError(f"{out}: contains the source; choose another folder")
    reason = detect(source).reason if kind is None else "as given"
    kind = kind or detect(source).kind
    stamp = {"version": VERSION, "source": str(source), "kind": kind, "val": val, "seed": seed, "copy": copy}
    stamp |= {"ignore_boxes": ignore_boxes, "training": training} if ignore_boxes or training else {}
    if reuse:
        stamp["files"] = fingerprint(source)
        if is_current(out, stamp):
            return _read_back(out)
    dataset = read_folder(source, kind)
    for picture in dataset.pictures:
        picture.split = picture.split or "train"
    if training:
        _make_train(dataset)
    if val is not None and "val" not in dataset.splits():
        _draw_val(dataset, val, seed)
    if ignore_boxes:
        _ignore_boxes(dataset)
    copy = copy or any(picture.embedded is not None for picture in dataset.pictures)
    lines = [f"{source}: {kind} ({reason})"]
    with new_folder(out, stamp) as folder:
        annotations, images = {}, {}
        for split, pictures in dataset.splits().items():
            images[split] = f"images/{split}" if copy else str(_base(pictures, dataset.root))
            names = _copied(pictures, folder / images[split], dataset) if copy else None
            annotations[split] = f"{split}.json"
            content = _coco(dataset, pictures, Path(images[split]), names)
            write_json(folder / annotations[split], content)
            used = count_of(len(content["annotations"]), "object")
            lines.append(f"{split}: {count_of(len(pictures), 'image')}, {used}")
        lines += dataset.report.lines()
        (folder / REPORT).write_text("\n".join(lines) + "\n\n" + dataset.report.text(), "utf-8", "backslashreplace")
        summary = {"kind": kind, "annotations": annotations, "images": images, "tasks": dataset.tasks(), "lines": lines}
        write_json(folder / SUMMARY, summary)
    return _read_back(out)


def _read_back(folder: Path) -> Converted:
    record = read_json(folder / SUMMARY)
    return Converted(
        folder,
        record["kind"],
        {split: folder / name for split, name in record["annotations"].items()},
        {split: folder / name for split, name in record["images"].items()},
        record["tasks"],
        record["lines"],
    )


def fingerprint(source: Path) -> str:
    """Return a hash of the names, sizes and times of all files of a folder."""
    digest = hashlib.sha256()
    for root, folders, files in os.walk(source):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(root, name)
            status = os.stat(path) if os.path.exists(path) else None
            digest.update(
                f"{path}\0{status and status.st_size}\0{status and status.st_mtime_ns}\n".encode(errors="replace")
            )
    return digest.hexdigest()


def _draw_val(dataset: Dataset, fraction: float, seed: int) -> None:
    """Move a random part of the training images to the split val, without separating near-duplicates."""
    pictures = [picture for picture in dataset.pictures if picture.split == "train"]
    if any(picture.embedded is not None for picture in pictures):
        dataset.report.add("embedded images, not compared with others for the split", "train", len(pictures))
    for i in choose([p.path for p in pictures], fraction, seed, str(dataset.root)):
        pictures[i].split = "val"
    drawn = sum(picture.split == "val" for picture in pictures)
    dataset.report.add(f"images drawn for validation (seed {seed}), near-duplicates kept together", "train", drawn)


def _make_train(dataset: Dataset) -> None:
    """Use the images of the first split for training if there is no split train."""
    splits = dataset.splits()
    if "train" not in splits:
        first, pictures = next(iter(splits.items()))
        for picture in pictures:
            picture.split = "train"
        dataset.report.add(f"images of {first}, used for training as there is no split train", first, len(pictures))


def _ignore_boxes(dataset: Dataset) -> None:
    """Turn objects without a mask into crowds whose mask is the box."""
    for picture in dataset.pictures:
        for item in picture.objects:
            if not item["segmentation"]:
                x, y, w, h = item["bbox"]
                item |= {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]], "iscrowd": 1}
                dataset.report.add("objects without a mask, kept as regions to ignore", str(picture.path))


def _base(pictures: Sequence[Picture], root: Path) -> Path:
    """Return the folder to which image names are relative: the source, unless a list names images elsewhere."""
    if all(picture.path.is_relative_to(root) for picture in pictures):
        return root
    return Path(os.path.commonpath([root, *(picture.path.parent for picture in pictures)]))


def _copied(pictures: Sequence[Picture], folder: Path, dataset: Dataset) -> list[str]:
    """Copy the images to a folder and return their names, which differ from each other even without their suffix."""
    folder.mkdir(parents=True)
    names: list[str] = []
    taken: set[str] = set()
    for picture in pictures:
        name, number = picture.path.name, 1
        while Path(name).stem.lower() in taken:
            number += 1
            name = f"{picture.path.stem}_{number}{picture.path.suffix}"
        if number > 1:
            dataset.report.add("images with the same name in different folders, renamed", f"{picture.path}: {name}")
        taken.add(Path(name).stem.lower())
        if picture.embedded is not None:
            (folder / name).write_bytes(picture.embedded())
        else:
            shutil.copyfile(picture.path, folder / name)
        names.append(name)
    return names


def _coco(dataset: Dataset, pictures: Sequence[Picture], base: Path, names: Sequence[str] | None) -> dict[str, Any]:
    images, annotations = [], []
    for number, picture in enumerate(pictures, 1):
        name = names[number - 1] if names is not None else picture.path.relative_to(base).as_posix()
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        for item in picture.objects:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **item})
    return {
        "info": {"description": f"{dataset.root.name}, converted from {dataset.kind}"},
        "images": images,
        "annotations": annotations,
        "categories": dataset.categories,
    }
