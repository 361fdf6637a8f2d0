"""Metadata of weakly supervised localization, as CUB, ImageNet and OpenImages are distributed for it.

The layout of Choe et al. (CVPR 2020, arXiv 2001.07437): a folder for each split, with comma-separated files without
a header.

=======================  =====================================================
``image_ids.txt``        ``path``
``class_labels.txt``     ``path,label``
``image_sizes.txt``      ``path,width,height``
``localization.txt``     ``path,x0,y0,x1,y1``, several lines for an image with several objects, or
                         ``path,mask,ignore``, the ignore mask on the first line of an image only
=======================  =====================================================
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.io.names import place

__all__ = ["LocalizationImage", "read_localization"]

MAX_DIGITS = 6
"""Of labels and sizes. Without names for the classes, as many as the largest label says are made."""


@dataclass
class LocalizationImage:
    """What the metadata says of one image.

    Attributes:
        image_id: its path below the image folder.
        label: its class, counted from 0.
        size: height and width in pixels, or None where the split has no ``image_sizes.txt``.
        boxes: float64 ``[N, 4]``, x0 y0 x1 y1 in pixels of the image; empty without boxes.
        masks: paths of its objects' masks below the mask folder.
        ignore: path of the mask of what is not to be measured, or None.
    """

    image_id: str
    label: int
    size: tuple[int, int] | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    masks: tuple[str, ...] = ()
    ignore: str | None = None


def read_localization(folder: str | Path, *, need_objects: bool = False) -> list[LocalizationImage]:
    """Read one split.

    Args:
        folder: holds the files of the split.
        need_objects: whether each image must have a box or a mask, as for a test.

    Returns:
        The images in the order of ``image_ids.txt``.

    Raises:
        DataError: a file is missing or malformed, a name leads out of its folder, or an image lacks its label (or
            objects); names file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of localization metadata")
    images: dict[str, LocalizationImage] = {}
    for where, fields in _lines(folder / "image_ids.txt", (1,)):
        if fields[0] in images:
            raise DataError(f"{where}: {fields[0]!r} is there twice")
        place(fields[0], "the image folder", where)
        images[fields[0]] = LocalizationImage(fields[0], -1)
    if not images:
        raise DataError(f"{folder / 'image_ids.txt'}: names no image")
    for where, (name, label) in _lines(folder / "class_labels.txt", (2,)):
        _known(images, name, where).label = _whole(label, where)
    if (folder / "image_sizes.txt").is_file():
        for where, (name, width, height) in _lines(folder / "image_sizes.txt", (3,)):
            _known(images, name, where).size = _whole(height, where), _whole(width, where)
    if (folder / "localization.txt").is_file():
        _read_objects(folder / "localization.txt", images)
    elif need_objects:
        raise DataError(f"{folder / 'localization.txt'}: there is no such file, which testing needs")
    for image in images.values():
        if image.label < 0:
            raise DataError(f"{folder / 'class_labels.txt'}: has no label of {image.image_id!r}")
        if need_objects and not len(image.boxes) and not image.masks:
            raise DataError(f"{folder / 'localization.txt'}: has no box or mask of {image.image_id!r}")
    return list(images.values())


def _read_objects(file: Path, images: dict[str, LocalizationImage]) -> None:
    boxes: dict[str, list[list[float]]] = {}
    masks: dict[str, list[str]] = {}
    for where, fields in _lines(file, (3, 5)):
        image = _known(images, fields[0], where)
        if len(fields) == 3:
            for name in filter(None, fields[1:]):
                place(name, "the mask folder", where)
            masks.setdefault(image.image_id, []).append(fields[1])
            image.ignore = image.ignore or fields[2] or None
            continue
        try:
            box = [float(value) for value in fields[1:]]
        except ValueError:
            raise DataError(f"{where}: {fields[1:]} are not the four numbers of a box") from None
        if not (box[0] <= box[2] and box[1] <= box[3] and np.isfinite(box).all()):
            raise DataError(f"{where}: the box {box} does not go from left to right and from top to bottom")
        boxes.setdefault(image.image_id, []).append(box)
    for name, found in boxes.items():
        images[name].boxes = np.array(found, dtype=np.float64)
    for name, paths in masks.items():
        images[name].masks = tuple(paths)


def _lines(file: Path, counts: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """Where each line is, and its fields."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file; a split needs image_ids.txt and class_labels.txt") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        fields = [line.strip()] if counts == (1,) else [part.strip() for part in line.split(",")]
        if len(fields) not in counts:
            wanted = " or ".join(str(count) for count in counts)
            raise DataError(f"{file}:{number}: has {len(fields)} fields between commas, not {wanted}")
        yield f"{file}:{number}", fields


def _known(images: dict[str, LocalizationImage], name: str, where: str) -> LocalizationImage:
    if name not in images:
        raise DataError(f"{where}: {name!r} is not in image_ids.txt")
    return images[name]


def _whole(text: str, where: str) -> int:
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise DataError(f"{where}: {text!r:.80} is not a whole number below a million")
    return int(text)
