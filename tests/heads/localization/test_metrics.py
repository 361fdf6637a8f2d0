import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

from visionattn.heads.localization.metrics import (
    BoxAccuracy,
    PixelPrecision,
    best_center_box,
    box_iou,
    boxes_from_map,
    prepare_map,
    resize_boxes,
    thresholds,
    truth_mask,
)


def blocks(*boxes, size=32, value=1.0):
    score_map = np.zeros((size, size))
    for x0, y0, x1, y1 in boxes:
        score_map[y0:y1, x0:x1] = value
    return score_map


@pytest.fixture(scope="module")
def recorded(shared_dir):
    return torch.load(shared_dir / "parity/localization/wsol_metrics_a.pt", weights_only=True)


@pytest.mark.parametrize(("multi", "key"), [(False, "single_contour"), (True, "multi_contour")])
def test_box_accuracy_counts_as_the_authors_code_does(recorded, multi, key):
    inputs, expected = recorded["inputs"], recorded["outputs"][key]
    accuracy = BoxAccuracy(multi=multi)
    for cam, (width, height), boxes in zip(inputs["cams"], inputs["wh"], inputs["gt_boxes"], strict=True):
        accuracy.add(cam.double().numpy(), resize_boxes(boxes, (height, width), (224, 224)))
    result = accuracy.compute()
    for iou in (30, 50, 70):
        assert np.array_equal(result.counts[iou], expected["curve"][str(iou)].numpy())
    assert list(result.by_iou.values()) == expected["acc_30_50_70"]
    assert result.max_box_acc == expected["MaxBoxAcc"]
    assert result.max_box_acc_v2 == pytest.approx(expected["V2"], rel=1e-12)


def test_boxes_are_those_of_the_authors_code(recorded):
    levels = (0.1, 0.25, 0.5, 0.75)
    for cam, expected in zip(
        recorded["inputs"]["cams"], recorded["outputs"]["boxes_single_at_0.1_0.25_0.5_0.75"], strict=True
    ):
        found = boxes_from_map(cam.double().numpy(), levels, multi=False)
        assert [boxes.tolist() for boxes in found] == [np.asarray(boxes).tolist() for boxes in expected]


def test_pixel_precision_is_that_of_the_authors_code(recorded):
    precision = PixelPrecision()
    for cam, mask in zip(recorded["inputs"]["cams"], recorded["inputs"]["masks"], strict=True):
        precision.add(cam.double().numpy(), mask.numpy())
    assert precision.compute() == pytest.approx(recorded["outputs"]["PxAP"], rel=1e-6)


def test_thresholds_end_before_one():
    assert len(thresholds(0.01)) == 100
    assert len(thresholds(0.001)) == 1000
    assert thresholds(0.25).tolist() == [0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match="step"):
        thresholds(0)


def test_prepare_map_resizes_before_it_stretches():
    score_map = np.zeros((4, 4))
    score_map[1, 1] = 5
    result = prepare_map(score_map, (16, 24))
    assert result.shape == (16, 24)
    assert result.dtype == np.float64
    assert result.min() == 0
    assert result.max() == 1
    assert result[15, 23] > 0  # cubic interpolation goes below zero beside the peak, so the rest lies higher
    assert not prepare_map(np.full((4, 4), 3.0), (8, 8)).any()
    assert not prepare_map(np.array([[0, np.nan], [1, 2]]), (8, 8)).any()


def test_boxes_end_beyond_their_last_pixel_but_inside_the_map():
    (inner,) = boxes_from_map(blocks((4, 6, 10, 20)), [0.5], multi=False)
    assert inner.tolist() == [[4, 6, 10, 20]]
    (outer,) = boxes_from_map(blocks((20, 0, 32, 32)), [0.5], multi=False)
    assert outer.tolist() == [[20, 0, 31, 31]]


def test_threshold_is_relative_to_the_maximum_and_values_are_cut():
    score_map = blocks((2, 2, 30, 30), value=0.2) + blocks((8, 8, 16, 16), value=0.2)
    low, high = boxes_from_map(score_map, [0.4, 0.6], multi=False)  # 51 of 102 in 8 bits
    assert low.tolist() == [[2, 2, 30, 30]]
    assert high.tolist() == [[8, 8, 16, 16]]
    (at_zero,) = boxes_from_map(blocks((2, 2, 30, 30), value=0.0039), [0.0], multi=False)  # 0.99 of 255 becomes 0
    assert at_zero.tolist() == [[0, 0, 0, 0]]


