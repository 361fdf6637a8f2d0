"""The readers of image files, for hostile files and for fuzzing."""

import json
import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionattn.data import cityscapes, convert
from visionattn.data.mask_folders import check_masks
from visionattn.data.panoptic_check import check_panoptic
from visionattn.engine.compat.panopticapi import pq_compute
from visionattn.engine.config.data_checks import check_images
from visionattn.heads.forgery.benco import ForgeryImages
from visionattn.heads.forgery.create.donors import read_photo
from visionattn.heads.forgery.sets import ForgeryItem, read_truth
from visionattn.heads.localization import mmlab_metric as localization_metric
from visionattn.io.images import image_size, read_image


def small(kind: str, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, kind)
    return stream.getvalue()


def _masks(path: Path) -> Any:
    Image.new("RGB", (64, 48)).save(path.with_name("photo.png"))
    return check_masks([(path.with_name("photo.png"), path)], ["a", "b"])


def _image_of_a_mask(path: Path) -> Any:
    Image.new("L", (64, 48)).save(path.with_name("mask.png"))
    return check_masks([(path, path.with_name("mask.png"))], ["a", "b"])


def _panoptic_content(path: Path) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "map.jpg", "width": 64, "height": 48}],
        "annotations": [{"image_id": 1, "file_name": "map.png", "segments_info": [
            {"id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 64, 48], "area": 3072}]}],
        "categories": [{"id": 1, "name": "a", "isthing": 1}],
    }  # fmt: skip
    (path.parent / "images").mkdir()
    (path.parent / "maps").mkdir()
    os.rename(path, path.parent / "maps" / "map.png")
    Image.new("RGB", (64, 48)).save(path.parent / "images" / "map.jpg")
    file = path.parent / "panoptic.json"
    file.write_text(json.dumps(content))
    return file


def _panoptic(path: Path) -> Any:
    file = _panoptic_content(path)
    return check_panoptic(file, path.parent / "images", path.parent / "maps")


def _quality(path: Path) -> Any:
    file = _panoptic_content(path)
    return pq_compute(file, file, path.parent / "maps", path.parent / "maps")


def _cityscapes(path: Path) -> Any:
    for split in ("train", "val"):
        truth, images = path.parent / "gtFine" / split / "b", path.parent / "leftImg8bit" / split / "b"
        truth.mkdir(parents=True)
        images.mkdir(parents=True)
        (truth / "b_1_gtFine_instanceIds.png").write_bytes(path.read_bytes())
        Image.new("RGB", (64, 48)).save(images / "b_1_leftImg8bit.png")
    return cityscapes.convert_cityscapes(path.parent)


def _forgery_item(path: Path) -> Any:
    return ForgeryImages([ForgeryItem(path, None)])[0]["label"]


DECODERS: dict[str, Callable[[Path], Any]] = {
    "read_image": lambda path: read_image(path).shape,
    "read_photo": lambda path: read_photo(path).shape,
    "read_truth": lambda path: read_truth(path).shape,
    "forgery_item": _forgery_item,
    "mask": _masks,
    "panoptic_map": _panoptic,
    "panoptic_quality": _quality,
    "cityscapes": _cityscapes,
    "localization_mask": lambda path: localization_metric._mask(str(path)).shape,
    "convert": lambda path: convert._read(path, "RGB").shape,
}
HEADERS: dict[str, Callable[[Path], Any]] = {
    "image_size": image_size,
    "check_images": lambda path: check_images(path.parent, [{"file_name": path.name, "width": 64, "height": 48}]),
    "image_of_a_mask": _image_of_a_mask,
}
