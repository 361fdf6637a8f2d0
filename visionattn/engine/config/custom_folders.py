"""Find the image folders of a ``custom_data`` block for image labels: one subfolder per class, as in torchvision."""

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionattn.engine.config.custom_masks import IMAGE_FOLDERS, SPLIT_FOLDERS, under
from visionattn.errors import ConfigError, DataError

__all__ = ["ClassFolder", "class_names", "find_class_folders"]

BOXES = "boxes.csv"


@dataclass(frozen=True)
class ClassFolder:
    """One split: the folder with one subfolder per class, and the file with boxes, or None."""

    images: Path
    boxes: Path | None


def find_class_folders(block: MutableMapping[str, Any], root: Path, name: str) -> dict[str, ClassFolder]:
    """Find the folders of the splits train, val and test.

    Without a key for testing and without a folder ``test``, the validation data is used.

    Args:
        block: the ``custom_data`` block.
        root: its data folder.
        name: name of the config in error messages.

    Raises:
        ConfigError: ``root`` is not set.
        DataError: a folder or a file is not found.
    """
    if not (block.get("root") or (block.get("train_img") and block.get("val_img"))):
        raise ConfigError(f"{name}: custom_data.root is not set; set it to the folder with train/CLASS and val/CLASS")
    splits = {split: _find(block, root, split) for split in ("train", "val", "test")}
    for split in ("train", "val"):
        if splits[split] is None:
            raise DataError(
                f"{root}: has no folder {' or '.join(SPLIT_FOLDERS[split])} with one subfolder per class; set "
                f"custom_data.{split}_img"
            )
    return {split: found or splits["val"] for split, found in splits.items()}  # type: ignore[misc]


def _find(block: MutableMapping[str, Any], root: Path, split: str) -> ClassFolder | None:
    given = block.get(f"{split}_img")
    folders = [given] if given else [f"{top}{part}" for top in ("", *(f"{f}/" for f in IMAGE_FOLDERS))
                                     for part in SPLIT_FOLDERS[split]]  # fmt: skip
    folder = next((under(root, path) for path in folders if under(root, path).is_dir()), None)
    if folder is None:
        if given:
            raise DataError(f"custom_data.{split}_img: {under(root, given)} is not a folder")
        return None
    boxes = block.get(f"{split}_boxes")
    if boxes and not under(root, boxes).is_file():
        raise DataError(f"custom_data.{split}_boxes: {under(root, boxes)} does not exist")
    file = under(root, boxes) if boxes else folder / BOXES
    return ClassFolder(folder, file if file.is_file() else None)


def class_names(block: MutableMapping[str, Any], folder: Path) -> list[str]:
    """Return the class names in the block, or the names of the subfolders of the training folder.

    Raises:
        DataError: there is no subfolder.
    """
    given = block.get("classes")
    if isinstance(given, (list, tuple)):
        return [str(name) for name in given]
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: must contain one subfolder per class")
    return names