def test_single_takes_the_largest_polygon_and_multi_takes_holes_too():
    ring = blocks((2, 2, 20, 20)) - blocks((6, 6, 16, 16))  # 224 pixels
    score_map = ring + blocks((21, 21, 31, 31))
    (single,) = boxes_from_map(score_map, [0.5], multi=False)
    assert single.tolist() == [[2, 2, 20, 20]]
    (multi,) = boxes_from_map(score_map, [0.5], multi=True)
    assert sorted(map(tuple, multi.tolist())) == [(2, 2, 20, 20), (5, 5, 17, 17), (21, 21, 31, 31)]


@pytest.mark.parametrize(
    "score_map",
    [np.zeros((4, 4), np.float32), np.full((4, 4), 1.5), np.full((4, 4), np.nan), np.zeros(4)],
    ids=["float32", "above one", "NaN", "one axis"],
)
def test_maps_out_of_range_are_refused(score_map):
    with pytest.raises(ValueError, match="score_map"):
        boxes_from_map(score_map, [0.5], multi=False)


def test_iou_counts_pixels():
    assert box_iou([0, 0, 9, 9], [0, 0, 9, 4])[0, 0] == pytest.approx(0.5)
    assert box_iou([0, 0, 10, 10], [0, 0, 10, 5], extra=0)[0, 0] == pytest.approx(0.5)
    assert box_iou([[0, 0, 4, 4], [20, 20, 24, 24]], [[10, 10, 14, 14]]).tolist() == [[0], [0]]
    assert box_iou([5, 5, 4, 4], [5, 5, 4, 4])[0, 0] == 0


def test_resize_boxes_cuts_to_whole_pixels():
    assert resize_boxes([[10, 20, 199, 99]], (100, 200), (224, 224)).tolist() == [[11, 44, 222, 221]]


def test_any_box_of_an_image_counts_and_a_wrong_class_does_not():
    accuracy = BoxAccuracy(multi=False)
    accuracy.add(blocks((4, 4, 12, 12)), [[20, 20, 30, 30], [4, 4, 12, 12]])
    accuracy.add(blocks((4, 4, 12, 12)), [[20, 20, 30, 30]])
    assert accuracy.compute().max_box_acc == 50
    assert accuracy.compute().best_threshold[50] == 0
    assert accuracy.compute().at(50, 0.3) == 50
    assert accuracy.compute(np.array([False, True])).max_box_acc == 0
    with pytest.raises(ValueError, match="boxes"):
        accuracy.add(blocks((4, 4, 12, 12)), np.zeros((0, 4)))


def test_v2_takes_each_iou_at_its_own_threshold():
    score_map = blocks((0, 0, 10, 10), value=0.5) + blocks((0, 0, 10, 5), value=0.5)
    accuracy = BoxAccuracy(multi=True)
    accuracy.add(score_map, [[0, 0, 9, 9]])  # high IoU at low thresholds only
    accuracy.add(score_map, [[0, 0, 9, 4]])  # at high ones only
    result = accuracy.compute()
    assert result.by_iou == {30: 100.0, 50: 100.0, 70: 50.0}
    assert result.max_box_acc_v2 == pytest.approx(250 / 3)


def test_pixel_precision_of_few_pixels_by_hand():
    precision = PixelPrecision(step=0.1)
    precision.add(np.array([[0.95, 0.85, 0.85, 0.0]]), np.array([[1, 1, 0, 1]]))
    # from the top: 1 of 1 right and a third recalled, 2 of 3 and two thirds, 3 of 4 and all
    assert precision.compute() == pytest.approx(100 * (1 / 3 + 2 / 3 / 3 + 3 / 4 / 3))
    ignoring = PixelPrecision(step=0.1)
    ignoring.add(np.array([[0.95, 0.85, 0.85, 0.0]]), np.array([[1, 1, 255, 1]]))
    assert ignoring.compute() == pytest.approx(100)
    empty = PixelPrecision()
    empty.add(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="no object pixels"):
        empty.compute()


def test_truth_mask_leaves_out_what_is_ignored_and_no_object():
    first = np.zeros((4, 4), np.uint8)
    first[0] = 255
    second = np.zeros((4, 4), np.uint8)
    second[:, 0] = 1
    ignore = np.zeros((4, 4), np.uint8)
    ignore[:2] = 255
    mask = truth_mask([first, second], ignore, (4, 4))
    assert mask.tolist() == [[1, 1, 1, 1], [1, 255, 255, 255], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert truth_mask([first], None, (8, 4)).sum() == 8


def test_best_center_box_finds_the_box_that_all_images_share():
    boxes = [np.array([[56, 28, 167, 195]]), np.array([[56, 28, 167, 195], [0, 0, 5, 5]])]
    box, score = best_center_box(boxes, (224, 224))
    assert box.tolist() == pytest.approx([56, 28, 167, 195], abs=6)
    assert score == 100
    _, corner = best_center_box([np.array([[0, 0, 20, 20]])], (224, 224))
    assert corner == 0
