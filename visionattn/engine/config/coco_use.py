"""What mmdet and pycocotools use of COCO files, counted before a run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visionattn.engine.config.custom_data import load_coco
from visionattn.errors import DataError
from visionattn.io.console import count_of, examples

__all__ = ["check_evaluators", "describe_use"]


def describe_use(
    ann: Path, content: Mapping[str, Any], dataset: Mapping[str, Any], classes: list[str], training: bool, masks: bool
) -> str:
    """Count what a COCO dataset uses of its file.

    mmdet skips annotations marked ``ignore`` and boxes narrower than one pixel, and in training the images that
    ``filter_cfg`` excludes; crowds are neither learned nor found.

    Args:
        ann: the file, for messages.
        content: its content, after `visionattn.data.coco.check_coco`.
        dataset: config of the dataset.
        classes: the class names of the dataset.
        training: whether the dataset is for training.
        masks: whether the pipeline or the evaluator needs masks.

    Returns:
        A line with the number of images and objects, and what will not be used.

    Raises:
        DataError: no object or no image is left, or a mask is missing.
    """
    names = {c["id"]: str(c["name"]) for c in content["categories"]}
    objects = content.get("annotations", [])
    known = [a for a in objects if names[a["category_id"]] in classes]
    if known and all(max(a["bbox"]) <= 1 for a in known):
        raise DataError(
            f"{ann}: all boxes are between 0 and 1, as if relative to the image size; COCO boxes are [x, y, width, "
            "height] in pixels"
        )
    filters = {} if dataset.get("test_mode") or not training else dataset.get("filter_cfg") or {}
    least = filters.get("min_size", 0)
    small = {i["id"] for i in content["images"] if min(i["width"], i["height"]) < least}
    # pycocotools reads the file itself and compares with all objects that are not crowds
    left_out = {
        "marked `ignore`": [a for a in known if training and a.get("ignore")],
        "in boxes narrower than 1 pixel": [a for a in known if training and min(a["bbox"][2:]) < 1],
        f"in images smaller than the min_size={least} of filter_cfg": [a for a in known if a["image_id"] in small],
        "crowds (iscrowd=1)": [a for a in known if a.get("iscrowd")],
    }
    gone = {a["id"] for part in left_out.values() for a in part}
    used = [a for a in known if a["id"] not in gone]
    if not used:
        reasons = [f"{_all(len(part), len(known))} are {why}" for why, part in left_out.items() if part]
        reason = "; ".join(reasons) or f"none of its objects is of the classes {classes[:6]}"
        raise DataError(f"{ann}: has no object {'to train on' if training else 'to compare with'}: {reason}")
    skipped = {a["id"] for why, part in left_out.items() if not why.startswith("crowds") for a in part}
    bare = [a for a in known if masks and not a.get("segmentation") and a["id"] not in skipped]
    if bare:
        more = f" (and {len(bare) - 1} more)" if len(bare) > 1 else ""
        raise DataError(
            f"{ann}: the annotation {bare[0]['id']} has no segmentation, but masks are needed{more}; add the masks, or "
            "use a config for boxes"
        )
    notes = [f"{count_of(len(content['images']), 'image')}, {count_of(len(objects), 'object')}"]
    if len(known) < len(objects):
        left = sorted({names[a["category_id"]] for a in objects} - set(classes))
        notes.append(f"{len(objects) - len(known)} of {examples(left)} not used")
    notes += [f"{len(part)} {why}, not used" for why, part in left_out.items() if part]
    empty = len({i["id"] for i in content["images"]} - small - {a["image_id"] for a in known})
    if empty:
        notes.append(f"{count_of(empty, 'image')} without objects{', not used' if _no_empty(filters) else ''}")
    if small:
        notes.append(f"{count_of(len(small), 'image')} smaller than {least} pixels, not used")
    if absent := [name for name in classes if name not in {names[a["category_id"]] for a in used}]:
        notes.append(f"none of {examples(absent)}")
    return "; ".join(notes)


def check_evaluators(evaluators: Any, files: Sequence[Path], packed: bool = False) -> None:
    """Check that COCO evaluators compare with the data of their split.

    Args:
        evaluators: an evaluator config or a list of them.
        files: annotation files of the datasets of the split.
        packed: whether the pipeline packs ``instances``, with which an evaluator needs no annotation file.

    Raises:
        DataError: an evaluator has no annotation file, or one that lists other images or other categories.
    """
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    kinds = [str(part.get("type")) if isinstance(part, Mapping) else "" for part in evaluators]
    panoptic = any(kind.endswith("CocoPanopticMetric") for kind in kinds)
    for evaluator, kind in zip(evaluators, kinds, strict=True):
        if panoptic and kind.endswith("CocoMetric"):
            continue  # the things of panoptic data have an instance file of their own
        if kind.endswith("CocoMetric") and files and not evaluator.get("ann_file") and not packed:
            raise DataError(f"{files[0]}: {kind} has nothing to compare with; set its ann_file to this file")
        other = evaluator.get("ann_file") if kind.endswith(("CocoMetric", "CocoPanopticMetric")) else None
        if not other or not files or any(os.path.realpath(other) == os.path.realpath(file) for file in files):
            continue
        truth = load_coco(Path(other))
        listed = {image.get("id"): image.get("file_name") for image in truth["images"]}
        for file in files:
            content = load_coco(file)
            for image in content["images"]:
                if listed.get(image["id"]) != image["file_name"]:
                    raise DataError(
                        f"{other}: the evaluator compares with this file, but image {image['id']} of the dataset is "
                        f"{image['file_name']!r} in {file} and {listed.get(image['id'])!r} here; set its ann_file to "
                        "that of the dataset"
                    )
            categories = [{(c["id"], str(c["name"])) for c in part["categories"]} for part in (content, truth)]
            if categories[0] != categories[1]:
                raise DataError(
                    f"{other}: the evaluator compares with this file, whose categories {_pairs(categories[1])} are not "
                    f"those of the dataset, {_pairs(categories[0])} in {file}"
                )


def _pairs(categories: set[tuple[Any, str]]) -> str:
    return examples([f"{number}: {name}" for number, name in sorted(categories)])


def _no_empty(filters: Mapping[str, Any]) -> bool:
    return bool(filters.get("filter_empty_gt"))


def _all(part: int, total: int) -> str:
    return f"all {count_of(total, 'object')}" if part == total else f"{part} of {count_of(total, 'object')}"
