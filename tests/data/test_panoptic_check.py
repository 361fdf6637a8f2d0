"""Checks of COCO panoptic files: one sound set, spoilt in each way."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from visionattn.data import panoptic_check
from visionattn.data.panoptic_check import check_panoptic
from visionattn.errors import DataError


@pytest.fixture
def sound(tmp_path) -> Path:
    """Two images of 8x6 with a cat, a crowd of cats, grass and a void corner."""
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    images, annotations = [], []
    for number in (1, 2):
        ids = np.full((6, 8), 70000)
        ids[1:3, 1:4], ids[4:, 5:], ids[0, 0] = 300, 5, 0
        write_map(tmp_path / "maps" / f"{number}.png", ids)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.jpg"), np.zeros((6, 8, 3), np.uint8))
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 8, "height": 6})
        segments = [
            {"id": i, "category_id": c, "iscrowd": int(i == 5), "bbox": [0, 0, 1, 1], "area": int((ids == i).sum())}
            for i, c in ((300, 1), (5, 1), (70000, 9))
        ]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    categories = [{"id": 1, "name": "cat", "isthing": 1}, {"id": 9, "name": "grass", "isthing": 0}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path


def write_map(path: Path, ids: np.ndarray) -> None:
    cv2.imwrite(str(path), np.stack([ids // 65536, ids // 256 % 256, ids % 256], -1).astype(np.uint8))


def check(folder: Path):
    return check_panoptic(folder / "a.json", folder / "images", folder / "maps")


def test_sound_set(sound):
    summary = check(sound)
    assert (summary.images, summary.segments, summary.crowds) == (2, 6, 2)
    assert (summary.things, summary.stuff) == (("cat",), ("grass",))
    assert str(summary) == "2 images, 6 segments of 1 things and 1 stuffs"


def segments(content: dict) -> list[dict]:
    return content["annotations"][1]["segments_info"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: c["categories"].reverse(), "the thing 'cat' comes after a category of stuff"),
        (lambda c: c["categories"][0].pop("isthing"), "category 'cat' has isthing None"),
        (lambda c: c["annotations"][0].pop("segments_info"), "no list segments_info"),
        (lambda c: c["annotations"][0].update(image_id=7), "image_id 7, which does not exist"),
        (lambda c: c["annotations"][0].update(image_id=2), "'2.jpg' is named '1.png'"),
        (lambda c: c["annotations"].append(c["annotations"][0]), "'1.jpg' has more than one annotation"),
        (lambda c: c["annotations"].pop(), "image '2.jpg' has no annotation"),
        (lambda c: c["annotations"][1].update(file_name="b.png"), "is named 'b.png'.*name it 2.png"),
        (lambda c: segments(c)[0].update(id=0), "'2.jpg': a segment has id 0"),
        (lambda c: segments(c)[0].update(id=1 << 24), "a segment has id 16777216"),
        (lambda c: segments(c)[0].update(id=5), "segment 5 is listed more than once"),
        (lambda c: segments(c)[0].update(category_id=4), "segment 300 has category_id 4"),
        (lambda c: segments(c)[0].pop("area"), "segment 300 has no area"),
        (lambda c: segments(c)[0].update(id=301), r"segment 301 is not in the map .*2\.png"),
        (lambda c: segments(c).pop(0), r"2\.png contains the id 300, which is not a segment"),
        (lambda c: c["images"][0].update(file_name="3.jpg"), r"image '3\.jpg' is not in"),
    ],
)
def test_spoilt_file(sound, spoil, message):
    content = json.loads((sound / "a.json").read_text())
    spoil(content)
    (sound / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        check(sound)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.unlink(), "is missing"),
        (lambda p: p.write_bytes(p.read_bytes()[:60]), "cannot be read"),
        (lambda p: write_map(p, np.full((6, 9), 5)), "is 9x6, but its image is 8x6"),
        (lambda p: cv2.imwrite(str(p), np.zeros((6, 8), np.uint8)), "has mode L"),
    ],
)
def test_spoilt_map(sound, spoil, message):
    spoil(sound / "maps" / "2.png")
    with pytest.raises(DataError, match=rf"map .*2\.png {message}"):
        check(sound)


def test_missing_folder(sound):
    with pytest.raises(DataError, match=r"map folder .* does not exist"):
        check_panoptic(sound / "a.json", sound / "images", sound / "none")


def test_of_many_maps_some_are_decoded(sound, monkeypatch):
    """With room for one map of two, the first is read whole and the second as far as its header."""
    monkeypatch.setattr(panoptic_check, "MAX_DECODED", 1)
    write_map(sound / "maps" / "2.png", np.full((6, 8), 77))
    check(sound)
    write_map(sound / "maps" / "1.png", np.full((6, 8), 77))
    with pytest.raises(DataError, match=r"segment 5 is not in the map .*1\.png"):
        check(sound)
