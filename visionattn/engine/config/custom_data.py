"""The ``custom_data`` block of a config: a user's own folder, named in one to three options.

Detection and instance segmentation take any folder in COCO format:

```python
custom_data = dict(root="", train_ann="train.json", val_ann="val.json")
```

is all a config says, and a user trains on their own data with::

    --cfg-options custom_data.root=/data/cells custom_data.train_ann=train.json custom_data.val_ann=val.json

Keys of the block:

root:
    the data folder; the other paths are relative to it unless they are absolute.
train_ann, val_ann, test_ann:
    COCO JSON files. Without ``test_ann`` the test data is the validation data.
train_img, val_img, test_img:
    image folders. None, the default, looks where the images usually lie: beside the annotation file, in
    ``root``, and in ``images``, ``train``, ``images/train``, ``train2017``, ... below it.
classes:
    ``"auto"``, the default, takes the categories of the training file in its order; or a list of names.

Semantic segmentation takes images and index masks, PNG files that hold the number of each pixel's class, from 0, and
255 where it is to be ignored:

```python
custom_data = dict(root="", train_mask=None, val_mask=None)
```

With ``images/train``, ``images/val``, ``masks/train``, ``masks/val`` and ``classes.json`` in a folder, one option is
enough: ``custom_data.root=/data/roads``. A block with ``train_mask`` is of this kind; its further keys:

train_img, val_img, test_img, train_mask, val_mask, test_mask:
    folders of images and masks, which may have folders in them. None, the default, looks where they usually lie:
    ``images/train`` and ``masks/train``, ``train/images``, ``annotations/train``, ``labels/train``, ... Without any
    key of test the test data is the validation data.
train_list, val_list, test_list:
    text files with the names of the split's images, one a line, where a folder holds more than the split's.
mask_suffix:
    what follows an image's name in its mask's; default ``".png"``.
classes:
    a list of names, or a JSON file with one, and with a ``palette`` if need be; default ``classes.json``.
palette:
    RGB colours of the classes, where ``classes.json`` has none.

After the options are applied, `resolve_custom_data` fills in, for the train, val and test dataloaders, the
innermost dataset's files and ``metainfo`` (classes and a palette); COCO evaluators' ``ann_file``; and every
``num_classes`` in the model's heads (not in an RPN, which only tells object from background; of a Mask2Former, the
number of things, all classes being things, and the weights of the classes). The classes found are written into the
block, so that the resolved config that a run leaves in its work dir needs no data to build the model.
"""

import colorsys
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from visionattn.engine.config.custom_masks import find_masks, read_classes, under
from visionattn.errors import ConfigError, DataError
from visionattn.io.json import read_json
from visionattn.io.names import place

__all__ = ["SPLITS", "coco_datasets", "load_coco", "palette", "resolve_classes", "resolve_custom_data"]

SPLITS = {"train": "train_dataloader", "val": "val_dataloader", "test": "test_dataloader"}
UNTOUCHED_HEADS = ("rpn_head", "backbone", "data_preprocessor")


def palette(count: int) -> list[tuple[int, int, int]]:
    """``count`` well separated RGB colours, the same at every call."""
    golden = 0.61803398875
    shades = ((0.75, 0.95), (0.95, 0.75), (0.55, 0.9))
    colours = (colorsys.hsv_to_rgb((0.02 + i * golden) % 1.0, *shades[i % 3]) for i in range(count))
    return [(round(r * 255), round(g * 255), round(b * 255)) for r, g, b in colours]


def resolve_custom_data(config: Config, name: str = "config") -> None:
    """Fill in datasets, evaluators and heads from the ``custom_data`` block, in place; without one, do nothing.

    Raises:
        ConfigError: the block lacks a key or has a wrong one.
        DataError: an annotation file is missing or malformed, or images or masks are not found.
    """
    block = config.get("custom_data")
    if block is None:
        return
    _check_types(config, block, name)
    root = Path(str(block.get("root") or ".")).expanduser()
    if "train_mask" not in block:
        _resolve_coco(config, block, root, name)
    elif block.get("train_ann"):
        raise ConfigError(f"{name}: custom_data has both train_ann, of COCO data, and train_mask; leave one out")
    else:
        _resolve_masks(config, block, root, name)


def _check_types(config: Config, block: Any, name: str) -> None:
    """Refuse parts of another type than the code below takes them for."""
    for key, part in {"custom_data": block, **{k: config.get(k) for k in ("model", *SPLITS.values())}}.items():
        if part is not None and not isinstance(part, Mapping):
            raise ConfigError(f"{name}: {key}={part!r} must be a dict")
    for loader in SPLITS.values():
        if config.get(loader) and config[loader].get("dataset") is None:
            raise ConfigError(f"{name}: {loader} has no dataset")
    for key, value in block.items():
        path = key == "root" or str(key).endswith(("_ann", "_img", "_mask", "_list", "_suffix"))
        if path and value is not None and not isinstance(value, (str, os.PathLike)):
            raise ConfigError(f"{name}: custom_data.{key}={value!r} must be a path")


