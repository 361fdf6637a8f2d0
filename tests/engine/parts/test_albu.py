"""``visionattn.Albu`` in mmdet's and mmseg's pipelines."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("albumentations")
pytest.importorskip("visionattn.openmmlab")  # before mmdet, which needs its operators
pytest.importorskip("mmdet")

from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.registry import TRANSFORMS as ROOT

from visionattn.engine.config.checks import check_config, find_problems
from visionattn.engine.config.load import load_config
from visionattn.engine.parts.albu import Albu
from visionattn.engine.train.randomness import SeededDataset
from visionattn.errors import ConfigError, ConfigProblemsError, DataError

FLIP = [dict(type="HorizontalFlip", p=1.0)]
CUT = [dict(type="Crop", x_min=20, y_min=0, x_max=60, y_max=40, p=1.0)]


def square(x: int, y: int, side: int = 10) -> list[np.ndarray]:
    return [np.float64([x, y, x + side, y, x + side, y + side, x, y + side])]


def sample(masks: str | None = "bitmap", **more) -> dict:
    """An image of 40 x 60 with squares at x = 5, 30, 45; the last one is to be ignored."""
    polygons = PolygonMasks([square(5, 5), square(30, 5), square(45, 20)], 40, 60)
    image = np.zeros((40, 60, 3), np.uint8)
    image[5:15, 5:15], image[5:15, 30:40], image[20:30, 45:55] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    results = {
        "img": image, "img_path": "a.png", "img_shape": (40, 60), "ori_shape": (40, 60),
        "gt_bboxes": HorizontalBoxes(np.float32([[5, 5, 15, 15], [30, 5, 40, 15], [45, 20, 55, 30]])),
        "gt_bboxes_labels": np.array([4, 5, 6]), "gt_ignore_flags": np.array([False, False, True]),
        "gt_instances_ids": [7, 8, 9], "gt_areas": torch.tensor([1.0, 2.0, 3.0]),
    }  # fmt: skip
    if masks:
        results["gt_masks"] = BitmapMasks(polygons.to_ndarray(), 40, 60) if masks == "bitmap" else polygons
    return {**results, **more}


@pytest.mark.parametrize("masks", ["bitmap", "polygon", None])
def test_every_field_follows(masks):
    done = Albu(CUT)(sample(masks))
    assert done["img"].shape == (40, 40, 3)
    assert done["img_shape"] == (40, 40)
    np.testing.assert_allclose(done["gt_bboxes"].tensor, [[10, 5, 20, 15], [25, 20, 35, 30]], atol=1e-4)
    assert isinstance(done["gt_bboxes"], HorizontalBoxes)
    assert done["gt_bboxes_labels"].tolist() == [5, 6]
    assert done["gt_ignore_flags"].tolist() == [False, True]
    assert done["gt_instances_ids"] == [8, 9]
    assert done["gt_areas"].tolist() == [2.0, 3.0]
    if masks:
        assert isinstance(done["gt_masks"], BitmapMasks)
        assert done["gt_masks"].masks.sum((1, 2)).tolist() == [100, 100]
        np.testing.assert_allclose(done["gt_masks"].get_bboxes("hbox").tensor, done["gt_bboxes"].tensor)
    assert done["img"][10, 15].tolist() == [0, 200, 0]


def test_packing_takes_it():
    packed = ROOT.build(dict(type="mmdet.PackDetInputs"))(Albu(CUT)(sample()))
    instances = packed["data_samples"].gt_instances
    assert (len(instances), len(packed["data_samples"].ignored_instances)) == (1, 1)
    assert instances.labels.tolist() == [5]
    assert packed["inputs"].shape == (3, 40, 40)


@pytest.mark.parametrize("how", [HorizontalBoxes, torch.from_numpy, np.asarray])
def test_kinds_of_boxes(how):
    given = sample(None)
    given["gt_bboxes"] = how(np.float32([[5, 5, 15, 15], [30, 5, 40, 15], [45, 20, 55, 30]]))
    done = Albu(FLIP)(given)
    assert type(done["gt_bboxes"]) is type(how(np.zeros((1, 4), np.float32)))
    boxes = getattr(done["gt_bboxes"], "tensor", done["gt_bboxes"])
    np.testing.assert_allclose(boxes, [[45, 5, 55, 15], [20, 5, 30, 15], [5, 20, 15, 30]], atol=1e-4)


def test_only_masks():
    given = sample()
    del given["gt_bboxes"]
    done = Albu(CUT)(given)
    assert "gt_bboxes" not in done
    assert (len(done["gt_masks"]), done["gt_bboxes_labels"].tolist()) == (2, [5, 6])


def test_polygons_stay_while_only_colours_change():
    given = sample("polygon")
    boxes = given["gt_bboxes"].tensor.clone()
    done = Albu([*[dict(t, p=0.0) for t in FLIP], dict(type="ToGray", p=1.0)])(given)
    assert isinstance(done["gt_masks"], PolygonMasks)
    assert torch.equal(done["gt_bboxes"].tensor, boxes)
    assert "homography_matrix" not in done
    assert (done["img"][..., 0] == done["img"][..., 1]).all()


@pytest.mark.parametrize("keep_empty", [True, False])
def test_without_objects(keep_empty):
    far = [dict(type="Crop", x_min=0, y_min=32, x_max=10, y_max=40, p=1.0)]
    done = Albu(far, keep_empty=keep_empty)(sample())
    if not keep_empty:
        assert done is None
        return
    assert done["gt_bboxes"].tensor.shape == (0, 4)
    assert done["gt_masks"].masks.shape == (0, 8, 10)
    assert done["gt_bboxes_labels"].dtype == np.int64
    again = Albu(FLIP, keep_empty=False)(done)
    assert again is not None, "it had none before"
    bare = Albu(FLIP)({"img": np.zeros((8, 9, 3), np.uint8)})
    assert bare["img_shape"] == (8, 9)


def test_maps():
    labels = np.full((40, 60), 255, np.uint8)
    labels[5:15, 5:15] = 0
    depth = np.ones((40, 60), np.float32)
    given = dict(
        img=np.zeros((40, 60, 3), np.uint8), gt_seg_map=labels, gt_other=depth, seg_fields=["gt_seg_map", "gt_other"]
    )
    done = Albu([dict(type="Affine", translate_px=dict(x=10, y=0), p=1.0)])(given)
    assert (done["gt_seg_map"][5:15, 15:25] == 0).all()
    assert (done["gt_seg_map"] == 0).sum() == 100, "new area is not class 0"
    assert done["gt_seg_map"].dtype == np.uint8
    assert (done["gt_other"][:, :10] == 0).all()
    assert (done["gt_other"][:, 10:] == 1).all()


def test_colours_are_seen_as_rgb():
    """ToGray weighs red by 0.299 and blue by 0.114."""
    blue = {"img": np.full((4, 4, 3), (200, 0, 0), np.uint8)}
    gray = [dict(type="ToGray", p=1.0)]
    assert Albu(gray)(dict(blue))["img"][0, 0].tolist() == [23, 23, 23]
    assert Albu(gray, channel_order="rgb")(dict(blue))["img"][0, 0].tolist() == [60, 60, 60]


def test_float_images():
    """mmdet's PhotoMetricDistortion leaves float32 of 0 to 255 and beyond."""
    values = np.float32([[[-3, 12.4, 300], [100, 200, 250]]])
    done = Albu(FLIP)({"img": values})["img"]
    assert done.dtype == np.float32
    np.testing.assert_array_equal(done, [[[100, 200, 250], [0, 12, 255]]])
    brighter = Albu([dict(type="RandomBrightnessContrast", brightness_limit=(0.1, 0.1), contrast_limit=0, p=1.0)])
    assert brighter({"img": values.copy()})["img"].mean() > values.clip(0, 255).mean(), "not black"


