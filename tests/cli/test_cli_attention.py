"""The command that draws attention."""

import cv2
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from visionattn.cli import main


def test_page(tmp_path, capsys):
    rng = np.random.default_rng(0)
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (60, 90, 3)).astype(np.uint8))
    arguments = ["attention", str(tmp_path / "a.png"), "--model", "dinat_pico", "--random", "--size", "64"]
    assert main([*arguments, "--query", "10", "50", "--layers", "0", "11", "--out", str(tmp_path / "out")]) == 0
    assert "12 attention layers" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "Query at (10, 50)" in page
    assert sorted(p.name for p in (tmp_path / "out").glob("*.png")) == [
        "distance.png", "query0_00.png", "query0_11.png",
    ]  # fmt: skip
    for extra, message in (
        (["--query", "90", "5"], "--query must be inside the image of 90x60 pixels"),
        (["--layers", "12"], "--layers must be in [0, 11]"),
        (["--size", "8"], "--size must be at least 32"),
    ):
        assert main([*arguments, *extra]) == 1
        assert message in capsys.readouterr().err
    assert main(["attention", str(tmp_path / "a.png"), "--model", "nothing"]) == 1
    assert "--model 'nothing' is not a timm model" in capsys.readouterr().err


def test_class_activation_map_of_a_trained_classifier_only(tmp_path):
    import timm
    import torch

    import visionattn  # noqa: F401  registers dinat_pico

    torch.manual_seed(0)
    torch.save(timm.create_model("dinat_pico", num_classes=1000).state_dict(), tmp_path / "weights.pth")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    arguments = ["attention", str(tmp_path / "a.png"), "--model", "dinat_pico", "--size", "64", "--layers", "0"]
    arguments += ["--out", str(tmp_path / "out")]
    assert main([*arguments, "--random"]) == 0
    assert "Class activation map" not in (tmp_path / "out" / "index.html").read_text()
    assert main([*arguments, "--checkpoint", str(tmp_path / "weights.pth")]) == 0
    assert "Class activation map" in (tmp_path / "out" / "index.html").read_text()


def test_backbone_of_a_run(segmentor_run, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((60, 90, 3), np.uint8))
    arguments = ["attention", str(tmp_path / "a.png"), "--run", str(segmentor_run), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--layers", "0"]) == 0
    assert "attention layers" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text()
    assert "backbone." in page
    assert "Class activation map" not in page
    assert main([*arguments, "--model", "dinat_pico"]) == 1
    assert "exactly one of --model, --run and --config is required" in capsys.readouterr().err
