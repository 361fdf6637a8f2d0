"""Early stopping: what counts as an improvement, and that runs stop, resume and explain it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.logging import MessageHub
from mmengine.runner.base_loop import BaseLoop

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.load import load_config
from visionattn.engine.train.curve import read_records
from visionattn.engine.train.finetune import early_stopping
from visionattn.engine.train.finetune.early_stopping import EarlyStoppingHook
from visionattn.engine.train.hooks import CheckpointHook, StopHook
from visionattn.engine.train.launch import launch
from visionattn.engine.train.train import train
from visionattn.errors import ConfigError


class Loop(BaseLoop):
    stop_training = False

    def __init__(self):
        pass

    def run(self):
        raise AssertionError


def validate(hook: EarlyStoppingHook, values, saver=None, name="coco/bbox_mAP", hub=None):
    """Give a hook the results of validations at iterations 1, 2, ..., and return the runner and where it stopped."""
    runner = SimpleNamespace(
        _train_loop=Loop(), iter=0, message_hub=hub or MessageHub(f"test{id(hook)}"), checkpoint_hook=saver
    )
    runner.train_loop = runner._train_loop
    for runner.iter, value in enumerate(values, 1):
        hook.after_val_epoch(runner, {} if value is None else {name: value})
        if runner.train_loop.stop_training:
            return runner, runner.iter
    return runner, None


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "stopped", "best"),
    [
        ([0.1, 0.2, 0.2, 0.19, 0.3], 4, (0.2, 2)),  # an equal value is no improvement
        ([0.1, 0.1, 0.11, 0.1, 0.12, 0.1], None, (0.12, 5)),
        ([0.3, NAN, NAN, 0.4], 3, (0.3, 1)),
        ([None, 0.0, None, 0.0], 4, (0.0, 2)),  # no detections yet
        ([None, None, None, 0.5], None, (0.5, 4)),  # not counted before the first detections
        ([None, None, 0.0, 0.0, None], 5, (0.0, 3)),
        ([0.5, None, None], 3, (0.5, 1)),  # counted after them
        ([NAN, NAN], 2, (None, 0)),
    ],
)
def test_greater_is_better(values, stopped, best):
    hook = EarlyStoppingHook(patience=2)
    runner, where = validate(hook, values)
    assert where == stopped
    state = runner.message_hub.get_info("early_stopping")
    assert (state["best"], state["best_iter"]) == best
    if stopped:
        assert f"stopped early at iteration {stopped}: no better" in hook.reason
        assert best[0] is None or f"the best is {best[0]:.3f} of iteration {best[1]}" in hook.reason
    else:
        assert hook.reason is None


def test_direction():
    falling = [0.5, 0.4, 0.3, 0.2]
    assert validate(EarlyStoppingHook(2), falling, name="val/loss")[1] is None
    assert validate(EarlyStoppingHook(2), falling)[1] == 3
    assert validate(EarlyStoppingHook(2, rule="less"), falling, name="score")[1] is None
    saver = CheckpointHook(save_best="score", rule="less")
    assert validate(EarlyStoppingHook(2), falling, saver, name="score")[1] is None
    saver = CheckpointHook(save_best="auto")
    assert validate(EarlyStoppingHook(2), falling, saver)[1] == 3
    with pytest.raises(ConfigError, match=r"`save_best`='score' requires rule="):
        validate(EarlyStoppingHook(2), falling, name="score")
    with pytest.raises(ConfigError, match="`monitor` of EarlyStoppingHook must be one of score, got 'AP'"):
        validate(EarlyStoppingHook(2, monitor="AP", rule="greater"), falling, name="score")


def test_a_repeated_validation_counts_once():
    hub = MessageHub("repeated")
    runner, _ = validate(EarlyStoppingHook(3), [0.5, 0.4], hub=hub)
    hook = EarlyStoppingHook(3)
    hook.after_val_epoch(runner, {"coco/bbox_mAP": 0.4})
    assert hub.get_info("early_stopping")["waited"] == 1


STILL = {  # nothing changes, so that no validation is better than the first
    "optim_wrapper.optimizer.lr": 0.0,
    "model.backbone.norm_eval": True,
    "train_cfg.val_interval": 1,
    "param_scheduler": [],
}


def test_a_run_stops(tmp_path, coco_dir, make_config, capsys):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    rare = {**STILL, "default_hooks.logger.interval": 50}
    result = train(load_config(config, rare), work_dir=tmp_path / "run", patience=4)
    assert result.iterations == 5
    assert [r["iter"] for r in read_records(tmp_path / "run") if "loss" in r] == [5], "for the curve"
    reason = f"stopped early at iteration 5: no better AP in 4 validations; the best is {result.metrics['AP']:.3f} of"
    assert result.stopped.startswith(reason)
    assert result.stopped.endswith("of iteration 1")
    assert result.stopped in " ".join(capsys.readouterr().out.split())
    assert read_records(tmp_path / "run")[-1] == {"iter": 5, "stopped": result.stopped, "best_iter": 1}
    assert Path(result.best).name == "best_coco_bbox_mAP_iter_1.pth"
    assert Path(result.checkpoint).name == "iter_5.pth"
    assert "EarlyStoppingHook" in (tmp_path / "run/tiny.py").read_text()
    # it does not continue, unless it is allowed to wait longer
    again = train(load_config(config, STILL), work_dir=tmp_path / "run", patience=4, resume=True)
    assert (again.iterations, again.stopped) == (5, result.stopped)
    assert [r for r in read_records(tmp_path / "run") if "stopped" in r] == [read_records(tmp_path / "run")[-1]]
    more = train(load_config(config, STILL), work_dir=tmp_path / "run", patience=6, resume=True)
    assert more.iterations == 7
    assert more.stopped.endswith("in 6 validations" + result.stopped.split("validations")[1])


@pytest.mark.parametrize("by_epoch", [False, True])
def test_resuming_changes_nothing(tmp_path, coco_dir, make_config, monkeypatch, by_epoch):
    """Killed right after the checkpoint of an iteration whose validation was counted."""
    options = {**STILL} if not by_epoch else {**STILL, "train_cfg.max_epochs": 5}
    config = make_config(tmp_path / "tiny.py", coco_dir, by_epoch=by_epoch)
    whole = train(load_config(config, options), work_dir=tmp_path / "whole", patience=3)
    original = StopHook.after_train_iter

    def crash(self, runner, *args, **kwargs):
        original(self, runner, *args, **kwargs)
        if runner.iter + 1 == (9 if by_epoch else 3):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StopHook, "after_train_iter", crash)
        with pytest.raises(KeyboardInterrupt):
            train(load_config(config, options), work_dir=tmp_path / "run", patience=3)
    saved = next(iter(checkpoints.candidates(tmp_path / "run")))
    assert checkpoints.read(saved)["message_hub"]["runtime_info"]["early_stopping"]["waited"] == 1
    resumed = train(load_config(config, options), work_dir=tmp_path / "run", patience=3, resume=True)
    assert (resumed.iterations, resumed.stopped) == (whole.iterations, whole.stopped)
    assert whole.iterations == (16 if by_epoch else 4)
    ours, theirs = (checkpoints.read(r.checkpoint) for r in (resumed, whole))
    for key in ("runtime_info",):
        left, right = (dict(c["message_hub"][key]["early_stopping"]) for c in (ours, theirs))
        assert left == right
    assert all(torch.equal(w, theirs["state_dict"][n]) for n, w in ours["state_dict"].items())
    strip = [
        [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(tmp_path / d)] for d in ("run", "whole")
    ]
    assert json.dumps(strip[0]) == json.dumps(strip[1])


@pytest.mark.usefixtures("quick_start")
def test_two_processes(tmp_path, coco_dir, make_config):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    options = {"config": str(config), "cfg_options": STILL, "work_dir": str(tmp_path / "run"), "patience": 2}
    result = launch(options, devices=2)
    assert (result.iterations, result.checkpoint.name) == (3, "iter_3.pth")


def test_mistakes(tmp_path, coco_dir, make_config):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    with pytest.raises(ConfigError, match="`patience` must be at least 1, got 0"):
        train(load_config(config), work_dir=tmp_path, patience=0)
    text = config.read_text()
    config.write_text(f"{text}\nval_dataloader = val_cfg = val_evaluator = None\n")
    with pytest.raises(ConfigError, match="`patience` requires a validation"):
        train(load_config(config), work_dir=tmp_path, patience=2)
    config.write_text(f"{text}\ndefault_hooks['checkpoint'] = None\n")
    with pytest.raises(ConfigError, match="`patience` requires the checkpoint hook"):
        train(load_config(config), work_dir=tmp_path, patience=2)
    config.write_text(f"{text}\ndefault_hooks['checkpoint'].pop('save_best')\n")
    result = train(load_config(config, {"train_cfg.max_iters": 4}), work_dir=tmp_path / "run", patience=2)
    assert result.best is not None, "the best checkpoint is saved"
    assert early_stopping.START["seen"] == 0
