"""What is where in the picture from above."""

import numpy as np
import pytest

pytest.importorskip("cv2")

from visionattn.heads.lidar.draw import GROUND, TRUTH, draw_bev, shown_area
from visionattn.heads.lidar.results import PointPrediction
from visionattn.inference.draw import class_color

AREA = (-20.0, -30.0, 40.0, 30.0)


def predict(points=None, boxes=(), labels=(), truth=()):
    boxes = np.array(boxes, np.float32).reshape(-1, 7)
    points = np.zeros((0, 4), np.float32) if points is None else np.array(points, np.float32)
    truth = np.array(truth, np.float32).reshape(-1, 7)
    scores, labels = np.full(len(boxes), 0.9, np.float32), np.array(labels, np.int64).reshape(-1)
    return PointPrediction(points, ("car", "tram"), boxes, scores, labels, None, truth, ("car",) * len(truth))


def at(picture, x, y, reach=1):
    """Pixels around a place, 600 pixels for 60 m."""
    row, column = round((AREA[2] - x) * 10), round((AREA[3] - y) * 10)
    return picture[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1].reshape(-1, 3)


def painted(picture, color, x, y):
    """Whether a line of about that colour is there; its edge is blended with the ground."""
    return (np.abs(at(picture, x, y).astype(int) - color).max(1) < 100).any()


def test_x_is_up_and_y_is_left_and_higher_is_lighter():
    picture = draw_bev(predict([[33.3, 7.7, -1.5, 0], [5.5, -22.2, 3.0, 0]]), AREA, 600, captions=False)
    assert picture.shape == (600, 600, 3)
    low, high = at(picture, 33.3, 7.7).max(), at(picture, 5.5, -22.2).max()
    assert max(GROUND) < low < high
    assert (at(picture, 33.3, -7.7) == GROUND).all()


def test_box_has_the_colour_of_its_class_and_a_line_to_its_front():
    box = [13, 15.1, 0, 6, 2.4, 2, np.pi / 2]  # heads along +y, to the left
    picture = draw_bev(predict(boxes=[box], labels=[1]), AREA, 600, captions=False)
    color = class_color(1)
    for x, y in ((13, 18.1), (13, 16.6), (14.2, 15.1), (11.8, 15.1), (13, 12.1)):
        assert painted(picture, color, x, y), (x, y)
    assert not painted(picture, color, 13, 13.6)  # between middle and rear


def test_labelled_boxes_are_white():
    picture = draw_bev(predict(truth=[[13, 15.1, 0, 6, 2.4, 2, 0]]), AREA, 600, captions=False)
    assert painted(picture, TRUTH, 16, 15.1)


def test_captions_and_sizes():
    prediction = predict(np.random.default_rng(0).normal(0, 10, (500, 4)), [[3, 3, 0, 4, 2, 2, 1]], [0])
    assert (draw_bev(prediction, AREA, 600) != draw_bev(prediction, AREA, 600, captions=False)).any()
    assert draw_bev(prediction, (0, 0, 10, 40), 400).shape == (100, 400, 3)
    assert draw_bev(prediction, pixels=50).max(axis=(0, 1)).min() > 0
    with pytest.raises(ValueError, match="`area` must be"):
        draw_bev(prediction, (0, 0, 0, 5))


def test_area_holds_boxes_and_nearly_all_points():
    points = np.zeros((1000, 3), np.float32)
    points[:, 0] = np.linspace(0, 50, 1000)
    points[0] = 9999, 9999, 0
    x0, y0, x1, y1 = shown_area(points, np.array([[0, -40, 0, 4, 2, 1, 0]]))
    assert -10 < x0 < 0
    assert -45 < y0 < -41
    assert 49 < x1 < 60
    assert 5 < y1 < 10
    assert shown_area(points[:0]) == (-40, -40, 40, 40)
