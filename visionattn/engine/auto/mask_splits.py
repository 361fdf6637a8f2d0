"""Complete a folder of images and index masks: draw a validation split and name the classes if there are none."""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.data.formats.similar import TooFewImagesError, choose
from visionattn.data.mask_folders import pair_masks
from visionattn.engine.config.custom_formats import val_fraction
from visionattn.engine.config.custom_masks import IGNORED, IMAGE_FOLDERS, MASK_FOLDERS, SPLIT_FOLDERS
from visionattn.errors import DataError
from visionattn.io.folders import cache_dir
from visionattn.io.images import open_image

__all__ = ["complete_masks"]


def complete_masks(block: Mapping[str, Any], root: Path) -> tuple[dict[str, Any], list[str]]:
    """Return keys to add to a ``custom_data`` block for index masks, and lines for the user.

    The lists of images that are drawn for validation are written to the cache.

    Args:
        block: the block.
        root: the data folder.

    Raises:
        DataError: images and masks are not found, or do not fit.
    """
    added: dict[str, Any] = {}
    notes: list[str] = []
    keys = [f"{split}_{part}" for split in ("train", "val") for part in ("img", "mask", "list")]
    if any(block.get(key) for key in keys):
        return added, notes
    train = {part: _folder(root, folders, SPLIT_FOLDERS["train"]) or _flat(root, folders)
             for part, folders in (("img", IMAGE_FOLDERS), ("mask", MASK_FOLDERS))}  # fmt: skip
    if None in train.values():
        return added, notes  # `find_masks` says what is missing
    if not all(_folder(root, folders, SPLIT_FOLDERS["val"]) for folders in (IMAGE_FOLDERS, MASK_FOLDERS)):
        added |= {f"{split}_{part}": folder for split in ("train", "val") for part, folder in train.items()}
        pairs = pair_masks(root / train["img"], root / train["mask"])
        images = [image.relative_to(root / train["img"]).as_posix() for image, _ in pairs]
        try:
            chosen = set(choose([image for image, _ in pairs], val_fraction(block, "--data"), 0, str(root)))
            names = {split: [name for i, name in enumerate(images) if (i in chosen) == (split == "val")]
                     for split in ("train", "val")}  # fmt: skip
            notes.append(f"{len(chosen)} of {len(images)} images drawn for validation, near-duplicates kept together")
        except TooFewImagesError:
            names = {"train": images, "val": images}
            notes.append("too few different images to set some aside: validated on the training images, so that the "
                         "scores are too high")  # fmt: skip
        added |= _write(root, names)
    if not block.get("classes") and not (root / "classes.json").is_file():
        highest = _highest(sorted((root / train["mask"]).rglob("*.png")))
        added["classes"] = [f"class {value}" for value in range(highest + 1)]
        notes.append(f"no classes.json: the classes are the values 0 to {highest} of the masks; name them with "
                     "custom_data.classes=[...]")  # fmt: skip
    return added, notes


def _folder(root: Path, folders: tuple[str, ...], parts: tuple[str, ...]) -> str | None:
    names = (name for folder in folders for part in parts for name in (f"{folder}/{part}", f"{part}/{folder}"))
    return next((name for name in names if (root / name).is_dir()), None)


def _flat(root: Path, folders: tuple[str, ...]) -> str | None:
    return next((name for name in folders if (root / name).is_dir()), None)


def _write(root: Path, names: dict[str, list[str]]) -> dict[str, str]:
    full = os.path.realpath(root)
    text = {split: "".join(f"{name}\n" for name in listed) for split, listed in names.items()}
    key = hashlib.sha256(f"{full}\0{text}".encode()).hexdigest()[:10]
    folder = cache_dir() / "converted" / f"{os.path.basename(full)}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, content in text.items():
            (folder / f"{split}.txt").write_text(content, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); set VISIONATTN_CACHE") from error
    return {f"{split}_list": str(folder / f"{split}.txt") for split in names}


def _highest(masks: list[Path]) -> int:
    """Return the largest value of all masks, apart from the ignored one."""

    def largest(path: Path) -> int:
        try:
            with open_image(path) as opened:
                values = np.asarray(opened)
        except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ..., depending on the damage
            raise DataError(f"{path}: cannot be opened as a mask ({' '.join(str(error).split())[:100]})") from error
        if values.ndim != 2:
            raise DataError(f"{path}: is a colour image; a mask has one channel with class indices")
        return int(values[values != IGNORED].max(initial=0))

    with ThreadPoolExecutor(8) as pool:
        found = max(pool.map(largest, masks), default=0)
    if not found:
        raise DataError(
            f"{masks[0].parent if masks else 'masks'}: all pixels are 0 or {IGNORED}, which is ignored; a mask has the "
            "class of each pixel: 0, 1, 2, ..."
        )
    if found > IGNORED:
        raise DataError(f"{masks[0].parent}: masks have values up to {found}; index masks have the class of each pixel")
    return found
