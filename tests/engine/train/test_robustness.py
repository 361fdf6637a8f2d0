"""Ladders of degraded test pictures."""

import types

import numpy as np
import pytest
from mmengine.config import Config

from visionattn.engine.train import robustness
from visionattn.engine.train.robustness import DegradeImage, evaluate_robustness, plot_robustness
from visionattn.errors import ConfigError


@pytest.fixture
def config():
    steps = [dict(type="LoadImageFromFile"), dict(type="PackSegInputs")]
    return Config(dict(test_dataloader=dict(dataset=dict(dataset=dict(pipeline=steps)))))


def test_every_level_is_tested_once_and_the_config_stays(config, tmp_path, monkeypatch):
    seen = []

    def test(changed, checkpoint, folder, distributed):
        steps = changed.test_dataloader.dataset.dataset.pipeline
        seen.append([s["type"] if s["type"] != "visionattn.DegradeImage" else (s["kind"], s["level"]) for s in steps])
        return type("Result", (), {"metrics": {"pixel_f1": 1 / len(seen)}})

    monkeypatch.setattr(robustness, "test", test)
    files = evaluate_robustness(config, "w.pth", tmp_path, ["jpeg", "resize"])
    assert len(seen) == 1 + 6 + 4
    assert seen[0] == ["LoadImageFromFile", "PackSegInputs"]
    assert seen[1] == ["LoadImageFromFile", ("jpeg", 100), "PackSegInputs"]
    assert seen[-1][1] == ("resize", 0.25)
    assert len(config.test_dataloader.dataset.dataset.pipeline) == 2
    assert [f.name for f in files] == ["robustness.json", "robustness.csv", "robustness.png"]
    assert "jpeg,90,0.3333" in (tmp_path / "robustness.csv").read_text()


def test_noise_of_a_picture_hangs_on_its_name():
    image = np.full((8, 8, 3), 100, np.uint8)
    step = DegradeImage("noise", 23)

    def run(name):
        return step.transform({"img": image, "img_path": name})["img"]

    assert np.array_equal(run("a/x.png"), run("b/x.png"))
    assert not np.array_equal(run("a/x.png"), run("a/y.png"))


def test_figures_of_any_model_are_drawn(tmp_path):
    rows = [{"kind": "clean", "level": 0.0, "AP": 0.4}, {"kind": "jpeg", "level": 50, "AP": 0.1}]
    assert plot_robustness(rows, tmp_path / "deep" / "curves.png").stat().st_size > 1000


def test_wrong_arguments(config, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"`robustness` must be one or more of .*, got rain"):
        evaluate_robustness(config, "w.pth", tmp_path, ["rain"])
    monkeypatch.setattr(robustness, "test", lambda *args, distributed: types.SimpleNamespace(metrics={}))
    config.test_dataloader.dataset.dataset.pipeline = []
    with pytest.raises(ConfigError, match="no LoadImageFromFile"):
        evaluate_robustness(config, "w.pth", tmp_path, ["jpeg"])
