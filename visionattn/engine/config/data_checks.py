"""Checks of the datasets of a config before a run: annotations, classes and image files."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import DATASETS, METRICS, DefaultScope

from visionattn.data.coco import check_coco
from visionattn.data.mask_folders import check_masks, pair_masks, read_names, unused_files
from visionattn.data.panoptic_check import check_panoptic
from visionattn.engine.config.build import building, quiet
from visionattn.engine.config.checks import pipeline_steps
from visionattn.engine.config.class_names import base_names, dataset_classes
from visionattn.engine.config.coco_use import check_evaluators, describe_use
from visionattn.engine.config.custom_data import SPLITS, coco_datasets, load_coco
from visionattn.engine.config.options import close_matches, find_class
from visionattn.errors import ConfigError, DataError
from visionattn.io.console import count_of, examples, track
from visionattn.io.images import image_header

__all__ = ["check_data", "check_images", "dataset_paths"]


def check_data(
    config: Config, splits: tuple[str, ...] = ("train", "val"), bad: dict[str, str] | None = None
) -> list[str]:
    """Check the datasets of a config before a run, and that their classes match.

    Checked are COCO files (instances and panoptic), mask folders, and datasets of this package with a method ``check``.
    It is an error if a run would be meaningless: unknown classes, no objects to train on or compare with, missing
    masks, sizes that do not match. mmdet would drop or exchange such labels silently, and mmseg fail during training.

    Args:
        config: the config.
        splits: the splits to check.
        bad: receives the reason for each unreadable training image of a COCO dataset by its path. If None, unreadable
            images are errors.

    Returns:
        One line per split with the number of images and objects, and what will not be used.

    Raises:
        ConfigError: class names are not distinct strings.
        DataError: from `visionattn.data.coco.check_coco`, `visionattn.data.panoptic_check.check_panoptic`,
            `visionattn.data.mask_folders.pair_masks`, `check_masks` or
            `visionattn.engine.config.coco_use`; or classes and categories differ.
    """
    lines, seen, scope = [], set(), config.get("default_scope")
    categories: list[str] = []  # of the training file
    for split in splits:
        loader, files = config.get(SPLITS[split]), []
        for dataset in coco_datasets(loader["dataset"], any_file=True) if loader else ():
            key = tuple(str(dataset.get(k)) for k in ("type", "ann_file", "data_root", "data_prefix", "layout"))
            bases = base_names(dataset, scope)
            if "CocoDataset" in bases:
                files.append(dataset_paths(dataset)[0])
            if key in seen or "LVISV05Dataset" in bases:  # LVIS stores image names differently
                continue
            seen.add(key)
            _check_names(dataset, f"{SPLITS[split]}.dataset.metainfo.classes")
            if "MaskFolderDataset" in bases:
                lines.append(f"{split}: {_check_mask_folder(dataset, scope, split == 'train')}")
            elif "CocoPanopticDataset" in bases:
                lines.append(f"{split}: {_check_panoptic(dataset, scope)}")
            elif "CocoDataset" in bases:
                content = load_coco(dataset_paths(dataset)[0])
                asked = _asked(split, content, dataset, categories, scope)
                masks = _needs_masks(dataset, config, split)
                lines.append(f"{split}: {_check_instances(dataset, content, split, scope, asked, masks, bad)}")
            elif hasattr(find_class(dataset.get("type"), scope), "check"):
                lines.append(f"{split}: {_check_own(dataset, config.get(f'{split}_evaluator'), scope)}")
        packed = any("instances" in (step.get("meta_keys") or ()) for step in pipeline_steps(loader or {}))
        check_evaluators(config.get(f"{split}_evaluator"), files, packed)
    return lines


def _check_names(dataset: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` for classes that are not distinct strings: mmdet compares them with the names in the file."""
    classes = (dataset.get("metainfo") or {}).get("classes") or ()
    classes = [classes] if isinstance(classes, str) else list(classes)
    strange = [name for name in classes if not isinstance(name, str)]
    if strange:
        raise ConfigError(f"{where}: names must be strings, got {strange[0]!r}; write {str(strange[0])!r}")
    if double := [name for name in classes if classes.count(name) > 1]:
        raise ConfigError(f"{where}: the name {double[0]!r} occurs twice")


