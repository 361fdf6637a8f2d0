import numpy as np
import pytest

pytest.importorskip("cv2")

from visionattn.inference.heatmap import paint_heatmap, paint_signed
from visionattn.inference.results import Prediction


def test_nothing_is_painted_where_the_map_is_zero():
    image = np.full((4, 6, 3), 120, np.uint8)
    heatmap = np.zeros((4, 6), np.float32)
    heatmap[1, 2] = 1
    painted = paint_heatmap(image, heatmap)
    assert (painted != 120).any(-1).sum() == 1
    assert (painted[1, 2] != 120).any()
    assert (image == 120).all()


def test_prediction_draws_its_heat_map_below_its_box():
    image = np.full((40, 40, 3), 120, np.uint8)
    heatmap = np.zeros((40, 40), np.float32)
    heatmap[10:20, 10:20] = 1
    bare = Prediction((40, 40), ("a",), heatmap=heatmap)
    drawn = bare.draw(image)
    assert np.array_equal(drawn, paint_heatmap(image, heatmap))
    boxed = Prediction(
        (40, 40), ("a",), np.array([[10, 10, 20, 20]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64),
        heatmap=heatmap,
    )  # fmt: skip
    assert (boxed.draw(image) != drawn).any()
    with pytest.raises(ValueError, match="`heatmap` must have the image size"):
        Prediction((40, 41), ("a",), heatmap=heatmap)


def test_signed_values_are_red_and_blue():
    values = np.zeros((20, 30), np.float32)
    values[2, 3], values[4, 5:9], values[10, 10] = 1, -1, 100
    out = paint_signed(np.full((20, 30, 3), 200, np.uint8), values, clip=99).astype(int)
    assert (out[0, 0] == out[0, 0, 0]).all()  # gray where the value is 0
    assert out[2, 3, 2] > out[2, 3, 0] + 100
    assert out[4, 6, 0] > out[4, 6, 2] + 100
    assert (out[10, 10] == out[2, 3]).all()  # one large value does not hide the others
    assert (paint_signed(np.full((4, 4, 3), 200, np.uint8), np.zeros((4, 4))) == 210).all()
