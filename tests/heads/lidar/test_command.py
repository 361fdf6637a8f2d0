"""The commands on point clouds, from testing to inference."""

import json
import re

import pytest

pytest.importorskip("mmdet")

from visionattn.cli import main


def test_infer_writes_pictures_pages_and_boxes(pillars_run, scans_dir, tmp_path, capsys):
    out = tmp_path / "out"
    files = [str(scans_dir / "val" / f"{n:03d}.bin") for n in (0, 1)]
    assert main(["infer", *files, "--run", str(pillars_run), "--out", str(out), "--device", "cpu", "--html"]) == 0
    printed = capsys.readouterr().out
    assert "2 frames" in printed
    assert "ms per frame" in printed
    assert {p.name for p in out.iterdir()} == {
        "000.png",
        "000.html",
        "001.png",
        "001.html",
        "predictions.json",
        "report.html",
    }
    assert len(json.loads((out / "predictions.json").read_text())["frames"]) == 2


def test_an_unreadable_input_is_passed_over(pillars_run, scans_dir, tmp_path, capsys):
    (tmp_path / "bad.bin").write_bytes(b"12345")
    inputs = [str(tmp_path / "bad.bin"), str(scans_dir / "val" / "000.bin")]
    assert main(["infer", *inputs, "--run", str(pillars_run), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "1 frame, 1 input failed" in captured.out
    assert "skipped" in captured.err


def test_options_of_pictures_are_refused(pillars_run, scans_dir, capsys):
    assert main(["infer", str(scans_dir), "--run", str(pillars_run), "--tile", "640"]) == 1
    assert "--tile is not supported for points models" in capsys.readouterr().err


def test_test_measures_by_overlap_and_distance(pillars_run, tmp_path, capsys):
    assert main(["test", str(pillars_run), "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert metrics["mAP_bev_all"] > 80
    assert metrics["mAP"] > 50
    assert "mATE" in metrics
    assert metrics["mAP_L1"] > metrics["mAPH_L1"] > 20  # front and back of the blocks look alike
    shown = capsys.readouterr().out
    for row in (r"class +AP +ATE +ASE +AOE +AVE +AAE", r"class +AP L1 +APH L1 +AP L2 +APH L2"):
        assert re.search(row.replace(" +", r"\W+"), shown)


def test_browse_draws_what_the_pipeline_gives(pillars_run, tmp_path, capsys):
    config = next(pillars_run.glob("*.py"))
    assert main(["browse", str(config), "--out", str(tmp_path), "--number", "2"]) == 0
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["000_000.png", "001_001.png"]
    assert main(["check", str(config)]) == 0
