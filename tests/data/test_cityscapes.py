"""Cityscapes' annotations in COCO's layouts."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from visionattn.data.cityscapes import convert_cityscapes
from visionattn.errors import DataError

STEM = "bonn_000001_000019"


@pytest.fixture
def city(tmp_path) -> Path:
    """One image a split: road, a car with a number, a group of cars, a bicycle, and a label that is not evaluated."""
    for split in ("train", "val"):
        images, truth = tmp_path / "leftImg8bit" / split / "bonn", tmp_path / "gtFine" / split / "bonn"
        images.mkdir(parents=True)
        truth.mkdir(parents=True)
        ids = np.full((16, 32), 7, np.uint16)
        ids[2:6, 4:12] = 26001
        ids[8:12, 20:30] = 26
        ids[13:15, 1:4] = 33000
        ids[0, :] = 3
        cv2.imwrite(str(truth / f"{STEM}_gtFine_instanceIds.png"), ids)
        cv2.imwrite(str(images / f"{STEM}_leftImg8bit.png"), np.zeros((16, 32, 3), np.uint8))
    return tmp_path


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_instances(city):
    mask_module = pytest.importorskip("pycocotools.mask")
    assert convert_cityscapes(city) == {"train": 1, "val": 1}
    content = read(city / "instances" / "train.json")
    assert [c["name"] for c in content["categories"]] == [
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ]  # fmt: skip
    assert (city / "leftImg8bit" / "train" / content["images"][0]["file_name"]).is_file()
    found = {(a["category_id"], a["iscrowd"]): a for a in content["annotations"]}
    assert found.keys() == {(26, 0), (26, 1), (33, 0)}
    car = found[26, 0]
    assert (car["bbox"], car["area"]) == ([4, 2, 8, 4], 32)
    mask = mask_module.decode(car["segmentation"])
    assert mask[2:6, 4:12].all()
    assert mask.sum() == 32


def test_panoptic(city):
    convert_cityscapes(city)
    content = read(city / "panoptic" / "val.json")
    assert [c["isthing"] for c in content["categories"]] == [1] * 8 + [0] * 11
    annotation = content["annotations"][0]
    assert (city / "panoptic" / "images" / "val" / content["images"][0]["file_name"]).is_file()
    colors = cv2.imread(str(city / "panoptic" / "val" / annotation["file_name"]))[..., ::-1].astype(int)
    ids = colors @ [1, 256, 65536]
    segments = {s["id"]: s for s in annotation["segments_info"]}
    assert set(np.unique(ids).tolist()) == {0, *segments}
    assert (ids[0] == 0).all()  # not evaluated
    assert (ids[2:6, 4:12] == 26001).all()
    assert {(s["category_id"], s["iscrowd"], s["area"]) for s in segments.values()} == {
        (7, 0, 15 * 32 - 32 - 40 - 6), (26, 0, 32), (26, 1, 40), (33, 0, 6),
    }  # fmt: skip


def test_label_maps_are_made_once(city):
    convert_cityscapes(city)
    file = city / "gtFine" / "val" / "bonn" / f"{STEM}_gtFine_labelTrainIds.png"
    labels = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert (labels[1, 0], labels[3, 5], labels[9, 25], labels[13, 2], labels[0, 0]) == (0, 13, 13, 18, 255)
    file.write_bytes(b"own")
    convert_cityscapes(city)
    assert file.read_bytes() == b"own"


def test_what_is_missing(city):
    with pytest.raises(DataError, match="gtFine_trainvaltest"):
        convert_cityscapes(city / "gtFine")
    (city / "leftImg8bit" / "val" / "bonn" / f"{STEM}_leftImg8bit.png").unlink()
    with pytest.raises(DataError, match=r"_leftImg8bit\.png: the image of .* is missing"):
        convert_cityscapes(city)
