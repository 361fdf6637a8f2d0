"""Read folders with one subfolder of images per class, and boxes in ``boxes.csv``.

The layout is that of the localization configs, ``train/CLASS/IMAGE`` with lines ``CLASS/IMAGE,x0,y0,x1,y1``.
"""

import csv
from pathlib import Path

from visionattn.data.formats.common import SPLITS, Annotated, Images, Item, Raw, text_lines
from visionattn.errors import DataError

__all__ = ["read_class_folders", "split_folders"]

BOXES = "boxes.csv"


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders of the splits that contain only folders with images and possibly ``boxes.csv``."""
    found = {}
    for split, names in SPLITS.items():
        for name in names:
            folder = next((f for f in (root / name, root / "images" / name) if f.is_dir()), None)
            if folder is None or split in found:
                continue
            entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
            if any(e.is_dir() for e in entries) and all(e.is_dir() or e.name == BOXES for e in entries):
                found[split] = folder
    return found


def read_class_folders(root: Path, images: Images) -> Raw:
    """Read the boxes of the images; images without a box are kept without objects and counted.

    Raises:
        DataError: no split has boxes, or a line is malformed.
    """
    folders = split_folders(images.root)
    if not any((folder / BOXES).is_file() for folder in folders.values()):
        raise DataError(
            f"{root}: has classes of images without {BOXES}, so there are no boxes to convert; train with a "
            "localization config, such as cam_dinat-pico_folders_custom"
        )
    classes: list[str] = []
    found: list[Annotated] = []
    for split, folder in folders.items():
        names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        classes += [name for name in names if name not in classes]
        boxes = _boxes(folder / BOXES, images) if (folder / BOXES).is_file() else {}
        for path in images.paths:
            if path.is_relative_to(folder):
                name = path.relative_to(folder).as_posix()
                items = boxes.pop(name, [])
                if not items:
                    images.report.add("images with a class but without a box", images.where(path))
                found.append(Annotated(path, split, images.where(path), items))
        for name, items in boxes.items():
            images.report.add("annotations without an image, left out", f"{items[0].where}: {name}")
    return Raw(classes, found)


def _boxes(file: Path, images: Images) -> dict[str, list[Item]]:
    boxes: dict[str, list[Item]] = {}
    for number, row in enumerate(csv.reader(text_lines(file, images.report, images.where(file))), 1):
        if not row:
            continue
        try:
            name, (x0, y0, x1, y1) = row[0].strip().replace("\\", "/"), map(float, row[1:])
        except ValueError:
            raise DataError(f"{file}:{number}: must be CLASS/IMAGE,x0,y0,x1,y1 in pixels") from None
        label = name.partition("/")[0]
        item = Item(label, images.where(file, number), [x0, y0, x1 - x0, y1 - y0])
        boxes.setdefault(name, []).append(item)
    return boxes
