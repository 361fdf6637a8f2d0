"""Metadata of weakly supervised localization datasets such as CUB, ImageNet and OpenImages.

The layout is that of Choe et al. (CVPR 2020, arXiv 2001.07437): one folder per split, with comma-separated files
without a header.

=======================  =====================================================
``image_ids.txt``        ``path``
``class_labels.txt``     ``path,label``
``image_sizes.txt``      ``path,width,height``
``localization.txt``     ``path,x0,y0,x1,y1``, one line per object, or
                         ``path,mask,ignore``, the ignore mask only on the first line of an image
=======================  =====================================================
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.io.console import examples
from visionattn.io.inputs import IMAGE_SUFFIXES, walk_files
from visionattn.io.names import place

__all__ = ["LocalizationImage", "read_class_folders", "read_localization"]

MAX_DIGITS = 6
"""Maximum number of digits of labels and sizes, since class names are generated up to the largest label."""


@dataclass
class LocalizationImage:
    """Metadata of one image.

    Attributes:
        image_id: path relative to the image folder.
        label: class label, from 0.
        size: height and width in pixels, or None if the split has no ``image_sizes.txt``.
        boxes: float64 ``[N, 4]``, x0, y0, x1, y1 in pixels of the image; N may be 0.
        masks: paths of the object masks, relative to the mask folder.
        ignore: path of the mask of the pixels to ignore in evaluation, or None.
    """

    image_id: str
    label: int
    size: tuple[int, int] | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    masks: tuple[str, ...] = ()
    ignore: str | None = None


def read_localization(folder: str | Path, *, need_objects: bool = False) -> list[LocalizationImage]:
    """Read the metadata of one split.

    Args:
        folder: folder with the files of the split.
        need_objects: whether each image must have a box or a mask, as for testing.

    Returns:
        The images in the order of ``image_ids.txt``.

    Raises:
        DataError: if a file is missing or malformed, a path leaves its folder, or an image lacks its label (or
            objects); the message names the file and line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: folder of localization metadata not found")
    images: dict[str, LocalizationImage] = {}
    for where, fields in _lines(folder / "image_ids.txt", (1,)):
        if fields[0] in images:
            raise DataError(f"{where}: duplicate image {fields[0]!r}")
        place(fields[0], "the image folder", where)
        images[fields[0]] = LocalizationImage(fields[0], -1)
    if not images:
        raise DataError(f"{folder / 'image_ids.txt'}: contains no images")
    for where, (name, label) in _lines(folder / "class_labels.txt", (2,)):
        _known(images, name, where).label = _whole(label, where)
    if (folder / "image_sizes.txt").is_file():
        for where, (name, width, height) in _lines(folder / "image_sizes.txt", (3,)):
            _known(images, name, where).size = _whole(height, where), _whole(width, where)
    if (folder / "localization.txt").is_file():
        _read_objects(folder / "localization.txt", images)
    elif need_objects:
        raise DataError(f"{folder / 'localization.txt'}: file not found; it is required for testing")
    for image in images.values():
        if image.label < 0:
            raise DataError(f"{folder / 'class_labels.txt'}: has no label for {image.image_id!r}")
        if need_objects and not len(image.boxes) and not image.masks:
            raise DataError(f"{folder / 'localization.txt'}: has no box or mask for {image.image_id!r}")
    return list(images.values())


def read_class_folders(
    folder: str | Path, classes: Sequence[str], boxes: str | Path | None = None
) -> list[LocalizationImage]:
    """Read a folder with one subfolder of images per class.

    Args:
        folder: the folder.
        classes: names of the subfolders in the order of the labels; one may be missing.
        boxes: file with lines ``path,x0,y0,x1,y1``, with paths relative to the folder. None reads no boxes.

    Returns:
        The images by class and name, without sizes.

    Raises:
        DataError: if the folder has no image, a subfolder is not one of the classes, or the file is malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: folder not found")
    there = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    other = [name for name in there if name not in classes]
    if other:
        raise DataError(f"{folder}: its folder {other[0]!r} is not one of the classes {examples(classes)}")
    images = {}
    for label, name in enumerate(classes):
        for path in walk_files(folder / name, IMAGE_SUFFIXES):
            image_id = path.relative_to(folder).as_posix()
            images[image_id] = LocalizationImage(image_id, label)
    if not images:
        raise DataError(f"{folder}: has no images in its folders {examples(there) or 'of classes, which it lacks'}")
    if boxes is not None:
        _read_objects(Path(boxes), images)
    return list(images.values())


def _read_objects(file: Path, images: dict[str, LocalizationImage]) -> None:
    boxes: dict[str, list[list[float]]] = {}
    masks: dict[str, list[str]] = {}
    for where, fields in _lines(file, (3, 5)):
        image = _known(images, fields[0], where)
        if len(fields) == 3:
            for name in filter(None, fields[1:]):
                place(name, "the mask folder", where)
            if fields[1]:
                masks.setdefault(image.image_id, []).append(fields[1])
            image.ignore = image.ignore or fields[2] or None
            continue
        try:
            box = [float(value) for value in fields[1:]]
        except ValueError:
            raise DataError(f"{where}: box must be four numbers, got {fields[1:]}") from None
        if not (box[0] <= box[2] and box[1] <= box[3] and np.isfinite(box).all()):
            raise DataError(f"{where}: box must be finite x0, y0, x1, y1 with x0 <= x1 and y0 <= y1, got {box}")
        boxes.setdefault(image.image_id, []).append(box)
    for name, found in boxes.items():
        images[name].boxes = np.array(found, dtype=np.float64)
    for name, paths in masks.items():
        images[name].masks = tuple(paths)


def _lines(file: Path, counts: tuple[int, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield the location (file and line number) and the fields of each line."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{file}: file not found; a split requires image_ids.txt and class_labels.txt") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        fields = [line.strip()] if counts == (1,) else [part.strip() for part in line.split(",")]
        if len(fields) not in counts:
            wanted = " or ".join(str(count) for count in counts)
            raise DataError(f"{file}:{number}: must have {wanted} comma-separated fields, got {len(fields)}")
        yield f"{file}:{number}", fields


def _known(images: dict[str, LocalizationImage], name: str, where: str) -> LocalizationImage:
    if name not in images:
        raise DataError(f"{where}: {name!r} is not in image_ids.txt or the image folder")
    return images[name]


def _whole(text: str, where: str) -> int:
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise DataError(f"{where}: must be a whole number below 1000000, got {text!r:.80}")
    return int(text)
