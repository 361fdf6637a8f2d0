"""Where the images, index masks and classes of a ``custom_data`` block with masks are."""

import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionattn.data.mask_folders import IGNORED
from visionattn.errors import ConfigError, DataError
from visionattn.io.json import read_json

__all__ = ["MaskSplit", "find_masks", "read_classes", "under"]

IMAGE_FOLDERS = ("images", "imgs", "img_dir", "JPEGImages")
MASK_FOLDERS = ("masks", "annotations", "labels", "ann_dir", "SegmentationClass")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
LARGEST = 255
"""Classes that the values of an 8-bit mask can tell apart beside 255."""


@dataclass(frozen=True)
class MaskSplit:
    """The folders of a split, and the list of names to take from them, where there is one."""

    images: Path
    masks: Path
    names: Path | None


def under(root: Path, path: str | os.PathLike) -> Path:
    """A path as it is, or below ``root`` where it is relative."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else Path(os.path.abspath(root / path))


def find_masks(block: MutableMapping[str, Any], root: Path, name: str) -> dict[str, MaskSplit]:
    """The folders of train, val and test; those found are written into the block, so that nobody looks again.

    Raises:
        ConfigError: ``root`` is not set.
        DataError: it is not a folder, or has no images or masks where they usually lie.
    """
    given = [f"{split}_{part}" for split in ("train", "val") for part in ("img", "mask")]
    if not all(block.get(key) for key in given):
        if not block.get("root"):
            raise ConfigError(f"{name}: custom_data.root is not set; give --cfg-options custom_data.root=FOLDER")
        if not root.is_dir():
            raise DataError(f"custom_data.root: {root} is not a folder; give --cfg-options custom_data.root=FOLDER")
    splits = {split: _find_split(block, root, split) for split in ("train", "val")}
    tested = any(block.get(f"test_{part}") for part in ("img", "mask", "list"))
    return splits | {"test": _find_split(block, root, "test") if tested else splits["val"]}


def _find_split(block: MutableMapping[str, Any], root: Path, split: str) -> MaskSplit:
    names = block.get(f"{split}_list")
    places = {}
    for part, folders in (("img", IMAGE_FOLDERS), ("mask", MASK_FOLDERS)):
        key = f"{split}_{part}"
        if not block.get(key):
            candidates = list(_candidates(folders, split, whole=bool(names)))
            block[key] = next((folder for folder in candidates if (root / folder).is_dir()), None)
            if block[key] is None:
                what = "images" if part == "img" else "masks"
                raise DataError(
                    f"{root}: the {what} of {split} are not in {' or '.join(candidates[:2])}; give "
                    f"custom_data.{key}=FOLDER{'' if names else f', or custom_data.{split}_list=FILE with their names'}"
                )
        places[part] = under(root, block[key])
    return MaskSplit(places["img"], places["mask"], under(root, names) if names else None)


def _candidates(folders: tuple[str, ...], split: str, whole: bool) -> Iterator[str]:
    for folder in folders:
        for part in SPLIT_FOLDERS[split]:
            yield f"{folder}/{part}"
            yield f"{part}/{folder}"
    if whole:  # a list tells which of the files belong to the split
        yield from folders


def read_classes(block: MutableMapping[str, Any], root: Path) -> tuple[list[str], list[tuple[int, int, int]] | None]:
    """Names and colours (RGB) of the classes: those in the block, else those of its JSON file.

    The file is a list of names, or an object with ``names`` (or ``classes``) and, if need be, ``palette``.

    Raises:
        DataError: the file is missing or is not like that.
        ConfigError: names or colours in the block that cannot be.
    """
    where, classes, colours = "custom_data.classes", block.get("classes"), block.get("palette")
    if not isinstance(classes, (list, tuple)):
        file = under(root, "classes.json" if classes in (None, "auto") else str(classes))
        where, content = str(file), _read_json(file)
        if isinstance(content, dict):
            colours = colours or content.get("palette")
            if content.get("ignore_index", IGNORED) != IGNORED:
                raise DataError(f"{file}: its ignore_index is {content['ignore_index']!r}; masks are to have {IGNORED}")
            content = content.get("names", content.get("classes"))
        if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
            raise DataError(f'{file}: is not a list of names, or an object with such a list as "names"')
        classes = content
    names = [str(item) for item in classes]
    error = ConfigError if where.startswith("custom_data") else DataError
    if not 1 <= len(names) <= LARGEST:
        raise error(f"{where}: has {len(names)} classes; there must be 1 to {LARGEST}")
    twice = next((item for item in names if names.count(item) > 1), None)
    if twice is not None:
        raise error(f"{where}: names {twice!r} twice")
    if colours is None:
        return names, None
    if not isinstance(colours, (list, tuple)) or not all(isinstance(colour, (list, tuple)) for colour in colours):
        raise error(f"{where}: the palette is not a list of colours [red, green, blue]")
    if len(colours) != len(names):
        raise error(f"{where}: has {len(names)} classes, but the palette has {len(colours)} colours")
    for colour in colours:
        if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour):
            raise error(f"{where}: the palette's colour {list(colour)} is not three whole numbers of 0 to 255")
    return names, [tuple(colour) for colour in colours]


def _read_json(file: Path) -> Any:
    try:
        return read_json(file)
    except FileNotFoundError as error:
        raise DataError(
            f"{file}: there is no such file of classes; write one, or give custom_data.classes=[road,car]"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: is not a readable JSON file of classes ({error})") from error