def resolve_classes(config: Config, classes: Sequence[str]) -> None:
    """Fill in the classes that `resolve_custom_data` takes from the data, in place; enough for predicting."""
    block = config["custom_data"]
    block["classes"] = list(classes)
    for loader in SPLITS.values():
        for dataset in coco_datasets(config[loader]["dataset"], any_file=True) if config.get(loader) else ():
            dataset["metainfo"] = {"classes": tuple(classes), "palette": palette(len(classes))}
    _set_num_classes(config["model"], len(classes))


def _resolve_coco(config: Config, block: Any, root: Path, name: str) -> None:
    for key in ("train_ann", "val_ann"):
        if not block.get(key):
            raise ConfigError(f"{name}: custom_data.{key} is not set; give --cfg-options custom_data.{key}=FILE.json")
    if not isinstance(block.get("classes"), (list, tuple)):
        if not root.is_dir():
            raise DataError(f"custom_data.root: {root} is not a folder; give --cfg-options custom_data.root=FOLDER")
        categories = load_coco(under(root, block["train_ann"]))["categories"]
        block["classes"] = [str(c["name"]) for c in categories]
    classes = list(block["classes"])
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
    _set_num_classes(config["model"], len(classes))


def _resolve_masks(config: Config, block: Any, root: Path, name: str) -> None:
    splits = find_masks(block, root, name)
    classes, colours = read_classes(block, root)
    block["classes"], block["palette"] = classes, colours or palette(len(classes))
    for split, loader in SPLITS.items():
        found = splits[split]
        for dataset in coco_datasets(config[loader]["dataset"], any_file=True) if config.get(loader) else ():
            dataset["ann_file"] = str(found.names or "")
            dataset["data_root"] = ""
            dataset["data_prefix"] = {"img_path": str(found.images), "seg_map_path": str(found.masks)}
            dataset["seg_map_suffix"] = block.get("mask_suffix") or ".png"
            dataset["metainfo"] = {"classes": tuple(classes), "palette": list(block["palette"])}
    _set_num_classes(config["model"], len(classes))


def load_coco(path: Path) -> dict[str, Any]:
    """Read a COCO JSON file as far as its images and categories, or raise `DataError`."""
    try:
        content = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such annotation file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable COCO JSON file ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise DataError(f"{path}: not in COCO format, which has the lists images, annotations and categories")
    if not content["categories"]:
        raise DataError(f"{path}: its list of categories is empty")
    if not all(isinstance(c, dict) and "id" in c and "name" in c for c in content["categories"]):
        raise DataError(f"{path}: a category lacks its id or name")
    return content


def _find_images(root: Path, ann: Path, split: str) -> Path:
    """The folder in which the first image of an annotation file lies."""
    if not ann.is_file():  # a resolved config on another machine: only its model is needed there
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
        f"{ann}: its first image {first!r} is neither in {root} nor in the usual folders below it; "
        f"give the image folder as --cfg-options custom_data.{split}_img=FOLDER"
    )


def coco_datasets(dataset: Any, any_file: bool = False) -> Iterator[Any]:
    """The dicts of the COCO datasets in a dataloader's dataset, inside of wrappers such as RepeatDataset."""
    if isinstance(dataset, Mapping):
        inner = dataset.get("dataset")
        if inner is not None:
            yield from coco_datasets(inner, any_file)
        elif isinstance(dataset.get("datasets"), (list, tuple)):
            for part in dataset["datasets"]:
                yield from coco_datasets(part, any_file)
        elif "Coco" in str(dataset.get("type")) or any_file:
            yield dataset


def _set_num_classes(part: Any, count: int) -> None:
    if isinstance(part, Mapping):
        if "num_things_classes" in part:
            part["num_things_classes"], part["num_stuff_classes"] = count, 0  # type: ignore[index]
        loss = part.get("loss_cls") if "num_queries" in part else None
        weights = loss.get("class_weight") if isinstance(loss, Mapping) else None
        if isinstance(weights, (list, tuple)) and weights:  # the last is of queries without an object
            part["loss_cls"]["class_weight"] = [weights[0]] * count + [weights[-1]]
        for key, value in part.items():
            if key == "num_classes":
                part[key] = count  # type: ignore[index]
            elif key not in UNTOUCHED_HEADS:
                _set_num_classes(value, count)
    elif isinstance(part, (list, tuple)):
        for item in part:
            _set_num_classes(item, count)
