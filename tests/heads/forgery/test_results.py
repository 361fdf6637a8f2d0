"""Files and records of forgery predictions."""

import cv2
import numpy as np

from visionattn.heads.forgery.results import forgery_record, heat_picture, write_forgery_maps
from visionattn.inference.results import Prediction


def prediction(score=0.8):
    heat = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    classes = ("authentic", "forged")
    return Prediction(
        (6, 8), classes, semantic=(heat > 0.5).astype(np.int64), heatmap=heat, image_scores=np.array([1 - score, score])
    )


def test_maps(tmp_path):
    found = prediction()
    written = write_forgery_maps(tmp_path, "x", found)
    assert set(written) == {"heat", "map", "mask"}
    levels = cv2.imread(str(tmp_path / written["map"]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(levels, np.rint(found.heatmap * 255))
    mask = cv2.imread(str(tmp_path / written["mask"]), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(mask > 0, found.heatmap > 0.5)
    colours = heat_picture(found.heatmap)
    assert colours[0, 0].sum() < 30
    assert colours[-1, -1].sum() > 500


def test_record():
    assert forgery_record(prediction()) == {"forgery_score": 0.8, "forged": True, "forged_share": 0.5}
    assert not forgery_record(prediction(0.5))["forged"]


def test_overlay_marks_only_what_is_forged():
    image = np.full((120, 160, 3), 128, np.uint8)
    semantic = np.zeros((120, 160), np.int64)
    semantic[60:110, 60:150] = 1
    classes = ("authentic", "forged")
    found = Prediction(
        (120, 160), classes, semantic=semantic, heatmap=semantic.astype(np.float32), image_scores=np.array([0.1, 0.9])
    )
    drawn = found.draw(image)
    assert (drawn[65:70, 62:140] != 128).any()
    assert np.array_equal(drawn[30:55, 5:55], image[30:55, 5:55])
    assert (drawn[:10, :40] != 128).any()  # the verdict


def test_colours_of_the_data_mark_the_verdict_and_the_region():
    image = np.full((120, 160, 3), 128, np.uint8)
    semantic = np.zeros((120, 160), np.int64)
    semantic[60:110, 60:150] = 1
    found = Prediction(
        (120, 160), ("authentic", "forged"), semantic=semantic, heatmap=semantic.astype(np.float32),
        image_scores=np.array([0.1, 0.9]), colors=((0, 0, 0), (255, 82, 70)),
    )  # fmt: skip
    drawn = found.draw(image).astype(int)
    assert drawn[1, 1].tolist() == [70, 82, 255]
    red = drawn[62:70, 62:70]
    assert (red[..., 2] > red[..., 0] + 20).all()
