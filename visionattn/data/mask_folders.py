"""Folders of images and index masks, PNG files in which each pixel is a class index."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.io.console import count_of
from visionattn.io.images import image_size, open_image
from visionattn.io.inputs import IMAGE_SUFFIXES, OPTIONAL_SUFFIXES, UNSUPPORTED_SUFFIXES, walk_files

__all__ = ["IGNORED", "check_masks", "pair_masks", "read_names", "unused_files"]

IGNORED = 255
"""Pixels with this value are ignored in training and evaluation."""


def read_names(file: Path) -> list[str]:
    """Read a list of names, one per line, such as ``0001`` or ``0001.png``.

    Raises:
        DataError: the file cannot be read or is empty.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError as error:
        raise DataError(f"{file}: the list of images does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as a list of images with one name per line ({error})") from error
    if not names:
        raise DataError(f"{file}: the list of images is empty")
    return names


def pair_masks(
    images: Path, masks: Path, names: Sequence[str] | None = None, mask_suffix: str = ".png"
) -> list[tuple[Path, Path]]:
    """Pair each image of a folder, searched recursively, with its mask, which has the same path with another suffix.

    Args:
        images: the folder of images.
        masks: the folder of masks.
        names: use only these images, with or without suffix; None uses all.
        mask_suffix: replaces the suffix of the image: with ``"_mask.png"`` the mask of ``a.jpg`` is ``a_mask.png``.

    Returns:
        ``(image, mask)`` pairs, sorted by name.

    Raises:
        DataError: a folder or an image is missing, two images have the same mask, or an image has no mask; the message
            names the first.
    """
    for folder in (images, masks):
        if not folder.is_dir():
            raise DataError(f"{folder}: the folder does not exist")
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
        raise DataError(f"{images}: the folder contains no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    pairs = [(path, masks / f"{key}{mask_suffix}") for key, path in sorted(found.items())]
    lacking = [(image, mask) for image, mask in pairs if not mask.is_file()]
    if lacking:
        image, mask = lacking[0]
        raise DataError(f"{image}: has no mask; {mask} does not exist{_more(len(lacking) - 1, 'images')}")
    return pairs


def unused_files(images: Path, masks: Path, pairs: Sequence[tuple[Path, Path]]) -> str | None:
    """Describe the files of two folders that belong to no pair, with their number and an example; None without any."""
    used = {path for pair in pairs for path in pair}
    files = {
        path
        for folder in (images, masks)
        for path in walk_files(folder, {*UNSUPPORTED_SUFFIXES, *OPTIONAL_SUFFIXES, *IMAGE_SUFFIXES})
    }
    left = sorted(files - used)
    return f"{count_of(len(left), 'file')} not used, such as {left[0]}" if left else None


def _without_suffix(name: str) -> str:
    path = Path(name)
    return (path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path).as_posix()


def _listed(images: Path, found: dict[str, Path], key: str) -> Path:
    if key not in found:
        raise DataError(f"{images}: the image {key!r} in the list of names does not exist")
    return found[key]


def _more(count: int, what: str) -> str:
    return f" (and {count} more {what})" if count > 0 else ""


def check_masks(
    pairs: Iterable[tuple[Path, Path]], classes: Sequence[str], reduce_zero_label: bool = False
) -> np.ndarray:
    """Read all masks and check their sizes against their images and their values against the classes.

    Args:
        pairs: image and mask files.
        classes: class names.
        reduce_zero_label: the value 0 is ignored and the classes are numbered from 1, as the option of mmseg.

    Returns:
        int64 ``[256]``: the number of pixels of each class over all masks, and of ignored ones at 255.

    Raises:
        DataError: a mask is invalid; the message names the first and has the number of others.
    """
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda pair: _read(*pair, len(classes), int(reduce_zero_label)), pairs))
    problems = [item for item in found if isinstance(item, str)]
    if problems:
        raise DataError(f"{problems[0]}{_more(len(problems) - 1, 'masks')}")
    counts = np.sum(found, axis=0, dtype=np.int64)
    if len(classes) > 1 and not reduce_zero_label and counts[IGNORED] and not counts[1:IGNORED].any():
        raise DataError(
            f"{len(found)} masks contain only 0 and {IGNORED}, but {IGNORED} is ignored; {classes[1]!r} must be 1"
        )
    return counts


def _read(image: Path, mask: Path, classes: int, first: int) -> np.ndarray | str:
    """Number of pixels of each class in a mask, whose values start at ``first``, or a message if it is invalid."""
    try:
        with open_image(mask) as opened:
            mode = opened.mode
            if mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                return f"{mask}: is a colour image ({mode}); a mask has one channel with class indices"
            if opened.format == "JPEG":
                return f"{mask}: is a JPEG file, and JPEG compression changes values; save masks as PNG"
            values = np.asarray(opened)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ..., depending on the damage
        return f"{mask}: cannot be opened as a mask ({' '.join(str(error).split())[:100]})"
    try:
        width, height, turned = image_size(image)
    except DataError as error:
        return str(error)
    size = (height, width) if turned else (width, height)  # with the EXIF orientation applied
    if (values.shape[1], values.shape[0]) != size:
        return (
            f"{mask}: is {values.shape[1]} x {values.shape[0]} pixels, but its image {image.name} "
            f"is {size[0]} x {size[1]}"
        )
    values = values.astype(np.int64)
    strange = values[(values != IGNORED) & ((values >= classes + first) | (values < 0))]
    if strange.size:
        value = int(strange.min())
        count = int((strange == value).sum())
        allowed = f"{first}" if classes == 1 else f"{first} to {classes - 1 + first}"
        ignored = f"0 and {IGNORED} are ignored" if first else f"{IGNORED} is ignored"
        return (
            f"{mask}: contains the value {value} ({count} pixels), but the {classes} classes are {allowed}, "
            f"and {ignored}"
        )
    labels = np.where(values < first, IGNORED, values - first * (values != IGNORED))
    return np.bincount(labels.ravel(), minlength=256)