def _asked(
    split: str, content: Mapping[str, Any], dataset: Mapping[str, Any], categories: list[str], scope: str | None
) -> bool:
    """Return True if a config may leave out categories of a file.

    It must name its classes, and for validation data the training file must have these categories as well, so that a
    category that only the validation file has is an error. ``categories`` receives those of the training file.
    """
    names = [str(c["name"]) for c in content["categories"]]
    if split == "train":
        categories += names
    named = bool((dataset.get("metainfo") or {}).get("classes"))
    extra = set(names) - set(dataset_classes(dataset, scope))
    return named and (not categories or extra <= set(categories))


def _needs_masks(dataset: Mapping[str, Any], config: Config, split: str) -> bool:
    """Return True if the pipeline of a dataset loads masks, or the metric of its split compares them."""
    evaluators = config.get(f"{split}_evaluator") or []
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        if isinstance(evaluator, Mapping) and "segm" in str(evaluator.get("metric")):
            return True
    steps = dataset.get("pipeline")
    return any(isinstance(step, Mapping) and step.get("with_mask") for step in steps or ())


def _check_own(dataset: Mapping[str, Any], evaluators: Any, scope: str | None) -> str:
    """Call the method ``check`` of a dataset class of this package with its pipeline; it returns one line.

    Then call the method ``check`` of the metrics that have one, which raises an error if they cannot use the dataset.
    """
    with quiet(), building("dataset"), DefaultScope.overwrite_default_scope(scope or "mmengine"):
        built = DATASETS.build({**dataset, "pipeline": [], "lazy_init": False})
        line = built.check([step for step in dataset.get("pipeline") or () if isinstance(step, Mapping)])
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            kind = evaluator.get("type") if isinstance(evaluator, Mapping) else None
            if kind is not None and hasattr(find_class(kind, scope), "check"):
                METRICS.build(evaluator).check(built)
        return line


def _check_instances(
    dataset: Mapping[str, Any],
    content: Mapping[str, Any],
    split: str,
    scope: str | None,
    asked: bool,
    masks: bool,
    bad: dict[str, str] | None,
) -> str:
    ann, images = dataset_paths(dataset)
    check_coco(ann, images)
    names = {c["id"]: str(c["name"]) for c in content["categories"]}
    classes = dataset_classes(dataset, scope)
    _check_classes(ann, list(names.values()), classes, asked)
    notes = check_images(images, content["images"], bad if split == "train" else None)
    return "; ".join([describe_use(ann, content, dataset, classes, split == "train", masks), *notes])


def _check_panoptic(dataset: Mapping[str, Any], scope: str | None) -> str:
    ann, images = dataset_paths(dataset)
    maps = Path(str(dataset.get("data_root") or "")) / str((dataset.get("data_prefix") or {}).get("seg") or "")
    summary = check_panoptic(ann, images, maps)
    _check_classes(ann, [*summary.things, *summary.stuff], dataset_classes(dataset, scope), False)
    return "; ".join([str(summary), *check_images(images, load_coco(ann)["images"])])


