"""Records, files and overlays of forgery predictions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.structures import BaseDataElement, PixelData

from visionattn.errors import ConfigError
from visionattn.heads.forgery.job import ForgeryJob, ForgeryPrediction
from visionattn.inference import Options, Predictor
from visionattn.inference.job import RunTotals

CLASSES = ("authentic", "forged")


@pytest.fixture
def job(make_model):
    model = make_model("forgery", classes=CLASSES)
    model.model.threshold = 0.5
    return ForgeryJob(model, Options())


def output(probability: np.ndarray, score: float) -> BaseDataElement:
    found = BaseDataElement()
    values = torch.from_numpy(probability)[None]
    found.set_field(PixelData(data=values), "forgery_prob")
    found.set_field(torch.tensor(score), "forgery_score")
    logits = torch.logit(values, eps=1e-6)
    found.set_field(PixelData(data=torch.cat([torch.zeros_like(logits), logits])), "seg_logits")
    return found


def test_record_and_files(job):
    heatmap = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    found = job.prediction(output(heatmap, 0.8), (6, 8))
    assert job.record(found, 0) == {"forgery_score": 0.8, "forged": True, "forged_share": 0.5}
    maps = job.maps(found)
    np.testing.assert_array_equal(maps["heatmap"], heatmap)
    np.testing.assert_array_equal(maps["mask"], heatmap > 0.5)
    assert not job.record(job.prediction(output(heatmap, 0.5), (6, 8)), 0)["forged"]
    assert job.lines(job.record(found, 0), job.count(found)) == ["forged, score 0.800, 50.0% of the pixels marked"]
    assert job.summary(RunTotals(3, job.count(found))) == "forged: 1 of 3 by the score of the whole image"


def test_thresholds_of_a_report(make_model):
    model = make_model("forgery", classes=CLASSES)
    model.model.threshold = 0.5
    heatmap = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    found = ForgeryJob(model, Options(score_thr={"image": 0.85, "pixels": 0.25})).prediction(
        output(heatmap, 0.8), (6, 8)
    )
    assert not found.forged
    np.testing.assert_array_equal(found.semantic == 1, heatmap > 0.25)
    with pytest.raises(ConfigError, match="threshold for 'forged', but this model has image, pixels"):
        ForgeryJob(model, Options(score_thr={"forged": 0.5}))


def test_tiles_are_blended_and_the_image_is_as_forged_as_its_worst_tile(make_model):
    class Spot(type(make_model())):
        def run(self, samples, scale=1.0):
            return [output(s["img"][..., 0] / np.float32(255), float(s["img"].max() / 255)) for s in samples]

    model = Spot("forgery", classes=CLASSES)
    model.model.threshold = 0.5
    image = np.full((64, 200, 3), 20, np.uint8)
    image[20:30, 150:160] = 204
    for options in ({"tile": 64, "overlap": 16}, {"tta": True}, {"tile": 64, "tta": True}):
        found = Predictor.from_model(model, **options)(image)
        assert found.forgery_score == pytest.approx(0.8, abs=1e-5)
        np.testing.assert_allclose(found.heatmap, image[..., 0] / 255, atol=1e-4)
        assert found.semantic.sum() == 100


def region(**options) -> ForgeryPrediction:
    semantic = np.zeros((120, 160), np.int64)
    semantic[60:110, 60:150] = 1
    return ForgeryPrediction(
        (120, 160), CLASSES, semantic=semantic, heatmap=semantic.astype(np.float32),
        image_scores=np.array([0.1, 0.9]), **options,
    )  # fmt: skip


def test_overlay_marks_only_what_is_forged():
    image = np.full((120, 160, 3), 128, np.uint8)
    drawn = region().draw(image)
    assert (drawn[65:70, 62:140] != 128).any()
    assert np.array_equal(drawn[30:55, 5:55], image[30:55, 5:55])
    assert (drawn[:10, :40] != 128).any(), "the verdict"


def test_colors_of_the_data_mark_the_verdict_and_the_region():
    image = np.full((120, 160, 3), 128, np.uint8)
    drawn = region(colors=((0, 0, 0), (255, 82, 70))).draw(image).astype(int)
    assert (drawn[:30, :60] == [70, 82, 255]).all(axis=2).sum() > 100
    red = drawn[62:70, 62:70]
    assert (red[..., 2] > red[..., 0] + 20).all()


def test_connected_areas_have_their_mean_probability():
    heatmap = np.zeros((60, 80), np.float32)
    heatmap[10:20, 10:20], heatmap[10:20, 20:30] = 0.6, 0.8
    heatmap[40:45, 60:70] = 0.9
    found = replace(region(), image_size=(60, 80), heatmap=heatmap, semantic=(heatmap > 0.5).astype(np.int64))
    areas = found.areas()
    np.testing.assert_allclose(areas.scores, [0.7, 0.9], rtol=1e-6)
    np.testing.assert_array_equal(areas.boxes, [[10, 10, 30, 20], [60, 40, 70, 45]])
    np.testing.assert_array_equal(np.asarray(areas.masks).any(axis=0), heatmap > 0.5)


def test_authentic_images_say_so_and_have_no_filled_area(monkeypatch):
    from visionattn.inference.drawing import cards

    written = []
    monkeypatch.setattr(cards.cv2, "putText", lambda image, text, *rest: written.append(text))
    image = np.full((120, 160, 3), 128, np.uint8)
    forged = region().draw(image)
    assert written == ["forged", "0.90", "1.00"]  # the title is short in a small image
    written.clear()
    authentic = replace(region(), image_scores=np.array([0.8, 0.2])).draw(image)
    assert written == ["authentic", "0.20", "1.00"]
    assert (forged[85, 100] != 128).any()
    assert (authentic[85, 100] == 128).all()
    assert (authentic[85, 57:63] != 128).any(), "the outline"
    written.clear()
    region(hide_labels=True).draw(image)
    assert not written
