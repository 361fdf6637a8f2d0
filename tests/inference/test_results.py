import json
import sys
import tracemalloc
import types
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from visionattn.errors import MissingDependencyError
from visionattn.inference.decoding import decode_instances
from visionattn.inference.results import InstanceMasks, Prediction

rng = np.random.default_rng(0)


def random_masks(count: int = 5, height: int = 20, width: int = 30) -> np.ndarray:
    dense = np.zeros((count, height, width), dtype=bool)
    for mask in dense[1:]:  # the first stays empty
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = rng.random() > 0.1
        mask[rng.random((height, width)) > 0.99] = True
    return dense


def prediction(**changes) -> Prediction:
    values = {
        "image_size": (20, 30),
        "classes": ("cat", "dog"),
        "boxes": np.array([[1, 2, 11, 8], [0, 0, 30, 20.0]], dtype=np.float32),
        "scores": np.array([0.9, 0.25], dtype=np.float32),
        "labels": np.array([1, 0]),
    }
    return Prediction(**(values | changes))


def test_masks_keep_every_pixel():
    dense = random_masks()
    masks = InstanceMasks.from_dense(dense)
    assert len(masks) == 5
    np.testing.assert_array_equal(np.asarray(masks), dense)
    assert masks.shape == dense.shape
    np.testing.assert_array_equal(masks[2], dense[2])
    np.testing.assert_array_equal(np.stack(list(masks)), dense)
    np.testing.assert_array_equal(np.asarray(masks.select(np.array([3, 1]))), dense[[3, 1]])
    np.testing.assert_array_equal(np.asarray(masks.flipped()), dense[:, :, ::-1])
    larger = np.zeros((5, 40, 50), dtype=bool)
    larger[:, 7:27, 3:33] = dense
    np.testing.assert_array_equal(np.asarray(masks.moved((3, 7), (40, 50))), larger)


def test_masks_hold_no_more_than_their_objects():
    dense = np.zeros((3, 1000, 1000), dtype=bool)
    dense[:, 500:510, 20:40] = True
    masks = InstanceMasks.from_dense(dense)
    assert sum(crop.nbytes for crop in masks.crops) == 3 * 200
    assert all(crop.base is None for crop in masks.crops)  # not views that keep the dense array


def test_masks_as_run_lengths():
    dense = random_masks()
    for code, mask in zip(InstanceMasks.from_dense(dense).to_rle(), dense, strict=True):
        assert json.loads(json.dumps(code)) == code
        np.testing.assert_array_equal(coco_mask.decode(code), mask)


def test_select_and_above():
    found = prediction(masks=InstanceMasks.from_dense(random_masks(2)))
    assert found.names == ["dog", "cat"]
    only = found.above(0.25)
    assert len(only) == 2
    only = found.above(0.5)
    assert (len(only), only.names, len(only.masks)) == (1, ["dog"], 1)
    assert len(found.select(np.array([], dtype=int)).boxes) == 0


def test_to_coco_is_read_by_pycocotools(tmp_path):
    dense = random_masks(2)
    results = prediction(masks=InstanceMasks.from_dense(dense)).to_coco(7)
    assert [(r["image_id"], r["category_id"]) for r in results] == [(7, 2), (7, 1)]
    assert results[0]["bbox"] == [1, 2, 10, 6]
    assert results[0]["score"] == pytest.approx(0.9)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7, "height": 20, "width": 30}],
        "annotations": [],
        "categories": [{"id": 1}, {"id": 2}],
    }
    truth.createIndex()
    loaded = truth.loadRes(json.loads(json.dumps(results)))
    np.testing.assert_array_equal(loaded.annToMask(loaded.anns[2]), dense[1])


def test_to_coco_with_ids_of_the_config_and_without_masks():
    results = prediction(category_ids=(18, 44)).to_coco("a.jpg")
    assert [r["category_id"] for r in results] == [44, 18]
    assert "segmentation" not in results[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"boxes": np.zeros((2, 5))},
        {"boxes": np.full((2, 4), np.nan)},
        {"scores": np.zeros(3)},
        {"labels": np.array([0, 2])},
        {"labels": np.array([-1, 0])},
        {"masks": InstanceMasks.from_dense(random_masks(3))},
        {"masks": InstanceMasks.from_dense(random_masks(2, 30, 20))},
        {"semantic": np.zeros((30, 20), int)},
        {"category_ids": (1,)},
    ],
)
def test_contradictions_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        prediction(**wrong)


