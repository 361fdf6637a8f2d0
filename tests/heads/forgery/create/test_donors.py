"""Photographs and objects for splices."""

import json
import pickle

import cv2
import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.forgery.create.donors import FolderDonors, find_photos


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for name, value in (("a.png", 10), ("deep/b.png", 200)):
        cv2.imwrite(str(tmp_path / "photos" / name), np.full((40, 50, 3), value, np.uint8))
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]], "iscrowd": 0}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return tmp_path


def test_photographs_and_their_objects(photos):
    assert [p.name for p in find_photos(photos / "photos")] == ["a.png", "b.png"]
    donors = FolderDonors(photos / "photos", [photos / "coco.json"])
    for source in (donors, pickle.loads(pickle.dumps(donors))):
        rng = np.random.default_rng(0)
        found = [source(rng) for _ in range(60)]
        objects = [mask for image, mask in found if mask is not None]
        assert all(image[0, 0, 0] == 10 for image, mask in found if mask is not None)
        assert 5 < len(objects) < 30
        assert objects[0][10:21, 10:31].all()
        assert objects[0].sum() == 11 * 21
        assert {int(image[0, 0, 0]) for image, _ in found} == {10, 200}


def test_size_of_the_cache_is_kept_in_workers(photos):
    donors = pickle.loads(pickle.dumps(FolderDonors(photos / "photos", cache=1)))
    assert donors._read.cache_info().maxsize == 1


def test_what_is_refused(photos, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_photos(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        FolderDonors(tmp_path / "empty")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(DataError, match="not a COCO instance file"):
        FolderDonors(photos / "photos", [tmp_path / "bad.json"])
