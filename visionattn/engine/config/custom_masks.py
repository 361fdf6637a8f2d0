"""Find the images, index masks and classes of a ``custom_data`` block for semantic segmentation."""

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
"""Number of classes that an 8-bit mask can represent in addition to the ignored value 255."""


@dataclass(frozen=True)
class MaskSplit:
    """Folders of one split.

    Attributes:
        images: folder of the images.
        masks: folder of the masks.
        names: text file with the image names of the split, or None for all images in the folder.
    """

    images: Path
    masks: Path
    names: Path | None


def under(root: Path, path: str | os.PathLike) -> Path:
    """Join a relative path with ``root``; return absolute paths unchanged."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else Path(os.path.abspath(root / path))


def find_masks(block: MutableMapping[str, Any], root: Path, name: str) -> dict[str, MaskSplit]:
    """Find the folders of the splits train, val and test, and write them to the block.

    Args:
        block: the ``custom_data`` block.
        root: its data folder.
        name: name of the config in error messages.

    Raises:
        ConfigError: ``root`` is not set.
        DataError: ``root`` is not a folder, or images or masks are not found in it.
    """
    given = [f"{split}_{part}" for split in ("train", "val") for part in ("img", "mask")]
    if not all(block.get(key) for key in given):
        if not block.get("root"):
            raise ConfigError(f"{name}: custom_data.root is not set; set it to the data folder")
        if not root.is_dir():
            raise DataError(f"custom_data.root must be an existing folder, got {str(root)!r}")
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
                    f"{root}: the {what} of {split} are not in {' or '.join(candidates[:2])}; set custom_data.{key} "
                    f"to their folder{'' if names else f', or custom_data.{split}_list to a file with their names'}"
                )
        places[part] = under(root, block[key])
    return MaskSplit(places["img"], places["mask"], under(root, names) if names else None)


def _candidates(folders: tuple[str, ...], split: str, whole: bool) -> Iterator[str]:
    for folder in folders:
        for part in SPLIT_FOLDERS[split]:
            yield f"{folder}/{part}"
            yield f"{part}/{folder}"
    if whole:  # a list selects the files of the split
        yield from folders


def read_classes(block: MutableMapping[str, Any], root: Path) -> tuple[list[str], list[tuple[int, int, int]] | None]:
    """Read the names and RGB colors of the classes from the block or from its JSON file.

    The file has a list of names, or an object with ``names`` (or ``classes``) and optionally ``palette``.

    Args:
        block: the ``custom_data`` block.
        root: its data folder.

    Returns:
        The names, and the colors or None.

    Raises:
        DataError: the file is missing or malformed.
        ConfigError: names or colors in the block are invalid.
    """
    where, classes, colors = "custom_data.classes", block.get("classes"), block.get("palette")
    if not isinstance(classes, (list, tuple)):
        file = under(root, "classes.json" if classes in (None, "auto") else str(classes))
        where, content = str(file), _read_json(file)
        if isinstance(content, dict):
            colors = colors or content.get("palette")
            if content.get("ignore_index", IGNORED) != IGNORED:
                raise DataError(f"{file}: ignore_index must be {IGNORED}, got {content['ignore_index']!r}")
            content = content.get("names", content.get("classes"))
        if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
            raise DataError(f'{file}: must contain a list of names, or an object with such a list as "names"')
        classes = content
    names = [str(item) for item in classes]
    error = ConfigError if where.startswith("custom_data") else DataError
    if not 1 <= len(names) <= LARGEST:
        raise error(f"{where}: must have 1 to {LARGEST} classes, got {len(names)}")
    twice = next((item for item in names if names.count(item) > 1), None)
    if twice is not None:
        raise error(f"{where}: the name {twice!r} occurs twice")
    if colors is None:
        return names, None
    if not isinstance(colors, (list, tuple)) or not all(isinstance(color, (list, tuple)) for color in colors):
        raise error(f"{where}: the palette must be a list of colors [red, green, blue]")
    if len(colors) != len(names):
        raise error(f"{where}: has {len(names)} classes, but the palette has {len(colors)} colors")
    for color in colors:
        if len(color) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in color):
            raise error(f"{where}: colors of the palette must be three integers in [0, 255], got {list(color)}")
    return names, [tuple(color) for color in colors]


def _read_json(file: Path) -> Any:
    try:
        return read_json(file)
    except FileNotFoundError as error:
        raise DataError(
            f"{file}: the file with the class names does not exist; create it, or set custom_data.classes=[road,car]"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as a JSON file with class names ({error})") from error