def test_draw_takes_its_own_picture_or_another(tmp_path, save_picture, painted):
    image = painted(20, 30)
    with pytest.raises(ValueError, match="pass `image`"):
        prediction().draw()
    with pytest.raises(ValueError, match="shape"):
        prediction().draw(painted(30, 20))
    drawn = prediction().draw(image)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != image).any()
    assert (image == 128).all()  # the given picture is left alone
    np.testing.assert_array_equal(prediction(image=image).draw(), drawn)
    path = save_picture(tmp_path / "x.png", image)
    np.testing.assert_array_equal(prediction(path=path).draw(), drawn)


def masked(semantic: bool = False) -> Prediction:
    masks = np.zeros((2, 6, 8), bool)
    masks[0, 1:3, 1:5] = True
    masks[1, 4:, 6:] = True
    return Prediction(
        (6, 8),
        ("red", "blue"),
        boxes=np.array([[1, 1, 5, 3], [6, 4, 8, 6]], np.float32),
        scores=np.array([0.9, 0.5], np.float32),
        labels=np.array([1, 0]),
        masks=InstanceMasks.from_dense(masks),
        semantic=np.full((6, 8), 1) if semantic else None,
    )


def test_panoptic_segments_are_the_masks():
    prediction = masked(semantic=True)
    panoptic = prediction.panoptic
    for number, mask in enumerate(prediction.masks, 1):
        np.testing.assert_array_equal(panoptic.segments == number, mask)
    assert (panoptic.segments == 0).sum() == 48 - 8 - 4
    assert panoptic.labels.tolist() == [1, 0]


def test_other_predictions_are_not_panoptic():
    assert masked().panoptic is None
    assert Prediction((2, 2), ("a",), semantic=np.zeros((2, 2), np.int64)).panoptic is None


@dataclass
class Detections:
    """The fields of supervision's class that are filled in."""

    xyxy: np.ndarray
    mask: np.ndarray | None = None
    confidence: np.ndarray | None = None
    class_id: np.ndarray | None = None
    data: dict = field(default_factory=dict)


def test_to_supervision(monkeypatch):
    try:
        import supervision  # noqa: F401
    except ImportError:
        module = types.ModuleType("supervision")
        module.Detections = Detections
        monkeypatch.setitem(sys.modules, "supervision", module)
    found = masked().to_supervision()
    np.testing.assert_array_equal(found.xyxy, masked().boxes)
    np.testing.assert_array_equal(found.mask, np.asarray(masked().masks))
    assert found.mask.dtype == bool
    assert found.class_id.tolist() == [1, 0]
    assert found.confidence.tolist() == pytest.approx([0.9, 0.5])
    assert found.data["class_name"].tolist() == ["blue", "red"]
    assert Prediction((2, 2), ("a",)).to_supervision().xyxy.shape == (0, 4)


def test_without_supervision_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision"):
        masked().to_supervision()


def test_rle_of_a_mask_at_every_border():
    for region in ((0, 0, 20, 30), (0, 0, 1, 1), (19, 29, 20, 30), (0, 29, 20, 30), (5, 0, 20, 4), (0, 7, 20, 9)):
        dense = np.zeros((1, 20, 30), bool)
        y0, x0, y1, x1 = region
        dense[0, y0:y1, x0:x1] = True
        expected = coco_mask.encode(np.asfortranarray(dense[0], dtype=np.uint8))["counts"].decode()
        assert InstanceMasks.from_dense(dense).to_rle() == [{"size": [20, 30], "counts": expected}]
    assert InstanceMasks([], [], (20, 30)).to_rle() == []


def test_masks_of_a_huge_image_are_never_dense():
    """Of 60 masks of 4000 x 4000 pixels, only the part inside of the boxes is copied."""
    size, count = (4000, 4000), 60
    dense = np.zeros((count, *size), bool)  # the system provides pages on use
    for index in range(count):
        dense[index, 60 * index : 60 * index + 50, 100:150] = True
    boxes = [[100, 60 * i, 150, 60 * i + 50] for i in range(count)]
    found = InstanceData(
        bboxes=torch.tensor(boxes).float(),
        scores=torch.linspace(1, 0.5, count),
        labels=torch.zeros(count).long(),
        masks=torch.from_numpy(dense),
    )
    tracemalloc.start()
    fields = decode_instances(SimpleNamespace(pred_instances=found), size, ("cell",), 0.3)
    codes = fields["masks"].to_rle()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert coco_mask.area(codes[7]) == 2500