def dataset_paths(dataset: Mapping[str, Any]) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a dataset config, joined as in mmengine."""
    root = Path(str(dataset.get("data_root") or ""))
    prefix = (dataset.get("data_prefix") or {}).get("img", "")
    return root / str(dataset.get("ann_file", "")), root / str(prefix or "")


def _check_mask_folder(dataset: Mapping[str, Any], scope: str | None, training: bool) -> str:
    root, prefix = Path(str(dataset.get("data_root") or "")), dataset.get("data_prefix") or {}
    names = read_names(root / dataset["ann_file"]) if dataset.get("ann_file") else None
    folders = root / str(prefix.get("img_path", "")), root / str(prefix.get("seg_map_path", ""))
    classes, reduced = dataset_classes(dataset, scope), bool(dataset.get("reduce_zero_label"))
    for step in dataset.get("pipeline") or ():
        given = step.get("reduce_zero_label") if isinstance(step, Mapping) else None
        if given is not None and bool(given) != reduced:
            raise ConfigError(
                f"{folders[1]}: reduce_zero_label is {reduced} in the dataset and {given} in its {step.get('type')}; "
                "set it in the dataset only"
            )
    pairs = pair_masks(*folders, names, dataset.get("seg_map_suffix", ".png"))
    counts = check_masks(pairs, classes, reduced)[: len(classes)]
    absent = [name for name, count in zip(classes, counts, strict=True) if not count]
    if training and len(classes) - len(absent) < 2:
        found = "no pixel is of a class" if len(absent) == len(classes) else "all pixels are of one class"
        remedy = f"none is of {examples(absent)}" if absent else "the background must be a class as well"
        raise DataError(f"{folders[1]}: nothing to train on: {found}; {remedy}")
    notes = [f"{count_of(len(pairs), 'image')}, {len(classes) - len(absent)} of {len(classes)} classes in their masks"]
    if absent:
        notes.append(f"none of {examples(absent)}")
    if names is None and (unused := unused_files(*folders, pairs)):
        notes.append(unused)
    return "; ".join(notes)


def _check_classes(ann: Path, categories: list[str], classes: list[str], asked: bool) -> None:
    """Raise `DataError` for classes without a category and, unless ``asked``, for categories without a class."""
    unknown = [c for c in classes if c not in categories]
    extra = [c for c in categories if c not in classes]
    if extra and not asked:
        raise DataError(
            f"{ann}: the category {extra[0]!r} is not among the classes of the config {classes[:6]}; to leave it out, "
            "name the other classes in metainfo=dict(classes=...) of the datasets, or in custom_data.classes"
        )
    if unknown:
        near = close_matches(unknown[0], categories)
        raise DataError(f"{ann}: has no category {unknown[0]!r}, which is a class of the config{near}")


def check_images(folder: Path, records: list[dict[str, Any]], bad: dict[str, str] | None = None) -> list[str]:
    """Check that each image can be opened, has the size in its annotation, and is not truncated.

    Only the first and last bytes of each file are read: 100,000 images take about a minute.

    Args:
        folder: image folder.
        records: COCO image records with ``file_name``, ``width`` and ``height``.
        bad: receives the reason for each failing image by its absolute path. If None, failing images are errors.

    Returns:
        A note if some images are turned by their EXIF orientation without another size.

    Raises:
        DataError: ``bad`` is None and an image fails; the message has the first image and the number of others.
    """
    with ThreadPoolExecutor(8) as pool:
        looks = pool.map(lambda record: _image_problem(folder, record), records)
        looks = list(track(looks, "checking images", len(records), disable=not is_main_process()))
    found = [problem for problem, _ in looks]
    problems = [p for p in found if p]
    if bad is not None:
        bad |= {os.path.abspath(folder / str(r["file_name"])): p for r, p in zip(records, found, strict=True) if p}
    elif problems:
        more = f" (and {len(problems) - 1} more images)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}; repair it or remove it from the annotation file")
    turned = [str(r["file_name"]) for r, (_, same) in zip(records, looks, strict=True) if same]
    if not turned:
        return []
    return [
        f"{count_of(len(turned), 'image')} with an EXIF orientation that keeps the size, such as {turned[0]}; "
        "annotations must be those of the turned image"
    ]


def _image_problem(folder: Path, record: Mapping[str, Any]) -> tuple[str | None, bool]:
    """Return the problem of an image, or whether its size cannot show that its annotations are of the turned image."""
    path = folder / str(record["file_name"])
    try:
        width, height, orientation = image_header(path)
    except DataError as error:
        return str(error), False
    stored, given = (width, height), (record.get("width"), record.get("height"))
    if orientation >= 5:
        width, height = height, width
        if given == stored and given != (width, height):
            return (
                f"{path}: its EXIF orientation turns it to {width} x {height} pixels, but its annotation is for "
                f"{stored[0]} x {stored[1]}, the pixels as stored; rotate the pixels, or remove the orientation"
            ), False
    if given != (width, height):
        return (
            f"{path}: is {width} x {height} pixels, but its annotation says "
            f"{record.get('width')} x {record.get('height')}"
        ), False
    return None, orientation != 1 and stored == (width, height)
