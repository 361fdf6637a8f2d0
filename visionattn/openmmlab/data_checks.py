"""Checks of a config's datasets before a run: annotations, classes, image files."""

import mmap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.config import Config

from visionattn.data.coco_check import check_coco
from visionattn.data.panoptic_check import check_panoptic
from visionattn.errors import DataError, require
from visionattn.openmmlab.custom_data import SPLITS, coco_datasets, load_coco
from visionattn.openmmlab.options import find_class
from visionattn.openmmlab.progress import track

__all__ = ["check_data", "check_images", "dataset_paths"]


def check_data(config: Config, splits: tuple[str, ...] = ("train", "val")) -> list[str]:
    """Check the COCO datasets of a config, instances and panoptic, and that their categories are the config's classes.

    mmdet silently drops the boxes of a category that is not among the classes, and numbers the classes by the
    order of the file; both would train a model on wrong labels.

    Returns:
        One line for each split: its number of images and of boxes or segments.

    Raises:
        DataError: from `visionattn.data.coco_check.check_coco` or `visionattn.data.panoptic_check.check_panoptic`, or
            because classes and categories differ.
    """
    lines, seen = [], set()
    for split in splits:
        loader = config.get(SPLITS[split])
        if not loader:
            continue
        for dataset in coco_datasets(loader["dataset"], any_file=True):
            panoptic = "Panoptic" in str(dataset.get("type"))
            if not panoptic and "Coco" not in str(dataset.get("type")):
                continue
            ann, images = dataset_paths(dataset)
            if (ann, images) in seen:
                continue
            seen.add((ann, images))
            if panoptic:
                lines.append(f"{split}: {_check_panoptic(dataset, ann, images)}")
                continue
            check_coco(ann, images)
            content = load_coco(ann)
            _check_classes(ann, [str(c["name"]) for c in content["categories"]], _classes(dataset))
            check_images(images, content["images"])
            lines.append(f"{split}: {len(content['images'])} images, {len(content.get('annotations', []))} objects")
    return lines


def _check_panoptic(dataset: Mapping[str, Any], ann: Path, images: Path) -> str:
    maps = Path(str(dataset.get("data_root") or "")) / str((dataset.get("data_prefix") or {}).get("seg") or "")
    summary = check_panoptic(ann, images, maps)
    _check_classes(ann, [*summary.things, *summary.stuff], _classes(dataset))
    check_images(images, load_coco(ann)["images"])
    return str(summary)


def dataset_paths(dataset: Mapping[str, Any]) -> tuple[Path, Path]:
    """Annotation file and image folder of a dataset's config, as mmengine joins them."""
    root = Path(str(dataset.get("data_root") or ""))
    prefix = (dataset.get("data_prefix") or {}).get("img", "")
    return root / str(dataset.get("ann_file", "")), root / str(prefix or "")


def _classes(dataset: Mapping[str, Any]) -> list[str]:
    classes = (dataset.get("metainfo") or {}).get("classes")
    if classes is None:
        classes = getattr(find_class(dataset["type"]), "METAINFO", {}).get("classes", ())
    return [classes] if isinstance(classes, str) else [str(c) for c in classes]


def _check_classes(ann: Path, categories: list[str], classes: list[str]) -> None:
    if categories == classes:
        return
    absent = [c for c in categories if c not in classes]
    unknown = [c for c in classes if c not in categories]
    remedy = "set the dataset's metainfo=dict(classes=...) to the file's categories in its order"
    if absent:
        raise DataError(f"{ann}: its category {absent[0]!r} is not among the config's classes {classes[:6]}; {remedy}")
    if unknown:
        raise DataError(f"{ann}: has no category {unknown[0]!r}, which is one of the config's classes; {remedy}")
    raise DataError(f"{ann}: its categories {categories[:6]} are in another order than the config's classes; {remedy}")


def check_images(folder: Path, records: list[dict[str, Any]]) -> None:
    """Check that each image opens, has the size that its record says, and is not cut short.

    Reads the first and last bytes of each file, so that a hundred thousand images take a minute and not an hour.

    Raises:
        DataError: names the first image that is not as it should be, and tells how many more there are.
    """
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda record: _image_problem(folder, record), records)
        problems = [p for p in track(found, "checking images", len(records)) if p]
    if problems:
        more = f" (and {len(problems) - 1} more images)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; mend it, or take it out of the annotation file")


def _image_problem(folder: Path, record: Mapping[str, Any]) -> str | None:
    image_module = require("PIL.Image")
    path = folder / str(record["file_name"])
    try:
        with image_module.open(path) as image:  # reads the header only
            width, height, kind = image.width, image.height, image.format
            turned = kind == "JPEG" and image.getexif().get(0x0112, 1) >= 5
    except FileNotFoundError:
        return f"{path}: there is no such image"
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... by the damage
        return f"{path}: does not open as an image ({' '.join(str(error).split())[:100]})"
    sizes = {(width, height), (height, width)} if turned else {(width, height)}
    if (record.get("width"), record.get("height")) not in sizes:
        return (
            f"{path}: is {width} x {height} pixels, but its annotation says "
            f"{record.get('width')} x {record.get('height')}"
        )
    mark = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}.get(kind)
    if mark:
        with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.rfind(mark, max(0, len(content) - 65536)) < 0:
                return f"{path}: is cut short"
    return None