@pytest.mark.parametrize(
    ("image", "more", "message"),
    [
        (np.full((2, 2, 3), 0.5, np.float32), {}, r"requires .* in \[0, 255\], got floats in \[0, 1\]"),
        (np.full((2, 2, 3), -0.5, np.float32), {"img_norm_cfg": {}}, "before Normalize"),
        (np.full((2, 2, 3), np.nan, np.float32), {}, "NaN or infinite pixels"),
        (np.full((2, 2, 3), 500, np.uint16), {}, "got uint16"),
    ],
)
def test_images_that_are_refused(image, more, message):
    with pytest.raises(DataError, match=rf"^b\.png: .*{message}"):
        Albu(FLIP)({"img": image, "img_path": "b.png", **more})


def test_what_is_not_moved_is_refused():
    with pytest.raises(ConfigError, match="does not transform 'gt_keypoints'"):
        Albu(FLIP)(sample(gt_keypoints=np.zeros((3, 2))))
    assert "gt_keypoints" in Albu([dict(type="ToGray")])(sample(gt_keypoints=np.zeros((3, 2))))


def test_metainfo():
    done = Albu(FLIP)(sample(flip=True, flip_direction="horizontal", scale_factor=(2.0, 1.0), pad_shape=(40, 60)))
    assert (done["flip"], done["flip_direction"], done["scale_factor"]) == (False, None, (2.0, 1.0))
    np.testing.assert_allclose(done["homography_matrix"], [[-1, 0, 60], [0, 1, 0], [0, 0, 1]], atol=1e-5)
    done = Albu(FLIP)(sample(flip=True, flip_direction="vertical", homography_matrix=np.diag([2, 2, 1])))
    assert (done["flip"], done["flip_direction"]) == (True, "diagonal")
    np.testing.assert_allclose(done["homography_matrix"], [[-2, 0, 60], [0, 2, 0], [0, 0, 1]], atol=1e-5)
    done = Albu([dict(type="Resize", height=80, width=30, p=1.0)])(sample(scale_factor=(2.0, 1.0), pad_shape=(40, 60)))
    np.testing.assert_allclose(done["scale_factor"], (1.0, 2.0), atol=1e-5)
    assert done["pad_shape"] == (80, 30)
    assert "flip" not in done
    done = Albu([dict(type="Affine", rotate=(30, 30), p=1.0)])(sample(flip=True, flip_direction="horizontal"))
    assert not {"flip", "flip_direction"} & set(done)
    assert np.isfinite(done["homography_matrix"]).all()
    waves = [dict(type="GridElasticDeform", num_grid_xy=(3, 3), magnitude=8, p=1.0)]
    assert np.isnan(Albu(waves)(sample())["homography_matrix"]).all()


