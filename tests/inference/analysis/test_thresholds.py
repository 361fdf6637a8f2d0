"""Score thresholds by class: options, files, and their use in predictions."""

import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("mmdet")

from visionattn.errors import ConfigError, DataError
from visionattn.inference import Options, Predictor
from visionattn.inference.analysis.thresholds import find_thresholds, write_thresholds

RECORD = {"checkpoint": "best.pth", "config": "x.py", "dataset": {}, "date": "today"}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "best.pth"
    path.write_bytes(b"weights")
    (tmp_path / "test").mkdir()
    record = {**RECORD, "checkpoint_sha256": hashlib.sha256(b"weights").hexdigest()}
    write_thresholds(tmp_path / "test", {"red": 0.25, "blue": None}, "F1", record)
    return path


def test_thresholds_of_a_run(checkpoint):
    assert find_thresholds("best", checkpoint) == {"red": 0.25}
    assert find_thresholds(str(checkpoint.parent / "test/thresholds.json"), None) == {"red": 0.25}
    checkpoint.write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"thresholds.json: is of another checkpoint, best.pth; run visionattn test"):
        find_thresholds("best", checkpoint)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(ConfigError, match="visionattn test --report writes it for the run of a detector"):
        find_thresholds("best", tmp_path / "best.pth")
    with pytest.raises(ConfigError, match="requires a training run"):
        find_thresholds("best", None)
    with pytest.raises(DataError, match="no such file"):
        find_thresholds("none.json", None)
    for content in ("{", "[]", "{}", '{"score_thr": {"a": "b"}}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"bad.json: (has no thresholds|not a readable)"):
            find_thresholds(str(tmp_path / "bad.json"), None)


def test_options():
    assert Options(score_thr={"a": 0.2}).score_thr == {"a": 0.2}
    for wrong in ({"a": 1.5}, {"a": float("nan")}, "often", -0.1):
        with pytest.raises(ConfigError, match="`score_thr` must be"):
            Options(score_thr=wrong)


def test_predictions_by_class(rectangle_model, painted, tmp_path):
    image = painted(96, 96, ("red", 4, 4, 20, 20), ("blue", 40, 40, 70, 70))
    everything = Predictor.from_model(rectangle_model, score_thr=0.0)(image)
    scores = dict(zip(everything.names, everything.scores.tolist(), strict=True))
    (tmp_path / "t.json").write_text(json.dumps({"score_thr": {"red": scores["red"] + 1e-4, "blue": None}}))
    for given in ({"red": scores["red"] + 1e-4}, str(tmp_path / "t.json")):
        predictor = Predictor.from_model(rectangle_model, score_thr=given)
        assert set(predictor(image).names) == {"blue"}
        assert predictor.job.class_thresholds.tolist() == pytest.approx([scores["red"] + 1e-4, 0.3])
    both = Predictor.from_model(rectangle_model, score_thr={"red": scores["red"] - 1e-4, "blue": 1.0})
    assert set(both(image).names) == {"red"}
    assert np.isclose(both(image).scores.max(), scores["red"])
    with pytest.raises(ConfigError, match="threshold for 'green', but this model has red, blue"):
        Predictor.from_model(rectangle_model, score_thr={"green": 0.5})
