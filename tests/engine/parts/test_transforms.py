"""Scaled crops and transposition: image, boxes and masks stay together."""

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("visionattn.openmmlab")  # before mmdet's own: it supplies mmcv's operators

from mmdet.datasets.transforms import Resize
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks

from visionattn.engine.parts.transforms import RandomScaleCrop, RandomTranspose
from visionattn.errors import ConfigError

HEIGHT, WIDTH = 60, 90
RECTANGLES = [(5, 5, 15, 25), (40, 20, 60, 30), (70, 40, 85, 55)]


def example(rectangles=RECTANGLES, polygons=False):
    """Rectangles of brightness 80, 140, 200 on black, with their boxes and masks."""
    image = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    masks = np.zeros((len(rectangles), HEIGHT, WIDTH), dtype=np.uint8)
    for i, (x1, y1, x2, y2) in enumerate(rectangles):
        image[y1:y2, x1:x2] = 80 + 60 * i
        masks[i, y1:y2, x1:x2] = 1
    outlines = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2], dtype=np.float32)] for x1, y1, x2, y2 in rectangles]
    return {
        "img": image,
        "img_shape": (HEIGHT, WIDTH),
        "gt_bboxes": HorizontalBoxes(np.array(rectangles, dtype=np.float32)),
        "gt_bboxes_labels": np.arange(len(rectangles)),
        "gt_ignore_flags": np.zeros(len(rectangles), dtype=bool),
        "gt_masks": PolygonMasks(outlines, HEIGHT, WIDTH) if polygons else BitmapMasks(masks, HEIGHT, WIDTH),
    }


def assert_consistent(results, slack):
    """Each mask covers the pixels of its rectangle, and its box encloses it."""
    image = results["img"][..., 0]
    masks = results["gt_masks"].to_ndarray()
    assert masks.shape[1:] == image.shape == tuple(results["img_shape"])
    assert len(masks) == len(results["gt_bboxes"]) == len(results["gt_bboxes_labels"]) > 0
    for mask, box, label in zip(masks, results["gt_bboxes"].tensor, results["gt_bboxes_labels"], strict=True):
        inside = mask.astype(bool)
        close = np.abs(image.astype(int) - (80 + 60 * label)) <= 20
        assert (inside ^ close).sum() <= slack * (sum(image.shape) + 4)
        ys, xs = np.nonzero(mask)
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(box.numpy() - found).max() <= 1.5


def test_scale_crop_keeps_image_boxes_and_masks_together():
    np.random.seed(0)
    step = RandomScaleCrop(scale=(180, 120), crop_size=(64, 80), ratio_range=(0.5, 2.0))
    shapes = set()
    for _ in range(30):
        results = step(example())
        if results is None:  # a crop without objects
            continue
        shapes.add(results["img"].shape[:2])
        assert_consistent(results, slack=1)
    assert (64, 80) in shapes


def test_scale_crop_at_factor_one_of_the_whole_image_is_a_resize():
    results = RandomScaleCrop(scale=(180, 120), crop_size=(120, 180), ratio_range=(1.0, 1.0))(example())
    expected = Resize(scale=(180, 120), keep_ratio=True)(example())
    assert np.array_equal(results["img"], expected["img"])
    assert np.array_equal(results["gt_masks"].masks, expected["gt_masks"].masks)
    assert np.allclose(results["gt_bboxes"].tensor, expected["gt_bboxes"].tensor)


def test_scale_crop_draws_factors_of_the_range():
    np.random.seed(0)
    step = RandomScaleCrop(scale=(90, 60), crop_size=(400, 400), ratio_range=(0.5, 2.0))
    factors = [step(example())["img"].shape[1] / WIDTH for _ in range(200)]
    assert 0.5 <= min(factors) < 0.55
    assert 1.8 < max(factors) <= 2.0
    assert 0.4 < np.mean(np.array(factors) < 1) < 0.6, "halving is as likely as doubling"


def test_scale_crop_resizes_only_the_masks_it_keeps(monkeypatch):
    np.random.seed(1)
    seen = []
    whole = BitmapMasks.resize
    monkeypatch.setattr(
        BitmapMasks, "resize", lambda self, *a, **k: (seen.append(self.masks.shape), whole(self, *a, **k))[1]
    )
    step = RandomScaleCrop(scale=(180, 120), crop_size=(40, 40), ratio_range=(1.0, 1.0))
    while not seen:
        step(example())
    assert seen[0][0] < len(RECTANGLES)
    assert seen[0][1:] == (20, 20)


def test_scale_crop_without_objects_gives_none():
    np.random.seed(0)
    step = RandomScaleCrop(scale=(90, 60), crop_size=(4, 4), ratio_range=(1.0, 1.0))
    results = [step(example([(0, 0, 3, 3)])) for _ in range(20)]
    assert None in results


@pytest.mark.parametrize("polygons", [False, True])
def test_transpose_swaps_rows_and_columns_of_everything(polygons):
    before, results = example(polygons=polygons), RandomTranspose(prob=1.0)(example(polygons=polygons))
    assert results["img_shape"] == (WIDTH, HEIGHT)
    assert np.array_equal(results["img"], before["img"].transpose(1, 0, 2))
    assert np.array_equal(results["gt_masks"].to_ndarray(), before["gt_masks"].to_ndarray().transpose(0, 2, 1))
    assert results["gt_bboxes"].tensor[1].tolist() == [20, 40, 30, 60]
    again = RandomTranspose(prob=1.0)(results)
    assert np.array_equal(again["img"], before["img"])
    assert np.array_equal(again["gt_bboxes"].tensor, before["gt_bboxes"].tensor)


def test_transpose_turns_a_segmentation_map_and_comes_as_often_as_asked():
    labels = np.arange(6).reshape(2, 3)
    results = RandomTranspose(prob=1.0)({"img": np.zeros((2, 3, 3), np.uint8), "gt_seg_map": labels})
    assert np.array_equal(results["gt_seg_map"], labels.T)
    np.random.seed(0)
    turned = [
        RandomTranspose(prob=0.3)({"img": np.zeros((2, 3, 3), np.uint8)})["img"].shape[0] == 3 for _ in range(300)
    ]
    assert 0.2 < np.mean(turned) < 0.4


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: RandomScaleCrop(scale=(512,), crop_size=(64, 64)), "scale"),
        (lambda: RandomScaleCrop(scale=(512, 512), crop_size=(0, 64)), "crop_size"),
        (lambda: RandomScaleCrop(scale=(512, 512), crop_size=(64, 64), ratio_range=(2.0, 0.5)), "ratio_range"),
        (lambda: RandomTranspose(prob=1.5), "prob"),
    ],
)
def test_wrong_arguments_are_named(make, name):
    with pytest.raises(ConfigError, match=name):
        make()