def test_seeded_by_the_run():
    """The same for (seed, rank, iteration, place), whatever was drawn before; another iteration is another change."""

    class Items(torch.utils.data.Dataset):
        pipeline = Albu([dict(type="Affine", rotate=(-40, 40), p=0.9), dict(type="GaussNoise", p=0.5)])

        def __getitem__(self, index):
            return self.pipeline(sample())

    first, second = SeededDataset(Items(), 5, 0), SeededDataset(Items(), 5, 0)
    images = [first[(0, i, 0)]["img"] for i in range(4)]
    for i in (3, 1, 0, 2):
        np.testing.assert_array_equal(second[(0, i, 0)]["img"], images[i])
    assert (images[0] != images[1]).any()
    assert (SeededDataset(Items(), 5, 1)[(0, 0, 0)]["img"] != images[0]).any()


def test_check_names_what_is_wrong(config_file):
    text = config_file.read_text().replace('dict(type="CLAHE")', 'dict(type="CLAHEE"), dict(type="Blur", limit=3)')
    config_file.write_text(text.replace("translate_px", "translate_pix"))
    with pytest.raises(ConfigProblemsError) as caught:
        check_config(load_config(config_file))
    where = "train_dataloader.dataset.pipeline.4.transforms"
    assert [p.split(": ")[0].split(" is ")[0] for p in caught.value.problems] == [
        f"{where}.0.translate_pix", f"{where}.1.transforms.1.type='CLAHEE'", f"{where}.1.transforms.2.limit",
    ]  # fmt: skip
    assert "did you mean CLAHE" in caught.value.problems[1]


def test_check_names_mmdet_arguments(config_file):
    config_file.write_text(config_file.read_text().replace('"visionattn.Albu",', '"visionattn.Albu", keymap={},'))
    (problem,) = find_problems(load_config(config_file))
    assert "keymap: Albu takes no such argument" in problem


def test_nuclei(shared_dir):
    """Hundreds of real nuclei in an image, through a config's whole pipeline."""
    folder = shared_dir / "data" / "nuclei"
    if not folder.is_dir():
        pytest.skip("no nuclei")
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
        dict(type="visionattn.Albu", min_visibility=0.2, transforms=[
            dict(type="Affine", rotate=(-30, 30), scale=(0.8, 1.2), p=1.0),
            dict(type="RandomCrop", height=192, width=192, pad_if_needed=True, p=1.0)]),
    ]  # fmt: skip
    from mmengine.registry import DATASETS, DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        dataset = DATASETS.build(
            dict(type="mmdet.CocoDataset", data_root=str(folder), ann_file="instances_val.json", pipeline=pipeline,
                 data_prefix=dict(img="images/val"), metainfo=dict(classes=("nucleus",)))
        )  # fmt: skip
    counts = json.loads((folder / "instances_val.json").read_text())
    assert len(counts["annotations"]) > 2000
    contrast = []
    for index in range(0, len(dataset), 6):
        np.random.seed(index)
        done = dataset[index]
        masks = done["gt_masks"].masks
        assert done["img"].shape[:2] == masks.shape[1:] == (192, 192)
        np.testing.assert_allclose(done["gt_masks"].get_bboxes("hbox").tensor, done["gt_bboxes"].tensor)
        assert len(masks) == len(done["gt_bboxes_labels"]) == len(done["gt_ignore_flags"])
        assert (masks.sum(0) <= 1).all(), "nuclei do not overlap"
        if len(masks):
            union, gray = masks.any(0), done["img"].mean(2)
            contrast.append(abs(gray[union].mean() - gray[~union].mean()) / (gray.std() + 1e-6))
    assert np.median(contrast) > 1, "the masks lie on the nuclei"
