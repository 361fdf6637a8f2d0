"""Images with the class of their folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.io.inputs import IMAGE_SUFFIXES, walk_files

__all__ = ["LabeledImages", "read_splits"]

TEST_NAMES = ("val", "valid", "validation", "test")
HELD_OUT = 0.25
"""Fraction of each class for testing, where the folder has no splits."""


@dataclass(frozen=True)
class LabeledImages:
    """Files with labels.

    Attributes:
        files: the images.
        labels: index of the class of each, int64 ``[N]``.
        classes: names of the classes, sorted.
    """

    files: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]


def read_splits(root: Path, seed: int = 0) -> tuple[LabeledImages, LabeledImages]:
    """Return the training and the test images of a folder.

    The folder has ``train/CLASS`` and one of ``val``, ``valid``, ``validation`` and ``test``; or only folders of
    classes, of which a quarter of each class is drawn for testing.

    Args:
        root: the folder.
        seed: of the drawing.

    Raises:
        DataError: there are fewer than two classes, a class has too few images, or a class of the test images is not in
            the training images.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    test = next((root / name for name in TEST_NAMES if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test is not None:
        classes = _classes(root / "train")
        if unknown := [name for name in _classes(test) if name not in classes]:
            raise DataError(f"{test}: the class {unknown[0]!r} is not in {root / 'train'}")
        train = _read(root / "train", classes)
        if missing := set(range(len(classes))) - set(train.labels.tolist()):
            raise DataError(f"{root / 'train' / classes[min(missing)]}: contains no images")
        return train, _read(test, classes)
    if (root / "train").is_dir() and any(path.is_dir() for path in (root / "train").iterdir()):
        raise DataError(f"{root}: has `train`, but no folder of test images ({', '.join(TEST_NAMES)})")
    everything = _read(root, _classes(root))
    generator = np.random.default_rng(seed)
    held = np.zeros(len(everything.files), bool)
    for label, name in enumerate(everything.classes):
        rows = np.flatnonzero(everything.labels == label)
        if len(rows) < 2:
            raise DataError(f"{root / name}: must contain at least 2 images, one of them for testing")
        held[generator.permutation(rows)[: max(1, round(HELD_OUT * len(rows)))]] = True
    return _part(everything, ~held), _part(everything, held)


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(names) < 2:
        raise DataError(f"{folder}: must contain a folder of images for each of at least 2 classes, got {len(names)}")
    return tuple(names)


def _read(folder: Path, classes: Sequence[str]) -> LabeledImages:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(walk_files(folder / name, IMAGE_SUFFIXES)) if (folder / name).is_dir() else []
        files += found
        labels += [label] * len(found)
    if not files:
        raise DataError(f"{folder}: contains no images")
    return LabeledImages(tuple(files), np.array(labels, np.int64), tuple(classes))


def _part(images: LabeledImages, chosen: np.ndarray) -> LabeledImages:
    files = tuple(file for file, keep in zip(images.files, chosen, strict=True) if keep)
    return LabeledImages(files, images.labels[chosen], images.classes)
