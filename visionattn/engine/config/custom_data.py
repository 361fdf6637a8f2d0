"""The ``custom_data`` block of a config: train on your own data by setting one to three options.

Detection and instance segmentation accept COCO, YOLO, Pascal VOC, LabelMe and CVAT (docs/data.md):

```python
custom_data = dict(root="", train_ann="", val_ann="")
```

With ``custom_data.root=/data/cells`` alone, the format of the folder is recognized, and its annotations are
converted to COCO files in the cache. COCO files can also be named:
``custom_data.root=/data/cells custom_data.train_ann=train.json custom_data.val_ann=val.json``. The keys are:

root:
    data folder; the other paths are relative to it unless they are absolute.
train_ann, val_ann, test_ann:
    COCO JSON files. Without ``test_ann``, the validation data is used for testing.
format:
    one of `visionattn.data.formats.detect.KINDS`, for folders with annotations in several formats.
val_share:
    fraction of the training images to draw for validation if the folder has no validation images; default 0.2. With 0,
    the training images are used for validation.
boxes_as_ignored:
    True for instance segmentation if some objects have only a box: these become regions that are ignored.
converted:
    set to True if the annotation files are converted ones.
train_img, val_img, test_img:
    image folders. None, the default, searches the folder of the annotation file, ``root``, and ``images``,
    ``train``, ``images/train``, ``train2017``, ... in it.
classes:
    ``"auto"``, the default, for the categories of the training file in their order; a list of names, or a JSON file
    with one. Categories that are not in the list are not used.

Semantic segmentation accepts images with index masks: PNG files with the class index of each pixel, starting at 0,
and 255 for ignored pixels. The block has a key ``train_mask``:

```python
custom_data = dict(root="", train_mask=None, val_mask=None)
```

For a folder with ``images/train``, ``images/val``, ``masks/train``, ``masks/val`` and ``classes.json``, or with masks
of Pascal VOC in ``SegmentationClass``, only ``custom_data.root`` needs to be set. The other keys are:

train_img, val_img, test_img, train_mask, val_mask, test_mask:
    folders of images and masks, including their subfolders. None, the default, searches for ``images/train`` and
    ``masks/train``, ``train/images``, ``annotations/train``, ``labels/train``, ... Without any key for testing, the
    validation data is used.
train_list, val_list, test_list:
    text files with one image name per line, for folders that contain the images of several splits.
mask_suffix:
    suffix that is appended to the name of an image to get the name of its mask; default ``".png"``.
classes:
    a list of names, or a JSON file with such a list and optionally a ``palette``; default ``classes.json``.
palette:
    RGB colors of the classes, if ``classes.json`` has none.

Image labels, with or without boxes for evaluation, are read from folders with one subfolder per class. The block has a
key ``train_boxes``:

```python
custom_data = dict(root="", train_boxes=None, val_boxes=None)
```

For a folder with ``train/CLASS`` and ``val/CLASS``, only ``custom_data.root`` needs to be set. The other keys are:

train_img, val_img, test_img:
    folders with one subfolder per class. None, the default, searches for ``train``, ``images/train``, ...; without a
    folder for testing, the validation data is used.
train_boxes, val_boxes, test_boxes:
    text files with lines ``CLASS/IMAGE,x0,y0,x1,y1`` in pixels. None, the default, is ``boxes.csv`` in the folder of
    the split if it exists.
classes:
    a list of names; by default the subfolders of the training folder, sorted by name.

After the options are applied, `resolve_custom_data` sets the files and the ``metainfo`` (classes and palette) of the
innermost dataset of each dataloader, the ``ann_file`` of COCO evaluators, and every ``num_classes`` in the heads of
the model. An RPN keeps its value, since it only separates objects from background. In a Mask2Former, all classes
become things, and the class weights are extended to their number. The classes are written to the block, so that the
resolved config in the work dir of a run can build the model without the data.
"""

import colorsys
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from visionattn.engine.config.custom_folders import class_names, find_class_folders
from visionattn.engine.config.custom_formats import convert_folder, convert_mask_folder
from visionattn.engine.config.custom_masks import find_masks, read_classes, under
from visionattn.errors import ConfigError, DataError
from visionattn.io.json import read_json
from visionattn.io.names import place

__all__ = [
    "SPLITS",
    "coco_datasets",
    "load_coco",
    "palette",
    "resolve_classes",
    "resolve_custom_data",
    "set_num_classes",
]

SPLITS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
UNTOUCHED_HEADS = ("rpn_head", "backbone", "data_preprocessor")


