"""What a prediction turns into."""

import sys
import types
from dataclasses import dataclass, field

import numpy as np
import pytest

from visionattn.errors import MissingDependencyError
from visionattn.inference import InstanceMasks, Prediction


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


def test_coco_run_lengths_are_the_masks():
    coco_mask = pytest.importorskip("pycocotools.mask")
    prediction = masked()
    results = prediction.to_coco(7)
    for result, mask in zip(results, prediction.masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(result["segmentation"]), mask)
    assert [r["category_id"] for r in results] == [2, 1]
    assert results[0]["bbox"] == [1, 1, 4, 2]


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
