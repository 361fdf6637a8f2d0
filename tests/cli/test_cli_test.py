"""``visionattn test`` as a person uses it."""

import json
from pathlib import Path

import pytest
from fixtures import tiny

pytest.importorskip("mmdet")

from visionattn.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, a config and a run of four iterations."""
    tiny.torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("cli_test")
    tiny.make_coco(place / "data")
    tiny.write_config(place / "tiny.py", place / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", "tiny.py", "--cfg-options", "train_cfg.max_iters=4"]) == 0
    return place


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def fails(capsys, *argv: str) -> str:
    assert main(["test", *argv]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "unexpected" not in lines[0]
    return lines[0]


def test_table_and_files(capsys):
    assert main(["test", "tiny.py", "work_dirs/tiny/iter_4.pth", "--out", "out"]) == 0
    out = capsys.readouterr().out
    for word in ("AP50", "red", "blue", "written: out/results.json", "written: out/predictions.bbox.json"):
        assert word in out, word
    assert "INFO" not in out
    assert "loading annotations" not in out
    record = json.loads(Path("out/results.json").read_text())
    assert record["config"] == "tiny.py"
    assert record["images"] == 8


@pytest.mark.parametrize("what", ["tiny.py", "work_dirs/tiny"])
def test_run_is_found_without_naming_the_checkpoint(capsys, what):
    assert main(["test", what]) == 0
    assert "work_dirs/tiny/best_" in capsys.readouterr().out
    assert Path("work_dirs/tiny/test/results.json").is_file()


def test_checkpoint_that_does_not_fit(capsys):
    text = fails(capsys, "tiny.py", "work_dirs/tiny/iter_4.pth", "--cfg-options", "model.neck.out_channels=12",
                 "model.bbox_head.in_channels=12")  # fmt: skip
    assert "iter_4.pth: does not fit the model: neck: " in text
    assert "by the config tiny.py for the 2 classes red, blue" in text


def test_missing_checkpoint(capsys):
    assert "none.pth: the checkpoint file does not exist" in fails(capsys, "tiny.py", "none.pth")
    text = fails(capsys, "tiny.py", "--cfg-options", "work_dir=elsewhere")
    assert "elsewhere: no such work dir" in text


def test_report(capsys):
    assert main(["test", "work_dirs/tiny", "--report"]) == 0
    out = capsys.readouterr().out
    folder = Path("work_dirs/tiny/test")
    for name in ("report.html", "analysis.json", "thresholds.json"):
        assert f"written: work_dirs/tiny/test/{name}" in out
    page = (folder / "report.html").read_text()
    for title in ("Types of errors", "Score thresholds", "Confusion matrix", "Calibration", "Worst images"):
        assert f"{title}</h2>" in page
    assert page.count("<figure>") == json.loads((folder / "results.json").read_text())["images"]
    thresholds = json.loads((folder / "thresholds.json").read_text())
    assert list(thresholds["score_thr"]) == ["red", "blue"]
    thresholds["score_thr"] = {"red": 0.01, "blue": None}
    (folder / "thresholds.json").write_text(json.dumps(thresholds))
    assert main(["infer", "data/images/000.png", "--run", "work_dirs/tiny", "--score-thr", "best", "--out", "o"]) == 0
    assert "score at least the threshold of its class" in capsys.readouterr().out
    assert json.loads(Path("o/predictions.json").read_text())["settings"]["score_thr"] == {"red": 0.01}


def test_report_and_robustness(capsys):
    assert "--report cannot be combined with --robustness" in fails(capsys, "tiny.py", "--report", "--robustness")
