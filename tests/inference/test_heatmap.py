import numpy as np
import pytest

pytest.importorskip("cv2")

from visionattn.inference.heatmap import paint_heatmap
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
