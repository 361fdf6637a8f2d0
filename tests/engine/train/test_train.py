"""Training: the same curve after a kill, guarded steps, and what is said to a person."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("mmdet")

from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.config.load import load_config
from visionattn.engine.model import find_run
from visionattn.engine.train.curve import read_records
from visionattn.engine.train.guard import FiniteGuard
from visionattn.engine.train.hooks import Interrupted, StopHook
from visionattn.engine.train.replay import replay
from visionattn.engine.train.train import train
from visionattn.errors import CheckpointError, ConfigError, DataError, TrainingError


def records(folder: Path) -> list[dict]:
    """What a run wrote, without what is never the same twice."""
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(folder)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return checkpoints.state_dict_of(checkpoints.read(path))


def assert_same_run(folder: Path, reference: Path, last: str) -> None:
    assert records(folder) == records(reference)
    ours, theirs = weights(folder / last), weights(reference / last)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


class CrashError(Exception):
    """Stands for a power cut in the tests that do not need a real one."""


def crash_after(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    original = StopHook.after_train_iter

    def crashing(self, runner, *args, **kwargs):
        if runner.iter + 1 == iteration:
            raise CrashError
        return original(self, runner, *args, **kwargs)

    monkeypatch.setattr(StopHook, "after_train_iter", crashing)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, coco_dir, make_config) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train(load_config(make_config(folder / "tiny.py", coco_dir)), work_dir=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def unbroken_epochs(tmp_path_factory, coco_dir, make_config) -> Path:
    folder = tmp_path_factory.mktemp("epochs")
    train(load_config(make_config(folder / "tiny.py", coco_dir, by_epoch=True)), work_dir=folder / "run")
    return folder / "run"


def test_run_leaves_what_it_promises(unbroken):
    names = {p.name for p in unbroken.iterdir()}
    assert {"tiny.py", "curve.png", "metrics.jsonl", "iter_8.pth", "iter_6.pth", "last_checkpoint"} <= names
    assert "iter_2.pth" not in names, "max_keep_ckpts=2 keeps two"
    assert [p for p in names if p.startswith("best_coco_bbox_mAP")]
    assert not [p for p in names if p.endswith(".tmp")]
    found = records(unbroken)
    assert [r["iter"] for r in found if "loss" in r] == list(range(1, 9))
    assert [r["iter"] for r in found if "val" in r] == [4, 8]
    assert {"AP", "AP50"} <= set(found[-1]["val"])
    assert list(unbroken.glob("**/events.out.tfevents.*")), "TensorBoard has it too"
    log = next(unbroken.glob("*/*.log")).read_text()
    assert "Iter(train)" in log
    assert "Accumulating evaluation results" in log, "what pycocotools prints belongs into the log"


def test_resumed_run_is_the_unbroken_one(tmp_path, coco_dir, make_config, unbroken, monkeypatch):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    with monkeypatch.context() as patch:
        crash_after(patch, 5)
        with pytest.raises(CrashError):
            train(load_config(config), work_dir=tmp_path / "run")
    assert records(tmp_path / "run")[-1]["iter"] == 5
    result = train(load_config(config), work_dir=tmp_path / "run", resume=True)
    assert result.iterations == 8
    assert_same_run(tmp_path / "run", unbroken, "iter_8.pth")


def test_resumed_epochs_are_the_unbroken_ones(tmp_path, coco_dir, make_config, unbroken_epochs, monkeypatch):
    """From the middle of an epoch, which mmengine cannot do: checkpoints every 3 iterations, epochs of 4."""
    config = load_config(
        make_config(tmp_path / "tiny.py", coco_dir, by_epoch=True),
        {"default_hooks.checkpoint.by_epoch": False, "default_hooks.checkpoint.interval": 3},
    )
    with monkeypatch.context() as patch:
        crash_after(patch, 7)
        with pytest.raises(CrashError):
            train(config, work_dir=tmp_path / "run")
    assert (tmp_path / "run" / "last_checkpoint").read_text().endswith("iter_6.pth")
    train(config, work_dir=tmp_path / "run", resume=True)
    assert records(tmp_path / "run") == records(unbroken_epochs)
    ours, theirs = weights(tmp_path / "run" / "iter_8.pth"), weights(unbroken_epochs / "epoch_2.pth")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_number_of_workers_changes_nothing(tmp_path, coco_dir, make_config, unbroken):
    config = load_config(
        make_config(tmp_path / "tiny.py", coco_dir),
        {"train_dataloader.num_workers": 2, "train_dataloader.persistent_workers": True, "train_cfg.max_iters": 4},
    )
    train(config, work_dir=tmp_path / "run")
    losses = [r for r in records(unbroken) if "loss" in r][:4]
    assert [r for r in records(tmp_path / "run") if "loss" in r] == losses


def test_seed_matters(tmp_path, coco_dir, make_config, unbroken):
    config = load_config(make_config(tmp_path / "tiny.py", coco_dir), {"train_cfg.max_iters": 1})
    train(config, work_dir=tmp_path / "run", seed=4)
    assert records(tmp_path / "run")[0]["loss"] != records(unbroken)[0]["loss"]
    with pytest.raises(ConfigError, match="`seed` must be 4, that of the run, or None, got 5"):
        train(config, work_dir=tmp_path / "run", seed=5, resume=True)


def test_killed_run_resumes(tmp_path, coco_dir, make_config, unbroken):
    """A real SIGKILL to a real process, at whatever moment it comes."""
    config = make_config(tmp_path / "tiny.py", coco_dir)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [sys.executable, "-m", "visionattn", "train", str(config), "--work-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if (tmp_path / "run" / "last_checkpoint").is_file():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = checkpoints.candidates(tmp_path / "run")
    assert before, "it was killed after its first checkpoint"
    assert max(r["iter"] for r in records(tmp_path / "run")) < 8
    train(load_config(config), work_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", unbroken, "iter_8.pth")


def test_half_written_checkpoint_is_passed_over(tmp_path, coco_dir, make_config, unbroken, monkeypatch, capsys):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    with monkeypatch.context() as patch:
        crash_after(patch, 5)
        with pytest.raises(CrashError):
            train(load_config(config), work_dir=tmp_path / "run")
    newest = tmp_path / "run" / "iter_4.pth"
    newest.write_bytes(newest.read_bytes()[:2000])
    capsys.readouterr()
    train(load_config(config), work_dir=tmp_path / "run", resume=True)
    shown = capsys.readouterr().out
    assert "warning: skipped" in shown
    assert "iter_4.pth" in shown
    assert "resuming" in shown
    assert_same_run(tmp_path / "run", unbroken, "iter_8.pth")


def test_only_broken_checkpoints_is_an_error(tmp_path, coco_dir, make_config):
    run = tmp_path / "run"
    run.mkdir()
    (run / "iter_4.pth").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(CheckpointError, match=r"none of the checkpoints can be read.*iter_4\.pth"):
        train(load_config(make_config(tmp_path / "tiny.py", coco_dir)), work_dir=run, resume=True)


def test_kill_during_validation_loses_no_validation(tmp_path, coco_dir, make_config, unbroken, monkeypatch):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    with monkeypatch.context() as patch:
        patch.setattr(StopHook, "after_val_iter", lambda *_, **__: (_ for _ in ()).throw(CrashError))
        with pytest.raises(CrashError):
            train(load_config(config), work_dir=tmp_path / "run")
    train(load_config(config), work_dir=tmp_path / "run", resume=True)
    assert records(tmp_path / "run") == records(unbroken)


def test_stop_signal_saves_and_says_where(tmp_path, coco_dir, make_config, unbroken, monkeypatch):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    original = FiniteGuard.before_train_iter

    def interrupting(self, runner, *args, **kwargs):
        if runner.iter + 1 == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, runner, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(FiniteGuard, "before_train_iter", interrupting)
        with pytest.raises(Interrupted) as stop:
            train(load_config(config), work_dir=tmp_path / "run")
    assert (stop.value.iteration, stop.value.signal) == (3, signal.SIGTERM)
    assert stop.value.checkpoint == tmp_path / "run" / "iter_3.pth"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "handlers are put back"
    train(load_config(config), work_dir=tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", unbroken, "iter_8.pth")


def test_signal_to_all_processes(tmp_path, coco_dir, make_config):
    """The signal also reaches data workers, and the main process twice, as `timeout` sends it."""
    config = make_config(tmp_path / "tiny.py", coco_dir)
    loader = "dict(num_workers=2, persistent_workers=True)"
    config.write_text(
        config.read_text() + f"\ntrain_dataloader.update({loader})\nval_dataloader.update({loader})\n"
        "train_cfg.update(max_iters=100000)\n"
    )
    command = [sys.executable, "-m", "visionattn", "train", str(config), "--work-dir", str(tmp_path / "run")]
    out = tmp_path / "out.txt"
    with open(out, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            if len(read_records(tmp_path / "run")) > 5:  # the first validation is done or running
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        code = process.wait(30)
    finally:
        process.poll() is None and os.killpg(process.pid, signal.SIGKILL)
    shown = out.read_text()
    assert code == 0, shown
    assert "killed by signal" not in shown
    last = read_records(tmp_path / "run")[-1]["iter"]
    assert checkpoints.candidates(tmp_path / "run")[0].name == f"iter_{last}.pth"
    options = {"train_cfg.max_iters": last + 1, "train_dataloader.persistent_workers": False}
    assert train(load_config(config, options), work_dir=tmp_path / "run", resume=True).iterations == last + 1


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite_stops_before_the_step(tmp_path, coco_dir, make_config, monkeypatch, what):
    from mmdet.models.dense_heads import ATSSHead

    config = load_config(make_config(tmp_path / "tiny.py", coco_dir))
    seen: dict[str, torch.Tensor] = {}
    original = ATSSHead.loss
    calls = iter(range(100))

    def poisoned(self, *args, **kwargs):
        losses = original(self, *args, **kwargs)
        if next(calls) == 2:
            seen.update({k: v.clone() for k, v in self.state_dict().items()})
            seen["model"] = self
            if what == "loss":
                losses["loss_cls"][0] = losses["loss_cls"][0] * float("nan")
            else:
                losses["loss_cls"][0].register_hook(lambda gradient: gradient * float("inf"))
        return losses

    monkeypatch.setattr(ATSSHead, "loss", poisoned)
    with pytest.raises(TrainingError, match=f"the {what} is NaN or infinite in iteration 3 .*png"):
        train(config, work_dir=tmp_path / "run")
    head = seen.pop("model")
    assert all(torch.equal(v, seen[k]) for k, v in head.state_dict().items()), "no step was taken"
    report = json.loads((tmp_path / "run" / "nonfinite_iter_3_rank_0.json").read_text())
    assert report["what"] == what
    assert len(report["images"]) == 2
    assert all(name.endswith(".png") for name in report["images"])
    assert bool(report["parameters"]) == (what == "gradient")
    dump = tmp_path / "run" / "nonfinite_iter_3_rank_0.pth"
    calls = iter([2, 0])  # poisoned at the replay's own call, and not at the next
    found = replay(dump, load_config(tmp_path / "tiny.py", resolve_data=True))
    assert found.reproduced
    assert (found.what, found.iteration, found.images) == (what, 3, report["images"])
    assert not replay(dump, load_config(tmp_path / "tiny.py")).reproduced


def test_a_few_steps_that_are_not_finite_are_passed_over(tmp_path, coco_dir, make_config, monkeypatch):
    from mmdet.models.dense_heads import ATSSHead

    original, calls = ATSSHead.loss, iter(range(100))
    weights: list[dict[str, torch.Tensor]] = []

    def poisoned(self, *args, **kwargs):
        losses = original(self, *args, **kwargs)
        call = next(calls)
        if call in (2, 4):
            losses["loss_cls"][0] = losses["loss_cls"][0] * float("nan")
        weights.append({k: v.clone() for k, v in self.state_dict().items()})
        return losses

    monkeypatch.setattr(ATSSHead, "loss", poisoned)
    config = make_config(tmp_path / "tiny.py", coco_dir)
    with pytest.raises(TrainingError, match=r"iteration 5 .* after 1 such iterations were skipped"):
        train(load_config(config), work_dir=tmp_path / "one", skip_nonfinite=1)
    weights.clear()
    calls = iter(range(100))
    result = train(load_config(config), work_dir=tmp_path / "two", skip_nonfinite=2)
    assert result.iterations == 8
    assert sorted(p.name for p in (tmp_path / "two").glob("nonfinite*.pth")) == [
        "nonfinite_iter_3_rank_0.pth", "nonfinite_iter_5_rank_0.pth",
    ]  # fmt: skip
    moved = [any(not torch.equal(a[k], b[k]) for k in a) for a, b in itertools.pairwise(weights)]
    assert moved == [True, True, False, True, False, True, True]
    final = checkpoints.read(tmp_path / "two" / "iter_8.pth")["state_dict"]
    assert all(v.isfinite().all() for v in final.values())


def test_bad_samples_are_left_out_and_listed(tmp_path, coco_dir, make_config, capsys):
    shutil.copytree(coco_dir, tmp_path / "data")
    images = sorted((tmp_path / "data" / "images").iterdir())
    images[1].write_bytes(b"no image")
    images[3].write_bytes(images[3].read_bytes()[:-30])
    config = make_config(tmp_path / "tiny.py", tmp_path / "data")
    with pytest.raises(DataError, match=r"001\.png"):
        train(load_config(config), work_dir=tmp_path / "strict")
    with pytest.raises(DataError, match=r"001\.png.*`max_bad_samples` is 1"):
        train(load_config(config), work_dir=tmp_path / "one", max_bad_samples=1)
    options = ["train_cfg.max_iters=8", "val_dataloader=None", "val_cfg=None", "val_evaluator=None"]
    options += ["default_hooks.checkpoint.save_best=None"]
    train(load_config(config, options), work_dir=tmp_path / "two", max_bad_samples=2)
    listed = json.loads((tmp_path / "two" / "bad_samples.json").read_text())
    assert {Path(name).name for name in listed} == {images[1].name, images[3].name}
    assert "cannot be opened as an image" in listed[str(images[1])]["reason"]
    shown = " ".join(capsys.readouterr().out.split())
    assert "skipped so far:" in shown
    assert "2 different ones" in shown


@pytest.mark.parametrize("name", ["tiny.py", "renamed.py"])
def test_new_run_moves_an_old_one_aside(tmp_path, coco_dir, make_config, capsys, name):
    config = make_config(tmp_path / "tiny.py", coco_dir)
    run = tmp_path / "run"
    first = train(load_config(config, {"train_cfg.max_iters": 1}), work_dir=run).config.read_text()
    (run / "test").mkdir()
    (run / "test" / "results.json").write_text("{}")
    (run / "test" / "thresholds.json").write_text("{}")
    (run / "own.py").write_text("import os\n")
    options = {"train_cfg.max_iters": 1, "optim_wrapper.optimizer.lr": 0.5}
    second = train(load_config(config.rename(tmp_path / name), options), work_dir=run).config.read_text()
    assert "moved the files of an earlier run" in capsys.readouterr().out
    (aside,) = (tmp_path / "run").glob("before_*")
    assert {"iter_1.pth", "metrics.jsonl"} <= {p.name for p in aside.iterdir()}
    assert len([r for r in records(tmp_path / "run") if "loss" in r]) == 1
    assert {p.name for p in (aside / "test").iterdir()} == {"results.json", "thresholds.json"}
    assert not (run / "test").exists()
    assert find_run(aside)[0] == aside / "tiny.py"
    assert (aside / "tiny.py").read_text() == first != second
    assert {p.name for p in run.glob("*.py")} == {name, "own.py"}


def test_an_error_of_two_processes_is_the_one_they_raised(tmp_path, coco_dir, make_config):
    from visionattn.engine.train.launch import launch
    from visionattn.errors import ConfigProblemsError

    config = make_config(tmp_path / "tiny.py", coco_dir)
    config.write_text(
        config.read_text() + '\nmodel["backbone"]["model_name"] = "resnet10x"\ntrain_cfg["type"] = "IterLoop"\n'
    )
    with pytest.raises(ConfigProblemsError) as caught:
        launch({"config": str(config), "work_dir": str(tmp_path / "run")}, devices=2)
    assert len(caught.value.problems) == 2


def test_segmentation_trains_and_tests(tmp_path, make_segmentation):
    """mmseg through the same runner."""
    pytest.importorskip("mmseg")
    from visionattn.engine.train.testing import test as measure

    config = make_segmentation(tmp_path)
    result = train(load_config(config), work_dir=tmp_path / "run")
    assert result.metrics["mIoU"] > 0
    assert result.best.name == "best_mIoU_iter_3.pth"
    measured = measure(load_config(config), result.best, tmp_path / "out")
    assert measured.metrics["mIoU"] == result.metrics["mIoU"]
    rows = measured.per_class["semantic"]
    assert list(rows) == ["dark", "light"]
    assert sum(r["IoU"] for r in rows.values()) / 2 == pytest.approx(measured.metrics["mIoU"], abs=0.01)
