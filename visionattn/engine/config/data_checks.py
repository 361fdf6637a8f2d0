"""Checks of the datasets of a config before a run: annotations, classes and image files."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process

from visionattn.data.coco import check_coco
from visionattn.data.mask_folders import check_masks, pair_masks, read_names
from visionattn.data.panoptic_check import check_panoptic
from visionattn.engine.config.custom_data import SPLITS, coco_datasets, load_coco
from visionattn.engine.config.options import find_class
from visionattn.errors import DataError
from visionattn.io.console import track
from visionattn.io.images import image_size

__all__ = ["check_data", "check_images", "dataset_paths"]


def check_data(
    config: Config, splits: tuple[str, ...] = ("train", "val"), bad: dict[str, str] | None = None
) -> list[str]:
    """Check the COCO datasets (instance and panoptic) and the mask folders of a config, and that the classes match.

    mmdet silently drops boxes of categories that are not among the classes and numbers the labels in the order of the
    file; both would train a model on wrong labels. mmseg fails during training at a mask value that is not a class, or
    uses it as another class.

    Args:
        config: the config.
        splits: the splits to check.
        bad: receives the reason for each unreadable training image of a COCO dataset by its path. If None, unreadable
            images are errors.

    Returns:
        One line per split with the number of images, and the number of boxes or segments or the classes in the masks.

    Raises:
        DataError: from `visionattn.data.coco.check_coco`, `visionattn.data.panoptic_check.check_panoptic`,
            `visionattn.data.mask_folders.pair_masks` or `check_masks`; or classes and categories differ.
    """
    lines, seen = [], set()
    for split in splits:
        loader = config.get(SPLITS[split])
        if not loader:
            continue
        for dataset in coco_datasets(loader["dataset"], any_file=True):
            if str(dataset.get("type")).endswith("MaskFolderDataset"):
                key = tuple(str(dataset.get(k)) for k in ("ann_file", "data_root", "data_prefix"))
                if key not in seen:
                    seen.add(key)
                    lines.append(f"{split}: {_check_mask_folder(dataset)}")
            bases = _bases(dataset)
            panoptic = "CocoPanopticDataset" in bases
            if "CocoDataset" not in bases or "LVISV05Dataset" in bases:  # LVIS stores image names differently
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
            check_images(images, content["images"], bad if split == "train" else None)
            lines.append(f"{split}: {len(content['images'])} images, {len(content.get('annotations', []))} objects")
    return lines


def _bases(dataset: Mapping[str, Any]) -> set[str]:
    """Return the names of a dataset's class and its base classes; Cityscapes and ADE20K instances derive from COCO."""
    return {base.__name__ for base in getattr(find_class(dataset.get("type")), "__mro__", ())}


def _check_panoptic(dataset: Mapping[str, Any], ann: Path, images: Path) -> str:
    maps = Path(str(dataset.get("data_root") or "")) / str((dataset.get("data_prefix") or {}).get("seg") or "")
    summary = check_panoptic(ann, images, maps)
    _check_classes(ann, [*summary.things, *summary.stuff], _classes(dataset))
    check_images(images, load_coco(ann)["images"])
    return str(summary)


def dataset_paths(dataset: Mapping[str, Any]) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a dataset config, joined as in mmengine."""
    root = Path(str(dataset.get("data_root") or ""))
    prefix = (dataset.get("data_prefix") or {}).get("img", "")
    return root / str(dataset.get("ann_file", "")), root / str(prefix or "")


def _check_mask_folder(dataset: Mapping[str, Any]) -> str:
    root, prefix = Path(str(dataset.get("data_root") or "")), dataset.get("data_prefix") or {}
    names = read_names(root / dataset["ann_file"]) if dataset.get("ann_file") else None
    folders = root / str(prefix.get("img_path", "")), root / str(prefix.get("seg_map_path", ""))
    classes = _classes(dataset)
    pairs = pair_masks(*folders, names, dataset.get("seg_map_suffix", ".png"))
    counts = check_masks(pairs, classes)[: len(classes)]
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    listed = ", ".join(absent[:6]) + (", ..." if len(absent) > 6 else "")
    shown = f"{len(classes) - len(absent)} of {len(classes)} classes in their masks"
    return f"{len(pairs)} images, {shown}{f'; none of {listed}' if absent else ''}"


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
    remedy = "set metainfo=dict(classes=...) of the dataset to the categories in the order of the file"
    if absent:
        raise DataError(
            f"{ann}: the category {absent[0]!r} is not among the classes of the config {classes[:6]}; {remedy}"
        )
    if unknown:
        raise DataError(f"{ann}: has no category {unknown[0]!r}, which is a class of the config; {remedy}")
    raise DataError(
        f"{ann}: the categories {categories[:6]} are in another order than the classes of the config; {remedy}"
    )


def check_images(folder: Path, records: list[dict[str, Any]], bad: dict[str, str] | None = None) -> None:
    """Check that each image can be opened, has the size in its annotation, and is not truncated.

    Only the first and last bytes of each file are read: 100,000 images take about a minute.

    Args:
        folder: image folder.
        records: COCO image records with ``file_name``, ``width`` and ``height``.
        bad: receives the reason for each failing image by its absolute path. If None, failing images are errors.

    Raises:
        DataError: ``bad`` is None and an image fails; the message has the first image and the number of others.
    """
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda record: _image_problem(folder, record), records)
        found = list(track(found, "checking images", len(records), disable=not is_main_process()))
    problems = [p for p in found if p]
    if bad is not None:
        bad |= {os.path.abspath(folder / str(r["file_name"])): p for r, p in zip(records, found, strict=True) if p}
    elif problems:
        more = f" (and {len(problems) - 1} more images)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; repair it or remove it from the annotation file")


def _image_problem(folder: Path, record: Mapping[str, Any]) -> str | None:
    path = folder / str(record["file_name"])
    try:
        width, height, turned = image_size(path)
    except DataError as error:
        return str(error)
    sizes = {(width, height), (height, width)} if turned else {(width, height)}
    if (record.get("width"), record.get("height")) not in sizes:
        return (
            f"{path}: is {width} x {height} pixels, but its annotation says "
            f"{record.get('width')} x {record.get('height')}"
        )
    return None
