"""Weights & Biases, MLflow and Optuna: what is logged and searched, and that nothing is sent unasked."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmdet")

from visionattn.cli import main
from visionattn.engine.config.load import load_config
from visionattn.engine.train.experiments import options as experiment_options
from visionattn.engine.train.guard import FiniteGuard
from visionattn.engine.train.study import Range, parse_range
from visionattn.engine.train.testing import test as measure
from visionattn.engine.train.train import train
from visionattn.errors import ConfigError, MissingDependencyError

measure.__test__ = False


class _Stop(Exception):  # noqa: N818
    """Ends a run when everything is built."""


@pytest.fixture
def config_file(tmp_path, coco_dir, make_config) -> Path:
    return make_config(tmp_path / "tiny.py", coco_dir)


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in that notes what is sent."""
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace()
    module.calls = calls = {"init": [], "log": [], "files": [], "config": 0, "code": 0}
    module.init = lambda **kwargs: calls["init"].append(kwargs)
    module.log = lambda values, **kwargs: calls["log"].append(values)
    module.save = lambda file, **kwargs: calls["files"].append(Path(file).name)
    module.finish = lambda *a, **k: None
    module.join = lambda *a, **k: None
    module.config = types.SimpleNamespace(update=lambda *a, **k: calls.__setitem__("config", calls["config"] + 1))
    module.run = types.SimpleNamespace(log_code=lambda **k: calls.__setitem__("code", 1))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_when_asked(tmp_path, config_file, wandb):
    train(load_config(config_file, {"train_cfg.max_iters": 1}), work_dir=tmp_path / "run", wandb="cells")
    (init,) = wandb.calls["init"]
    assert (init["project"], init["name"], init["resume"]) == ("cells", "run", "allow")
    assert any("loss" in values for values in wandb.calls["log"])
    assert any("coco/bbox_mAP" in values for values in wandb.calls["log"])
    assert "curve.png" in wandb.calls["files"]
    assert any(name.startswith("best_") for name in wandb.calls["files"])
    assert (wandb.calls["config"], wandb.calls["code"]) == (1, 0), "the config is sent, the code is not"
    assert list((tmp_path / "run").glob("**/events.out.tfevents.*"))
    train(load_config(config_file, {"train_cfg.max_iters": 2}), work_dir=tmp_path / "run", wandb=True, resume=True)
    assert wandb.calls["init"][1]["id"] == init["id"], "the same run there"
    assert "project" not in wandb.calls["init"][1]


def test_wandb_is_never_called_unasked(tmp_path, config_file, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "cells")
    monkeypatch.setattr(FiniteGuard, "before_train_iter", lambda *a, **k: (_ for _ in ()).throw(_Stop))
    with pytest.raises(_Stop):
        train(load_config(config_file), work_dir=tmp_path / "run")
    assert not wandb.calls["init"]


def test_wandb_that_is_not_installed(tmp_path, config_file, monkeypatch):
    monkeypatch.setattr(experiment_options.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install wandb"):
        train(load_config(config_file), work_dir=tmp_path / "run", wandb=True)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local MLflow server without a process: a database in the folder of the test."""
    pytest.importorskip("sqlalchemy")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(None)


def test_mlflow(tmp_path, config_file, server):
    run = tmp_path / "run"
    options = {"train_cfg.max_iters": 2, "train_cfg.val_interval": 2, "param_scheduler": []}
    train(load_config(config_file, options), work_dir=run, mlflow="cells")
    (found,) = server.search_runs([server.get_experiment_by_name("cells").experiment_id])
    number = found.info.run_id
    assert (run / "mlflow_id").read_text() == number
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.params["optim_wrapper.optimizer.lr"] == "0.001"
    assert found.data.params["model.backbone.model_name"] == "resnet10t"
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in logged if "loss" in record]
    history = [(metric.step, metric.value) for metric in server.get_metric_history(number, "loss")]
    assert history == [(1, pytest.approx(losses[0])), (2, pytest.approx(np.mean(losses)))]  # mmengine's smoothing
    assert "coco/bbox_mAP" in found.data.metrics
    files = {file.path for file in server.list_artifacts(number)}
    assert {"config.py", "curve.png", "metrics.jsonl"} <= files
    assert any(name.startswith("best_") for name in files)

    train(load_config(config_file, {**options, "train_cfg.max_iters": 3}), work_dir=run, mlflow="cells", resume=True)
    assert server.get_metric_history(number, "loss")[-1].step == 3, "the same run there"
    measure(load_config(run / "tiny.py"), run / "iter_3.pth", tmp_path / "test")  # the config of the run names MLflow
    assert len(server.search_runs([server.get_experiment_by_name("cells").experiment_id])) == 1
    assert len(server.get_metric_history(number, "coco/bbox_mAP")) == 2


def test_mlflow_that_fails_during_a_run(tmp_path, config_file, server, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr("mlflow.MlflowClient.log_batch", fail)
    result = train(load_config(config_file, {"train_cfg.max_iters": 2}), work_dir=tmp_path / "run", mlflow=True)
    assert result.iterations == 2
    assert capsys.readouterr().out.count("MLflow: the server is gone; the rest of the run is not logged there") == 1


def test_mlflow_without_a_server(tmp_path, config_file, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    try:
        with pytest.raises(ConfigError, match="the server cannot be used"):
            train(load_config(config_file), work_dir=tmp_path / "run", mlflow=True)
    finally:
        mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.lr=log:1e-4:1e-2", Range("a.lr", 1e-4, 1e-2, True)),
        ("a=1:5", Range("a", 1, 5)),
        ("a=0.5:1", Range("a", 0.5, 1)),
        ("a=-1.5:2e1", Range("a", -1.5, 20.0)),
        ("a=[4,8]", Range("a", choices=(4, 8))),
        ("a=[AdamW,SGD]", Range("a", choices=("AdamW", "SGD"))),
    ],
)
def test_ranges(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["a", "a=", "a=1", "a=5:1", "a=log:0:1", "a=[]", "a=1:2:3", "a=x:y", "a=[[1]]"])
def test_wrong_ranges(text):
    with pytest.raises(ConfigError, match="`search` must be"):
        parse_range(text)


def test_study(tmp_path, config_file, capsys):
    optuna = pytest.importorskip("optuna")
    out = tmp_path / "study"
    argv = ["tune", str(config_file), "--search", "optim_wrapper.optimizer.lr=log:1e-5:1e-2", "--out", str(out)]
    argv += ["--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=1", "param_scheduler=[]"]
    assert main([*argv, "--trials", "2"]) == 0
    assert main([*argv, "--trials", "1"]) == 0
    printed = capsys.readouterr().out
    assert "best of 3 trials" in printed
    study = optuna.load_study(study_name="visionattn", storage=f"sqlite:///{out}/study.db")
    rates = [trial.params["optim_wrapper.optimizer.lr"] for trial in study.trials]
    assert len(set(rates)) == 3
    for trial in study.trials:
        config = load_config(out / f"trial_{trial.number}" / "tiny.py", resolve_data=False)
        assert config.optim_wrapper.optimizer.lr == trial.params["optim_wrapper.optimizer.lr"]
        logged = [
            json.loads(line) for line in (out / f"trial_{trial.number}" / "metrics.jsonl").read_text().splitlines()
        ]
        validated = [next(iter(record["val"].values())) for record in logged if "val" in record]
        assert trial.value == max(validated)
        assert list(trial.intermediate_values) == [1, 2]
    assert main([*argv, "--trials", "0"]) == 1
    assert "--trials must be at least 1" in capsys.readouterr().err
