"""Forgery datasets and transforms in mmengine's form."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("mmseg")

from mmengine.registry import init_default_scope

from visionattn.errors import ConfigError, DataError
from visionattn.openmmlab.forgery_data import BalancedForgeryDataset, ForgeImage, ForgeryAugment, ForgeryDataset

KEYS = ("img_path", "seg_map_path", "ori_shape", "img_shape", "sample_idx", "source", "kind")
PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="visionattn.LoadForgeryMask"),
    dict(type="PackSegInputs", meta_keys=KEYS),
]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmseg")


@pytest.fixture
def pairs(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(4):
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), rng.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    mask = np.zeros((48, 64), np.uint8)
    mask[8:20, 8:30] = 255
    cv2.imwrite(str(tmp_path / "masks" / "1_mask.png"), mask)
    return tmp_path


def test_pairs(pairs):
    data = ForgeryDataset("pairs", str(pairs), pipeline=PIPELINE)
    assert data.metainfo["classes"] == ("authentic", "forged")
    found = [data[i] for i in range(len(data))]
    assert [int(f["data_samples"].gt_sem_seg.data.sum()) for f in found] == [0, 12 * 22, 0, 0]
    assert found[1]["inputs"].shape == (3, 48, 64)
    assert found[1]["data_samples"].sample_idx == 1
    assert len(ForgeryDataset("pairs", str(pairs), every=2, offset=1)) == 2


def test_other_layouts(pairs):
    (pairs / "list.json").write_text(json.dumps([["images/0.png", "Negative"], ["images/1.png", "masks/1_mask.png"]]))
    listed = ForgeryDataset("json", str(pairs), ann_file="list.json")
    assert [listed.get_data_info(i)["seg_map_path"] is None for i in range(2)] == [True, False]
    photos = ForgeryDataset("photos", str(pairs), folders=["images"])
    assert len(photos) == 4
    with pytest.raises(ConfigError, match="layout='x'"):
        ForgeryDataset("x")
    with pytest.raises(ConfigError, match="offset=3"):
        ForgeryDataset("photos", str(pairs), every=2, offset=3)
    with pytest.raises(DataError, match="no such folder"):
        ForgeryDataset("mani", str(pairs))


def test_balanced_draws_follow_the_seed_of_the_sample(pairs):
    (pairs / "list.json").write_text(json.dumps([[f"images/{i}.png", "Negative"] for i in range(4)]))
    (pairs / "sets.json").write_text(json.dumps([["JsonDataset", "list.json"]]))
    data = BalancedForgeryDataset(str(pairs / "sets.json"), sample_number=9, pipeline=PIPELINE)
    assert len(data) == 9

    def draw(seed):
        np.random.seed(seed)
        return [data[i]["data_samples"].img_path for i in range(9)]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert len(set(draw(0))) > 1


def test_forging_and_augmenting(pairs):
    image = cv2.imread(str(pairs / "images" / "0.png"))
    forge = ForgeImage(
        donors=["images"], root=str(pairs), operations=["splice", "noise"], probability=1.0, quality=None
    )

    def run(step, seed, **more):
        np.random.seed(seed)
        return step.transform({"img": image.copy(), "seg_fields": [], **more})

    one, two, other = run(forge, 0), run(forge, 0), run(forge, 1)
    assert np.array_equal(one["img"], two["img"])
    assert not np.array_equal(one["img"], other["img"])
    assert one["gt_seg_map"].any()
    assert one["seg_fields"] == ["gt_seg_map"]
    mask = np.zeros((48, 64), np.uint8)
    mask[:, 32:] = 1
    augment = ForgeryAugment()
    changed = run(augment, 3, gt_seg_map=mask)
    assert changed["img"].shape[:2] == changed["gt_seg_map"].shape == changed["img_shape"]
    assert np.array_equal(changed["img"], run(augment, 3, gt_seg_map=mask)["img"])


def test_a_mask_of_another_size_is_refused(pairs):
    cv2.imwrite(str(pairs / "masks" / "1_mask.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="is 4 x 4, its picture 64 x 48"):
        ForgeryDataset("pairs", str(pairs), pipeline=PIPELINE)[1]
