"""``visionattn train`` as a person uses it: what it prints, and one line for each mistake."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from fixtures import tiny

pytest.importorskip("mmdet")

from mmengine.config import Config

from visionattn.cli import main
from visionattn.engine.compat import checkpoint as checkpoints
from visionattn.engine.train.hooks import StopHook


@pytest.fixture
def config(tmp_path, monkeypatch):
    tiny.torch.set_num_threads(1)
    tiny.make_coco(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tiny.write_config(tmp_path / "tiny.py", tmp_path / "data")


def fails(capsys, *argv: str) -> str:
    """The single line that a failing command prints."""
    assert main(["train", *argv]) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "unexpected" not in lines[0]
    assert "Traceback" not in captured.out
    return lines[0]


def test_train_says_where_everything_is(config, capsys):
    assert main(["train", str(config), "--cfg-options", "train_cfg.max_iters=4", "--seed", "1"]) == 0
    out = capsys.readouterr().out
    for word in (
        "ATSS, 0.01 M parameters",
        "train: 8 images",
        "iter 4/4  loss",
        "ETA",
        "validation at iteration 4: AP ",
        "checkpoint work_dirs/tiny/best_",
        "curve      work_dirs/tiny/curve.png",
        "log        work_dirs/tiny/",
        "--run work_dirs/tiny",
    ):
        assert word in out, word
    assert "INFO" not in out
    assert "DONE (t=" not in out, "pycocotools prints into the log"
    assert len(out.splitlines()) < 20
    assert Path("work_dirs/tiny/tiny.py").is_file()


def test_resume_from_the_command_line(config, capsys, monkeypatch):
    original = StopHook.after_train_iter

    def interrupting(self, runner, *args, **kwargs):
        if runner.iter + 1 == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, runner, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopHook, "after_train_iter", interrupting)
        assert main(["train", str(config), "--work-dir", "run"]) == 130
    out = capsys.readouterr().out
    assert "stopped after iteration 3, saved run/iter_3.pth" in out
    assert f"{config} --work-dir run --resume" in out
    assert main(["train", str(config), "--work-dir", "run", "--resume"]) == 0
    out = capsys.readouterr().out
    assert "resuming run/iter_3.pth" in out
    assert "iter 3/8" not in out
    assert "iter 4/8" in out


def test_missing_config(config, capsys):
    assert "tini.py does not exist; did you mean tiny.py" in fails(capsys, "tini.py")


def test_malformed_config(config, capsys):
    Path("bad.py").write_text("model = dict(\n")
    assert "bad.py, line 1" in fails(capsys, "bad.py")


def test_mistyped_option(config, capsys):
    text = fails(capsys, "tiny.py", "--cfg-options", "train_cfg.max_iter=4")
    assert "did you mean max_iters" in text


def test_unknown_module_and_argument(config, capsys):
    text = config.read_text()
    config.write_text(text.replace('type="FPN"', 'type="FNP"'))
    assert "type='FNP' is not known" in fails(capsys, "tiny.py")
    config.write_text(text.replace("num_outs=3", "num_out=3"))
    assert "model.neck.num_out: FPN takes no such argument; did you mean num_outs" in fails(capsys, "tiny.py")


def test_annotation_problems(config, capsys):
    Path("data/val.json").write_text("{")
    assert "val.json" in fails(capsys, "tiny.py")


def test_image_that_does_not_decode(config, capsys):
    Path("data/images/002.png").write_bytes(b"nothing")
    assert "002.png: cannot be opened as an image" in fails(capsys, "tiny.py")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_image_that_breaks_while_training(config, capsys, monkeypatch, workers):
    """The check before the run cannot see a spoilt middle; the line must be as clear, from a worker too."""
    file = Path("data/images/002.png")
    content = bytearray(file.read_bytes())
    content[60:] = bytes(len(content) - 72) + content[-12:]
    file.write_bytes(content)
    text = fails(capsys, "tiny.py", "--cfg-options", f"train_dataloader.num_workers={workers}")
    assert "002.png: damaged or truncated" in text


def test_checkpoint_problems(config, capsys):
    assert "no.pth: the checkpoint file does not exist" in fails(capsys, "tiny.py", "--resume", "no.pth")
    Path("bad.pth").write_bytes(b"PK bad")
    assert "bad.pth: truncated or not a PyTorch checkpoint" in fails(capsys, "tiny.py", "--resume", "bad.pth")
    assert "bad.pth" in fails(capsys, "tiny.py", "--cfg-options", "load_from=bad.pth")


def test_wrong_devices_and_seed(config, capsys):
    assert "--devices must be at least 1, got 0" in fails(capsys, "tiny.py", "--devices", "0")
    assert "--seed must be at least 0, got -1" in fails(capsys, "tiny.py", "--seed", "-1")


def test_fine_tuning_from_the_command_line(config, capsys, monkeypatch):
    """The options reach the config, and the command for resuming repeats them."""
    original = StopHook.after_train_iter

    def interrupting(self, runner, *args, **kwargs):
        if runner.iter + 1 == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, runner, *args, **kwargs)

    assert main(["train", "tiny.py", "--work-dir", "first", "--cfg-options", "train_cfg.max_iters=2"]) == 0
    options = ["--from", "first", "--freeze", "1", "--layer-decay", "0.75", "--patience", "5"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(StopHook, "after_train_iter", interrupting)
        assert main(["train", "tiny.py", "--work-dir", "run", *options]) == 0
    out = capsys.readouterr().out
    assert "from first: backbone" in out
    assert f"tiny.py --work-dir run {' '.join(options)} --resume" in out
    text = Path("run/tiny.py").read_text()
    for words in ("start_from = 'first'", "frozen_stages=1", "layer_decay_rate=0.75", "EarlyStoppingHook"):
        assert words in text, words
    assert main(["train", "tiny.py", "--work-dir", "run", *options, "--resume"]) == 0
    out = capsys.readouterr().out
    assert "the weights of first are not loaded again, as the run is resumed" in out
    assert "the config has changed" not in out
    before, after = (checkpoints.read(next(iter(checkpoints.candidates(f)))) for f in ("first", "run"))
    same = {n for n, w in before["state_dict"].items() if torch.equal(w, after["state_dict"][n])}
    assert "backbone.net.layer1.0.conv1.weight" in same
    assert "backbone.net.layer3.0.conv1.weight" not in same


def test_a_model_in_place_of_a_config(capsys):
    assert "nuclei is a trained model and not a config; use: visionattn train CONFIG --from nuclei" in fails(
        capsys, "nuclei"
    )
    assert "does not exist" in fails(capsys, "nuclie")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "nuclie"], "--from 'nuclie' is neither a file, a run, .*; did you mean nuclei"),
        (["--freeze", "-1"], "--freeze must be a number of stages from 0, or 'all', got -1"),
        (["--freeze", "7"], "frozen_stages=7 must be -1 to 4, the number of stages in use"),
        (["--layer-decay", "0"], r"--layer-decay must be in \(0, 1\], got 0"),
        (["--layer-decay", "1.5"], r"--layer-decay must be in \(0, 1\], got 1.5"),
        (["--patience", "0"], "--patience must be at least 1, got 0"),
    ],
)
def test_mistakes_in_fine_tuning(config, capsys, options, message):
    assert re.search(message, fails(capsys, "tiny.py", *options))


CHOICES = ["--data", "data", "--task", "detection", "--model", "resnet10t", "--size", "64", "--batch", "2"]


def test_a_folder_is_enough(config, capsys, monkeypatch):
    monkeypatch.setenv("VISIONATTN_CACHE", "cache")
    assert main(["train", *CHOICES, "--epochs", "0.5", "--cfg-options", "train_dataloader.num_workers=0"]) == 0
    out = capsys.readouterr().out
    for words in (
        "images         train 8",
        "task           detection",
        "image size     64 x",
        "backbone       resnet10t",
    ):
        assert words in out, words
    file = next(Path("work_dirs/data").glob("*.py"))
    before = Config.fromfile(file)
    assert main(["train", "--data", "data", "--size", "96", "--resume"]) == 0
    assert "resuming with the config of the run" in capsys.readouterr().out
    assert Config.fromfile(file).train_dataloader == before.train_dataloader, "nothing is chosen again"
    assert main(["train", str(file), "--work-dir", "again"]) == 0
    first, second = (
        [json.loads(line)["loss"] for line in Path(folder, "metrics.jsonl").read_text().splitlines() if "loss" in line]
        for folder in ("work_dirs/data", "again")
    )
    assert len(first) == 2
    assert first == second


def test_config_and_data(config, capsys):
    assert "--size requires --data without CONFIG" in fails(capsys, str(config), "--size", "64")
    assert "give a CONFIG" in fails(capsys)
    assert "--data" in fails(capsys, "--data", "gone")
    assert "gone" in fails(capsys, str(config), "--data", "gone")


def test_the_command_for_resuming_repeats_the_choices(config, capsys, monkeypatch):
    monkeypatch.setenv("VISIONATTN_CACHE", "cache")
    original = StopHook.after_train_iter

    def interrupting(self, runner, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, runner, *args, **kwargs)

    monkeypatch.setattr(StopHook, "after_train_iter", interrupting)
    assert main(["train", *CHOICES, "--cfg-options", "train_dataloader.num_workers=0"]) == 130
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("resume with: "))
    assert set(CHOICES) <= set(line.split())
    assert line.endswith("--resume")
