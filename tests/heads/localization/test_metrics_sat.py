import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

from visionattn.heads.localization.metrics import box_iou
from visionattn.heads.localization.metrics_sat import (
    LocalizationAccuracy,
    box_of_largest_region,
    crop_boxes,
    normalize_map,
)


def test_boxes_are_those_of_the_authors_code(shared_dir):
    recorded = torch.load(shared_dir / "parity/localization/sat_eval_box_a.pt", weights_only=True)
    inputs, expected = recorded["inputs"], recorded["outputs"]
    for score_map, truth, box, iou in zip(
        inputs["maps"], inputs["gt"], expected["boxes"], expected["iou"], strict=True
    ):
        found = box_of_largest_region(normalize_map(score_map.numpy(), (224, 224)), 0.4)
        assert found.tolist() == box.tolist()
        assert box_iou(found, truth.numpy())[0, 0] == pytest.approx(float(iou), abs=1e-6)


def test_largest_region_joins_diagonals():
    score_map = np.zeros((10, 12))
    score_map[1:4, 1:4] = 1
    score_map[4:6, 4:7] = 1  # touches by a corner
    score_map[8:, 0:7] = 1  # 14 pixels against 15
    assert box_of_largest_region(score_map, 0.5).tolist() == [1, 1, 7, 6]


def test_of_equal_regions_the_first_row_by_row_wins():
    score_map = np.zeros((9, 9))
    score_map[1:3, 0:2] = 1
    score_map[0:2, 6:8] = 1
    assert box_of_largest_region(score_map, 0.5).tolist() == [6, 0, 8, 2]


def test_a_map_without_a_region_gives_the_whole_picture():
    assert box_of_largest_region(np.zeros((6, 8)), 0.4).tolist() == [0, 0, 8, 6]
    assert box_of_largest_region(np.full((6, 8), 0.4), 0.4).tolist() == [0, 0, 8, 6]


def test_normalize_map_survives_a_constant():
    assert not normalize_map(np.full((3, 3), 7.0), (6, 6)).any()
    stretched = normalize_map(np.array([[2.0, 4.0]]), (1, 2))
    assert stretched.tolist() == [pytest.approx([0.0, 1.0], abs=1e-5)]


def test_crop_boxes_follow_the_centre_crop():
    assert crop_boxes([[0, 0, 500, 400], [100, 100, 250, 300]], (400, 500)).tolist() == [
        [0, 0, 223, 223],
        [35, 48, 112, 176],
    ]


def test_top1_needs_box_and_class():
    score_map = np.zeros((20, 20))
    score_map[2:10, 2:10] = 1
    accuracy = LocalizationAccuracy(0.4)
    scores = np.array([0.1, 0.5, 0.2, 0.9, 0.3, 0.4, 0.0])
    accuracy.add(score_map, [[2, 2, 10, 10]], scores, 3)  # all right
    accuracy.add(score_map, [[2, 2, 10, 10]], scores, 2)  # class fifth
    accuracy.add(score_map, [[2, 2, 10, 10]], scores, 6)  # class last
    accuracy.add(score_map, [[12, 12, 19, 19]], scores, 3)  # box wrong
    result = accuracy.compute()
    assert (result.gt_known, result.top1, result.top5) == (75, 25, 50)
    assert (result.cls_top1, result.cls_top5) == (50, 75)
    assert result.by_iou == {30: 75, 50: 75, 70: 75}
