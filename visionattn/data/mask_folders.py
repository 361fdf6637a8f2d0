"""Folders of images and of index masks, PNG files in which each pixel holds the number of its class."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.io.images import image_size, open_image
from visionattn.io.inputs import walk_files

__all__ = ["IGNORED", "IMAGE_SUFFIXES", "check_masks", "pair_masks", "read_names"]

IGNORED = 255
"""Pixels with this value are neither trained on nor measured."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read_names(file: Path) -> list[str]:
    """The names in a list, one a line, such as ``0001`` or ``0001.png``.

    Raises:
        DataError: the file cannot be read, or lists nothing.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataError(f"{file}: there is no such list of images") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a list of images, one name a line ({error})") from error
    if not names:
        raise DataError(f"{file}: lists no images")
    return names


def pair_masks(
    images: Path, masks: Path, names: Sequence[str] | None = None, mask_suffix: str = ".png"
) -> list[tuple[Path, Path]]:
    """Each image of a folder, and of the folders in it, with its mask: the same path with another suffix.

    Args:
        images: the folder of images.
        masks: the folder of masks.
        names: take only these, with or without suffix; None takes all.
        mask_suffix: what follows an image's name in its mask's: ``"_mask.png"`` finds ``a_mask.png`` for ``a.jpg``.

    Returns:
        ``(image, mask)`` in the order of their names.

    Raises:
        DataError: a folder or image is missing, two images share a mask, or an image has none; names the first.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder")
    found: dict[str, Path] = {}
    for path in walk_files(images, IMAGE_SUFFIXES):
        key = path.relative_to(images).with_suffix("").as_posix()
        if images == masks and path.name.endswith(mask_suffix):
            continue
        if key in found:
            raise DataError(f"{path}: differs from {found[key].name} only in its suffix, so both have the same mask")
        found[key] = path
    if names is not None:
        found = {key: _listed(images, found, key) for key in map(_without_suffix, names)}
    if not found:
        raise DataError(f"{images}: has no images ({', '.join(IMAGE_SUFFIXES)})")
    pairs = [(path, masks / f"{key}{mask_suffix}") for key, path in sorted(found.items())]
    lacking = [(image, mask) for image, mask in pairs if not mask.is_file()]
    if lacking:
        image, mask = lacking[0]
        raise DataError(f"{image}: has no mask; {mask} does not exist{_more(len(lacking) - 1, 'images')}")
    return pairs


def _without_suffix(name: str) -> str:
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path).as_posix()


def _listed(images: Path, found: dict[str, Path], key: str) -> Path:
    if key not in found:
        raise DataError(f"{images}: has no image {key!r}, which is in the list of names")
    return found[key]


def _more(count: int, what: str) -> str:
    return f" (and {count} more {what})" if count > 0 else ""


def check_masks(pairs: Iterable[tuple[Path, Path]], classes: Sequence[str]) -> np.ndarray:
    """Read every mask, and compare its size and values with its image's size and the classes.

    Returns:
        int64 ``[256]``: the number of pixels of each value in all masks together.

    Raises:
        DataError: names the first mask that is not as it should be, and tells how many more there are.
    """
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: _read(*pair, len(classes)), pairs))
    problems = [item for item in found if isinstance(item, str)]
    if problems:
        raise DataError(f"{problems[0]}{_more(len(problems) - 1, 'masks')}")
    counts = np.sum(found, axis=0, dtype=np.int64)
    if len(classes) > 1 and counts[IGNORED] and not counts[1:IGNORED].any():
        raise DataError(
            f"{len(found)} masks hold only 0 and {IGNORED}; {IGNORED} means ignored, so write {classes[1]!r} as 1"
        )
    return counts


def _read(image: Path, mask: Path, classes: int) -> np.ndarray | str:
    """Pixels of each value in a mask, or what is wrong with it."""
    try:
        with open_image(mask) as opened:
            mode = opened.mode
            if mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                return f"{mask}: is a colour picture ({mode}); a mask has one channel, the number of each pixel's class"
            if opened.format == "JPEG":
                return f"{mask}: is a JPEG file, which changes numbers; save masks as PNG"
            values = np.asarray(opened)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... by the damage
        return f"{mask}: does not open as a mask ({' '.join(str(error).split())[:100]})"
    try:
        width, height, turned = image_size(image)
    except DataError as error:
        return str(error)
    size = (height, width) if turned else (width, height)  # as it will be read
    if (values.shape[1], values.shape[0]) != size:
        return (
            f"{mask}: is {values.shape[1]} x {values.shape[0]} pixels, but its image {image.name} "
            f"is {size[0]} x {size[1]}"
        )
    strange = values[(values != IGNORED) & ((values >= classes) | (values < 0))]
    if strange.size:
        value = int(strange.min())
        count = int((strange == value).sum())
        allowed = "0" if classes == 1 else f"0 to {classes - 1}"
        return (
            f"{mask}: holds the value {value} ({count} pixels), but the {classes} classes are {allowed}, "
            f"and {IGNORED} is ignored"
        )
    return np.bincount(values.ravel().astype(np.uint8), minlength=256)
