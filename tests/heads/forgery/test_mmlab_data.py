"""Forgery datasets and transforms in mmengine's form."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("mmseg")

from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from visionattn.errors import ConfigError, DataError
from visionattn.heads.forgery.mmlab_data import (
    BalancedForgeryDataset,
    ForgeImage,
    ForgeryAugment,
    ForgeryDataset,
    PackForgeryPair,
)
from visionattn.io.images import jpeg_round_trip

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


def test_list_of_a_split_of_brgen(tmp_path):
    for name in ("COCO_1", "COCO_2"):
        for file in (f"Au/{name}.png", f"Tp/MAT_Stuff_{name}.png", f"Gt/MAT_Stuff_{name}_mask.png"):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / file), np.full((8, 8), 255, np.uint8))
    (tmp_path / "train.txt").write_text("2.jpg\n")
    assert len(ForgeryDataset("brgen", str(tmp_path))) == 4
    data = ForgeryDataset("brgen", str(tmp_path), ann_file="train.txt")
    assert data.check() == "2 images, 1 forged"


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
    with pytest.raises(ConfigError, match=r"`layout` must be .* got 'x'"):
        ForgeryDataset("x")
    with pytest.raises(ConfigError, match=r"`offset` in .* got 2 and 3"):
        ForgeryDataset("photos", str(pairs), every=2, offset=3)
    with pytest.raises(DataError, match="folder not found"):
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


def pair_loader(root, **forge):
    steps = [
        dict(type="LoadImageFromFile"),
        dict(type="visionattn.ForgeImage", operations=["copy_move", "blur"], paired=True, feather=0, **forge),
        dict(type="visionattn.PackForgeryPair", meta_keys=(*KEYS, "forgery_steps")),
    ]
    return Runner.build_dataloader(
        dict(
            batch_size=2,
            num_workers=0,
            collate_fn=dict(type="visionattn.collate_pairs"),
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=dict(
                type="visionattn.ForgeryDataset",
                layout="photos",
                data_root=str(root),
                folders=["images"],
                pipeline=steps,
            ),
        )
    )


def test_pairs_differ_by_the_forgery_alone(pairs):
    np.random.seed(0)
    batches = list(pair_loader(pairs, quality=None))
    assert [len(batch["inputs"]) for batch in batches] == [4, 4]
    for batch in batches:
        inputs, samples = batch["inputs"], batch["data_samples"]
        for forged, untouched in ((0, 1), (2, 3)):
            mask = samples[forged].gt_sem_seg.data[0] == 1
            changed = (inputs[forged] != inputs[untouched]).any(0)
            assert mask.any()
            assert changed.any()
            assert not (changed & ~mask).any()
            assert not samples[untouched].gt_sem_seg.data.any()
            assert samples[forged].img_path == samples[untouched].img_path
            original = cv2.imread(samples[untouched].img_path)
            assert np.array_equal(inputs[untouched].permute(1, 2, 0).numpy(), original)
            assert samples[untouched].forgery_steps == []
            assert len(samples[forged].forgery_steps) == 1


def test_pairs_are_compressed_alike(pairs):
    np.random.seed(0)
    batch = next(iter(pair_loader(pairs, quality=(40, 95))))
    forged, untouched = batch["data_samples"][:2]
    assert untouched.forgery_steps == forged.forgery_steps[-1:]
    expected = jpeg_round_trip(cv2.imread(untouched.img_path), untouched.forgery_steps[0]["quality"])
    assert np.array_equal(batch["inputs"][1].permute(1, 2, 0).numpy(), expected)


def test_a_pair_needs_the_untouched_picture():
    with pytest.raises(ConfigError, match="`paired` True"):
        PackForgeryPair(KEYS).transform({"img": np.zeros((8, 8, 3), np.uint8)})


def test_a_mask_of_another_size_is_refused(pairs):
    cv2.imwrite(str(pairs / "masks" / "1_mask.png"), np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="size of its image 64 x 48, got 4 x 4"):
        ForgeryDataset("pairs", str(pairs), pipeline=PIPELINE)[1]


def test_check(pairs):
    assert ForgeryDataset("pairs", str(pairs)).check() == "4 images, 1 forged"
    assert ForgeryDataset("photos", str(pairs), folders=["images"]).check() == "4 photographs"
    (pairs / "sets.json").write_text(json.dumps([["JsonDataset", "list.json"]]))
    (pairs / "list.json").write_text(json.dumps([["images/1.png", "masks/1_mask.png"]]))
    balanced = BalancedForgeryDataset(str(pairs / "sets.json"), sample_number=8, data_root=str(pairs))
    assert balanced.check().startswith("1 image, 1 forged; none is authentic")
    cv2.imwrite(str(pairs / "masks" / "2.png"), np.zeros((48, 64), np.uint8))
    assert "1 with a mask that marks nothing" in ForgeryDataset("pairs", str(pairs)).check()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((48, 64), np.uint8), r"1_mask\.png: its highest value is 1, .* 255"),
        (np.full((50, 64), 255, np.uint8), r"1_mask\.png: is 64 x 50 pixels, but its image 1\.png is 64 x 48"),
        (np.zeros((48, 64), np.uint8), "none of the 4 images is forged"),
    ],
)
def test_check_refuses_masks(pairs, mask, message):
    cv2.imwrite(str(pairs / "masks" / "1_mask.png"), mask)
    with pytest.raises(DataError, match=message):
        ForgeryDataset("pairs", str(pairs)).check()


def test_check_of_images_to_be_forged(pairs):
    (pairs / "masks" / "1_mask.png").unlink()
    assert ForgeryDataset("pairs", str(pairs)).check([{"type": "visionattn.ForgeImage"}]) == "4 images"
