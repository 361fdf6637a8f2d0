import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmengine")

from visionattn.errors import DataError
from visionattn.heads.localization.mmlab_metric import LocalizationMetric, SATLocalizationMetric


def sample(box, label=0, best=0, **extra):
    scores = torch.zeros(6)
    scores[best] = 1
    score_map = np.zeros((16, 16), np.float32)
    score_map[4:8, 4:12] = 1
    return {
        "true_map": torch.from_numpy(score_map),
        "pred_scores": scores,
        "gt_label": torch.tensor(label),
        "ori_shape": (160, 160),
        "true_boxes": np.array([box], float),
        **extra,
    }


def measure(metric, *samples):
    metric.process(None, list(samples))
    return metric.evaluate(len(samples))


def test_boxes_classes_and_both_together():
    right, wrong = (38, 38, 121, 81), (0, 100, 40, 159)
    found = measure(
        LocalizationMetric(),
        sample(right),
        sample(right, label=0, best=3),  # class wrong, but among five
        sample(right, label=5, best=3),  # all others before it
        sample(wrong),
    )
    assert found["MaxBoxAcc"] == 75
    assert found["GTKnownLoc"] == 75
    assert found["Top1"] == 50
    assert found["Top1Loc"] == 25
    assert found["Top5"] == 75
    assert found["Top5Loc"] == 50
    assert found["BoxAcc30"] == 75
    assert 0 < found["threshold"] < 1
    assert "CentreBoxV2" not in found


def test_given_threshold_is_used_for_the_accuracies():
    at = measure(LocalizationMetric(threshold=0.99), sample((0, 0, 159, 159)))
    assert at["GTKnownLoc"] == 0


def test_centre_box_comes_from_the_training_images(tmp_path):
    files = {
        "image_ids": "a.jpg\n",
        "class_labels": "a.jpg,0\n",
        "image_sizes": "a.jpg,100,100\n",
        "localization": "a.jpg,25,25,75,75\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text)
    found = measure(LocalizationMetric(centre_from=str(tmp_path)), sample((40, 40, 120, 120)), sample((0, 0, 9, 9)))
    assert found["CentreBoxV2"] == 50
    (tmp_path / "image_sizes.txt").unlink()
    with pytest.raises(DataError, match="no size"):
        measure(LocalizationMetric(centre_from=str(tmp_path)), sample((40, 40, 120, 120)))


def test_masks_are_measured_by_pixels(tmp_path):
    mask = np.zeros((160, 160), np.uint8)
    mask[40:80, 40:120] = 255
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    with_mask = sample((0, 0, 1, 1), true_masks=(str(tmp_path / "m.png"),), ignore_mask=None)
    found = measure(LocalizationMetric(), with_mask)
    assert set(found) == {"PxAP", "Top1", "Top5"}
    assert found["PxAP"] > 95
    with pytest.raises(DataError, match=r"none\.png"):
        LocalizationMetric().process(None, [sample((0, 0, 1, 1), true_masks=("none.png",))])


def test_protocol_of_sat():
    found = measure(SATLocalizationMetric(resize=224), sample((40, 40, 120, 80)), sample((0, 100, 40, 159)))
    assert found == {"SAT_GTKnown": 50, "SAT_Top1Loc": 50, "SAT_Top5Loc": 50}