def palette(count: int) -> list[tuple[int, int, int]]:
    """Return distinct RGB colors for a number of classes, always the same ones."""
    golden = 0.61803398875
    shades = ((0.75, 0.95), (0.95, 0.75), (0.55, 0.9))
    colors = (colorsys.hsv_to_rgb((0.02 + i * golden) % 1.0, *shades[i % 3]) for i in range(count))
    return [(round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colors]


def resolve_custom_data(config: Config, name: str = "config") -> None:
    """Set datasets, evaluators and heads from the ``custom_data`` block of a config, in place.

    Args:
        config: left unchanged if it has no such block.
        name: name of the config in error messages.

    Raises:
        ConfigError: a key of the block is missing or invalid.
        DataError: an annotation file is missing or malformed, or images or masks are not found.
    """
    block = config.get("custom_data")
    if block is None:
        return
    _check_types(config, block, name)
    root = Path(str(block.get("root") or ".")).expanduser()
    if "train_boxes" in block:
        _resolve_folders(config, block, root, name)
    elif "train_mask" not in block:
        _resolve_coco(config, block, root, name)
    elif block.get("train_ann"):
        raise ConfigError(f"{name}: custom_data has both train_ann (COCO data) and train_mask; remove one")
    else:
        _resolve_masks(config, block, root, name)


def _check_types(config: Config, block: Any, name: str) -> None:
    """Raise `ConfigError` for parts of a wrong Python type."""
    for key, part in {"custom_data": block, **{k: config.get(k) for k in ("model", *SPLITS.values())}}.items():
        if part is not None and not isinstance(part, Mapping):
            raise ConfigError(f"{name}: {key}={part!r} must be a dict")
    for loader in SPLITS.values():
        if config.get(loader) and config[loader].get("dataset") is None:
            raise ConfigError(f"{name}: {loader} has no dataset")
    for key, value in block.items():
        path = key == "root" or str(key).endswith(("_ann", "_img", "_mask", "_list", "_suffix", "_boxes"))
        if path and value is not None and not isinstance(value, (str, os.PathLike)):
            raise ConfigError(f"{name}: custom_data.{key}={value!r} must be a path")


def resolve_classes(config: Config, classes: Sequence[str]) -> None:
    """Set the classes of a config with a ``custom_data`` block in place, without reading the data.

    This is sufficient for inference.

    Args:
        config: the config.
        classes: class names by label.
    """
    block = config["custom_data"]
    block["classes"] = list(classes)
    for loader in SPLITS.values():
        for dataset in coco_datasets(config[loader]["dataset"], any_file=True) if config.get(loader) else ():
            dataset["metainfo"] = {"classes": tuple(classes), "palette": palette(len(classes))}
    set_num_classes(config["model"], len(classes))


def _resolve_coco(config: Config, block: Any, root: Path, name: str) -> None:
    convert_folder(block, root, name)
    if isinstance(block.get("classes"), str) and block["classes"] != "auto":
        given = under(root, block["classes"])
        block["classes"] = read_classes(block, root)[0] if given.suffix == ".json" else [block["classes"]]
    if not isinstance(block.get("classes"), (list, tuple)):
        if not root.is_dir():
            raise DataError(f"custom_data.root must be an existing folder, got {str(root)!r}")
        categories = load_coco(under(root, block["train_ann"]))["categories"]
        block["classes"] = [str(c["name"]) for c in categories]
    classes = block["classes"] = [str(name) for name in block["classes"]]  # [1,2] of the command line are numbers
    metainfo = {"classes": tuple(classes), "palette": palette(len(classes))}
    for split, loader in SPLITS.items():
        source = split if block.get(f"{split}_ann") else "val"
        ann = under(root, block[f"{source}_ann"])
        if config.get(loader):
            given = block.get(f"{source}_img")
            images = under(root, given) if given else _find_images(root, ann, source)
            for dataset in coco_datasets(config[loader]["dataset"], any_file=True):
                dataset["ann_file"] = str(ann)
                dataset["data_root"] = ""
                dataset["data_prefix"] = {"img": str(images)}
                dataset["metainfo"] = dict(metainfo)
        evaluators = config.get(f"{split}_evaluator") or []
        for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            if isinstance(evaluator, Mapping) and "Coco" in str(evaluator.get("type")):
                evaluator["ann_file"] = str(ann)
    set_num_classes(config["model"], len(classes))


def _resolve_masks(config: Config, block: Any, root: Path, name: str) -> None:
    root = convert_mask_folder(block, root, name)
    splits = find_masks(block, root, name)
    classes, colors = read_classes(block, root)
    block["classes"], block["palette"] = classes, colors or palette(len(classes))
    for split, loader in SPLITS.items():
        found = splits[split]
        for dataset in coco_datasets(config[loader]["dataset"], any_file=True) if config.get(loader) else ():
            dataset["ann_file"] = str(found.names or "")
            dataset["data_root"] = ""
            dataset["data_prefix"] = {"img_path": str(found.images), "seg_map_path": str(found.masks)}
            dataset["seg_map_suffix"] = block.get("mask_suffix") or ".png"
            dataset["metainfo"] = {"classes": tuple(classes), "palette": list(block["palette"])}
    set_num_classes(config["model"], len(classes))


def _resolve_folders(config: Config, block: Any, root: Path, name: str) -> None:
    splits = find_class_folders(block, root, name)
    classes = block["classes"] = class_names(block, splits["train"].images)
    for split, loader in SPLITS.items():
        found = splits[split]
        for dataset in coco_datasets(config[loader]["dataset"], any_file=True) if config.get(loader) else ():
            dataset["data_root"] = dataset["ann_file"] = ""
            dataset["data_prefix"] = {"img_path": str(found.images)}
            dataset["boxes"] = None if found.boxes is None else str(found.boxes)
            dataset["metainfo"] = {"classes": tuple(classes), "palette": palette(len(classes))}
    train = splits["train"]
    boxed = train.boxes is not None and train.boxes.parent == train.images
    for evaluator in filter(None, map(config.get, ("val_evaluator", "test_evaluator"))):
        for item in evaluator if isinstance(evaluator, list) else [evaluator]:
            if "centre_from" in item:  # of the metric that compares with centered boxes
                item["centre_from"] = str(train.images) if boxed else None
    set_num_classes(config["model"], len(classes))


def load_coco(path: Path) -> dict[str, Any]:
    """Read a COCO JSON file and check the format of its images and categories.

    Raises:
        DataError: the file is missing, unreadable, or not in COCO format.
    """
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the annotation file does not exist") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable COCO JSON file ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise DataError(f"{path}: not in COCO format, which requires the lists images, annotations and categories")
    if not content["categories"]:
        raise DataError(f"{path}: its list of categories is empty")
    if not all(isinstance(c, dict) and "id" in c and "name" in c for c in content["categories"]):
        raise DataError(f"{path}: a category has no id or no name")
    return content


def _find_images(root: Path, ann: Path, split: str) -> Path:
    """Return the folder that contains the first image of an annotation file."""
    if not ann.is_file():  # a resolved config on another machine, where only its model is needed
        return root
    images = load_coco(ann)["images"]
    if not images:
        raise DataError(f"{ann}: has no images")
    first = str(images[0].get("file_name", "")) if isinstance(images[0], dict) else ""
    if first:
        place(first, "the image folder", str(ann))
    tails = (
        "",
        "images",
        f"images/{split}",
        split,
        f"{split}2017",
        f"images/{split}2017",
        "JPEGImages",
        ann.stem,
    )
    folders = [folder / tail for folder in dict.fromkeys((root.absolute(), ann.parent)) for tail in tails]
    for folder in folders:
        if first and (folder / first).is_file():
            return folder
    raise DataError(
        f"{ann}: the first image {first!r} is neither in {root} nor in the usual subfolders; "
        f"set custom_data.{split}_img to the image folder"
    )


def coco_datasets(dataset: Any, any_file: bool = False) -> Iterator[Any]:
    """Yield the configs of the COCO datasets in a dataset config, looking inside wrappers such as RepeatDataset.

    Args:
        dataset: config of a dataset.
        any_file: also yield datasets of other types.
    """
    if isinstance(dataset, Mapping):
        inner = dataset.get("dataset")
        if inner is not None:
            yield from coco_datasets(inner, any_file)
        elif isinstance(dataset.get("datasets"), (list, tuple)):
            for part in dataset["datasets"]:
                yield from coco_datasets(part, any_file)
        elif "Coco" in str(dataset.get("type")) or any_file:
            yield dataset


def set_num_classes(part: Any, count: int) -> None:
    """Set the number of classes in all parts of a model config that depend on it, in place."""
    if isinstance(part, Mapping):
        if "num_things_classes" in part:
            part["num_things_classes"], part["num_stuff_classes"] = count, 0  # type: ignore[index]
        loss = part.get("loss_cls") if "num_queries" in part else None
        weights = loss.get("class_weight") if isinstance(loss, Mapping) else None
        if isinstance(weights, (list, tuple)) and weights:  # the last weight is for queries without an object
            part["loss_cls"]["class_weight"] = [weights[0]] * count + [weights[-1]]
        for key, value in part.items():
            if key == "num_classes":
                part[key] = count  # type: ignore[index]
            elif key not in UNTOUCHED_HEADS:
                set_num_classes(value, count)
    elif isinstance(part, (list, tuple)):
        for item in part:
            set_num_classes(item, count)
