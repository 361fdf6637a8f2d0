"""Convert Cityscapes annotations to the formats of mmdet and mmseg: instances, panoptic maps, label maps.

All three come from ``*_gtFine_instanceIds.png``. Values below 1000 are the label of a pixel, values from 1000 on are
1000 times the label plus the number of the instance. Things without a number are groups, which COCO calls crowds
(https://github.com/mcordts/cityscapesScripts, ``helpers/labels.py`` and ``preparation/createPanopticImgs.py``).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.images import decode_image

__all__ = ["CITYSCAPES_STUFF", "CITYSCAPES_THINGS", "convert_cityscapes"]

CITYSCAPES_THINGS = {
    24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Class names by Cityscapes' label ids."""
CITYSCAPES_STUFF = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky",
}  # fmt: skip
SPLITS = ("train", "val")


def convert_cityscapes(root: str | Path, on_progress: Callable[[int, int], None] | None = None) -> dict[str, int]:
    """Convert the annotations of the train and val splits.

    These files are written into the dataset's folder:

    - ``instances/<split>.json``: COCO instances of the 8 thing classes, images relative to ``leftImg8bit/<split>``;
    - ``panoptic/<split>.json`` and ``panoptic/<split>/*.png``: COCO panoptic, with the thing categories first as mmdet
      requires, and ``panoptic/images/<split>``, a flat folder of hard links to the images;
    - ``gtFine/**/*_gtFine_labelTrainIds.png``: the 19 classes of mmseg's CityscapesDataset, if missing.

    Args:
        root: the folder with ``leftImg8bit`` and ``gtFine``.
        on_progress: called with the number of converted images and the total number.

    Returns:
        Number of images of each split.

    Raises:
        DataError: a folder, image or annotation is missing or cannot be read.
    """
    root = Path(root).expanduser()
    files = {split: sorted((root / "gtFine" / split).glob("*/*_gtFine_instanceIds.png")) for split in SPLITS}
    for split, found in files.items():
        if not found:
            folder = root / "gtFine" / split
            raise DataError(f"{folder}: has no */*_gtFine_instanceIds.png; unpack gtFine_trainvaltest.zip into {root}")
    done, total = 0, sum(map(len, files.values()))
    for split, found in files.items():
        writer = _Split(root, split)
        for number, file in enumerate(found, 1):
            writer.add(number, file)
            done += 1
            if on_progress:
                on_progress(done, total)
        writer.finish()
    return {split: len(found) for split, found in files.items()}


class _Split:
    """Collects the records of a split and writes its maps."""

    def __init__(self, root: Path, split: str):
        self.root, self.split = root, split
        self.images: list[dict[str, Any]] = []
        self.flat_images: list[dict[str, Any]] = []
        self.instances: list[dict[str, Any]] = []
        self.panoptic: list[dict[str, Any]] = []
        self.maps, self.links = root / "panoptic" / split, root / "panoptic" / "images" / split
        for folder in (self.maps, self.links, root / "instances"):
            folder.mkdir(parents=True, exist_ok=True)

    def add(self, number: int, file: Path) -> None:
        """Convert the ``instanceIds.png`` of one image."""
        city, stem = file.parent.name, file.name.removesuffix("_gtFine_instanceIds.png")
        name = f"{stem}_leftImg8bit.png"
        image = self.root / "leftImg8bit" / self.split / city / name
        if not image.is_file():
            raise DataError(f"{image}: the image of {file.name} is missing; unpack leftImg8bit_trainvaltest.zip")
        ids = _read(file)
        height, width = ids.shape
        record = {"id": number, "width": width, "height": height}
        self.images.append({**record, "file_name": f"{city}/{name}"})
        self.flat_images.append({**record, "file_name": name})
        segments = self._segments(number, ids)
        known = np.isin(ids, [segment["id"] for segment in segments])
        _write(self.maps / name, _colors(np.where(known, ids, 0)))
        self.panoptic.append({"image_id": number, "file_name": name, "segments_info": segments})
        link = self.links / name
        link.unlink(missing_ok=True)
        os.link(image, link)
        labels = file.with_name(f"{stem}_gtFine_labelTrainIds.png")
        if not labels.exists():
            _write(labels, _train_ids(np.where(ids < 1000, ids, ids // 1000)))

    def _segments(self, number: int, ids: np.ndarray) -> list[dict[str, Any]]:
        coco_mask = require("pycocotools.mask")
        segments = []
        for value in np.unique(ids).tolist():
            label, crowd = (value, 1) if value < 1000 else (value // 1000, 0)
            if label not in CITYSCAPES_THINGS and label not in CITYSCAPES_STUFF:
                continue
            mask = ids == value
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y = int(columns[0]), int(rows[0])
            common = {
                "category_id": label,
                "area": int(mask.sum()),
                "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
                "iscrowd": crowd if label in CITYSCAPES_THINGS else 0,
            }
            segments.append({"id": value, **common})
            if label in CITYSCAPES_THINGS:
                code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
                outline = {"size": list(ids.shape), "counts": code["counts"].decode("ascii")}
                entry = {"id": len(self.instances) + 1, "image_id": number, **common, "segmentation": outline}
                self.instances.append(entry)
        return segments

    def finish(self) -> None:
        """Write the two JSON files."""
        things = [{"id": i, "name": name, "isthing": 1} for i, name in CITYSCAPES_THINGS.items()]
        stuff = [{"id": i, "name": name, "isthing": 0} for i, name in CITYSCAPES_STUFF.items()]
        for file, images, annotations, categories in (
            (self.root / "instances", self.images, self.instances, things),
            (self.root / "panoptic", self.flat_images, self.panoptic, things + stuff),
        ):
            content = {"images": images, "annotations": annotations, "categories": categories}
            (file / f"{self.split}.json").write_text(json.dumps(content), encoding="utf-8")


def _colors(ids: np.ndarray) -> np.ndarray:
    """COCO's color codes of segment ids, BGR ``[H, W, 3]``."""
    return np.stack([ids // 65536, ids // 256 % 256, ids % 256], axis=-1).astype(np.uint8)


def _train_ids(labels: np.ndarray) -> np.ndarray:
    """Map label ids to the 19 training classes; all other labels become 255."""
    table = np.full(256, 255, np.uint8)
    for train_id, label in enumerate(sorted(CITYSCAPES_STUFF | CITYSCAPES_THINGS)):
        table[label] = train_id
    return table[labels]


def _read(path: Path) -> np.ndarray:
    ids = decode_image(path, require("cv2").IMREAD_UNCHANGED)
    if ids.ndim != 2 or ids.max() >= 1000 * 256:
        raise DataError(f"{path}: not a map of instance ids; unpack gtFine_trainvaltest.zip again")
    return ids.astype(np.int64)


def _write(path: Path, image: np.ndarray) -> None:
    cv2 = require("cv2")
    if not cv2.imwrite(str(path), image):
        raise DataError(f"{path}: cannot be written")
