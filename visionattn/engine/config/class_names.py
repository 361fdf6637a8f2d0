"""Match the classes of a checkpoint with those of the data, by name.

The label of a class is its position in a list: that of the dataset for annotations, and that of the checkpoint for
predictions. With the same classes in another order, every figure would be wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from visionattn.engine.config.custom_data import SPLITS, coco_datasets
from visionattn.engine.config.options import find_class
from visionattn.errors import ConfigError

__all__ = ["base_names", "checkpoint_classes", "config_classes", "dataset_classes", "follow_checkpoint"]


def checkpoint_classes(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the class names in the metadata of a checkpoint of mmengine or mmcv, or an empty list."""
    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    info = meta.get("dataset_meta")
    info = info if isinstance(info, Mapping) else meta
    return _names(info.get("classes") or info.get("CLASSES") or ())


def dataset_classes(dataset: Mapping[str, Any], scope: str | None = None) -> list[str]:
    """Return the class names of a dataset config: those in its ``metainfo``, or those of its class."""
    classes = (dataset.get("metainfo") or {}).get("classes")
    if classes is None:
        classes = (getattr(find_class(dataset.get("type"), scope), "METAINFO", None) or {}).get("classes", ())
    return _names(classes)


def config_classes(config: Mapping[str, Any]) -> list[str]:
    """Return the class names of the test, validation or training data of a config, or an empty list."""
    for key in ("test_dataloader", "val_dataloader", "train_dataloader"):
        dataset = (config.get(key) or {}).get("dataset")
        while isinstance(dataset, Mapping) and "dataset" in dataset:
            dataset = dataset["dataset"]
        if isinstance(dataset, Mapping) and (names := dataset_classes(dataset, config.get("default_scope"))):
            return names
    return []


def base_names(dataset: Mapping[str, Any], scope: str | None = None) -> set[str]:
    """Return the names of a dataset's class and its base classes; Cityscapes and ADE20K instances derive from COCO."""
    return {base.__name__ for base in getattr(find_class(dataset.get("type"), scope), "__mro__", ())}


def _names(classes: Any) -> list[str]:
    if isinstance(classes, str):
        return [classes]
    return [str(name) for name in classes] if isinstance(classes, (list, tuple)) else []  # else malformed metadata


def follow_checkpoint(
    config: Config, classes: Sequence[str], splits: Sequence[str], name: str, strict: bool = True
) -> list[str]:
    """Give the datasets of a config the class order of a checkpoint, in place.

    Args:
        config: the config, with ``custom_data`` resolved.
        classes: class names of the checkpoint; nothing is changed if there are none.
        splits: the splits to change: ``"train"``, ``"val"``, ``"test"``.
        name: name of the checkpoint in messages.
        strict: raise an error if the classes differ. Otherwise, as for fine-tuning, datasets with other classes are
            left unchanged.

    Returns:
        The class names of the data if they differ from those of the checkpoint, which requires that ``strict`` is
        False; else an empty list.

    Raises:
        ConfigError: the classes differ, or have another order in a dataset of index masks.
    """
    classes, scope = list(classes), config.get("default_scope")
    for split in splits if classes else ():
        loader = config.get(SPLITS[split])
        for dataset in coco_datasets(loader["dataset"], any_file=True) if loader else ():
            found = dataset_classes(dataset, scope)
            if not found or found == classes:
                continue
            if sorted(found) != sorted(classes):
                if not strict:
                    return found
                raise ConfigError(
                    f"{name}: has the classes {_list(classes)}, but {SPLITS[split]} has {_list(found)}; use data with "
                    "the classes of the checkpoint"
                )
            by_name = getattr(find_class(dataset.get("type"), scope), "labels_by_name", None)
            if "CocoDataset" not in base_names(dataset, scope) and not (by_name and by_name(dataset)):
                raise ConfigError(
                    f"{name}: has the classes {_list(classes)}, but {SPLITS[split]} numbers them as {_list(found)}; "
                    "change the masks or labels to the numbers of the checkpoint"
                )
            dataset["metainfo"] = {**(dataset.get("metainfo") or {}), "classes": tuple(classes)}
            if config.get("custom_data") is not None:
                config.custom_data["classes"] = classes
    return []


def _list(names: Sequence[str]) -> str:
    return f"({', '.join(names[:8])}{f', ... {len(names)} in total' if len(names) > 8 else ''})"
