"""Convert the folder of a ``custom_data`` block that names no annotation files."""

import hashlib
import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process

from visionattn.data.formats.convert import Converted, convert
from visionattn.data.formats.masks import convert_masks
from visionattn.errors import ConfigError, DataError
from visionattn.io.folders import cache_dir

__all__ = ["convert_folder", "convert_mask_folder", "val_fraction"]

VAL = 0.2
"""Fraction of the training images that is drawn for validation if the data has no validation images."""


def convert_folder(block: MutableMapping[str, Any], root: Path, name: str) -> None:
    """Recognize the annotations in ``root``, convert them to COCO files in the cache, and write these to the block.

    A block with annotation files is unchanged, unless they were converted before and have been removed since.

    Args:
        block: the ``custom_data`` block.
        root: its data folder.
        name: name of the config in error messages.

    Raises:
        ConfigError: neither ``root`` nor annotation files are set, or only one of ``train_ann`` and ``val_ann`` is.
        DataError: the format is unknown, or the data is malformed.
    """
    missing = [key for key in ("train_ann", "val_ann") if not block.get(key)]
    lost = block.get("converted") and root.is_dir() and not Path(str(block.get("train_ann"))).is_file()
    if not missing and not lost:
        return
    if missing and (len(missing) == 1 or not block.get("root")):
        other = "" if len(missing) == 1 else ", or custom_data.root to a folder with annotations"
        raise ConfigError(f"{name}: custom_data.{missing[0]} is not set; set it to a COCO JSON file{other}")
    if not root.is_dir():
        raise DataError(f"custom_data.root must be an existing folder, got {str(root)!r}")
    share = val_fraction(block, name)
    made = _convert(root, block, share)
    if is_main_process():
        print(*made.lines, f"converted to {made.folder}, all changes in report.txt", sep="\n")
    block["converted"] = True
    for split in ("train", "val", "test"):
        if split in made.annotations:
            block[f"{split}_ann"], block[f"{split}_img"] = str(made.annotations[split]), str(made.images[split])
    if "val" not in made.annotations:  # val_share is 0
        block["val_ann"], block["val_img"] = block["train_ann"], block["train_img"]


def convert_mask_folder(block: MutableMapping[str, Any], root: Path, name: str) -> Path:
    """Convert masks of Pascal VOC in ``root`` to index masks in the cache, and return the folder with these.

    Other folders, and blocks that name folders of masks, are returned unchanged.

    Raises:
        DataError: the masks are malformed.
    """
    named = any(block.get(f"{split}_{part}") for split in ("train", "val") for part in ("img", "mask", "list"))
    if named or not block.get("root") or not _has_class_masks(root):
        return root
    out = _place(root, "masks")
    lines = convert_masks(root, out, val=val_fraction(block, name) or None, reuse=True)
    if is_main_process():
        print(*lines, f"converted to {out}, all changes in report.txt", sep="\n")
    return out


def _has_class_masks(root: Path) -> bool:
    return any(True for pattern in ("", "*/", "*/*/") for _ in root.glob(f"{pattern}SegmentationClass/*.png"))


def val_fraction(block: Mapping[str, Any], name: str) -> float:
    """Return ``val_share`` of a ``custom_data`` block.

    Raises:
        ConfigError: it is not a number in [0, 1).
    """
    share = VAL if block.get("val_share") is None else block["val_share"]
    if not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ConfigError(f"{name}: custom_data.val_share={share!r} must be a number from 0 to below 1")
    return share


def _place(root: Path, kind: str) -> Path:
    full = os.path.realpath(root)
    key = hashlib.sha256(f"{full}\0{kind}".encode()).hexdigest()[:10]
    return cache_dir() / "converted" / f"{os.path.basename(full)}-{key}"


def _convert(root: Path, block: MutableMapping[str, Any], share: float) -> Converted:
    kind, ignored = block.get("format"), bool(block.get("boxes_as_ignored"))
    out = _place(root, f"{kind} boxes_as_ignored" if ignored else str(kind))
    try:
        return convert(root, out, kind=kind, val=share or None, ignore_boxes=ignored, training=True, reuse=True)
    except DataError as error:
        raise type(error)(str(error).replace("`kind`", "custom_data.format")) from error
