"""A job outside of the package: one folder, and its name in the list of jobs, are all it takes."""

import json

import cv2
import numpy as np
import pytest
from fixtures.paths import REPO

pytest.importorskip("mmdet")

import visionattn.openmmlab
from visionattn.cli import main
from visionattn.inference import Predictor


def write_images(folder, number: int, seed: int) -> None:
    """Dark noise with zero to five bright squares, and their numbers in counts.json."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    counts = {}
    for index in range(number):
        image = rng.integers(20, 60, (64, 64, 3), dtype=np.uint8)
        count = int(rng.integers(6))
        for cell in rng.permutation(16)[:count]:
            y, x = 16 * (cell // 4) + 3, 16 * (cell % 4) + 3
            image[y : y + 10, x : x + 10] = 230
        cv2.imwrite(str(folder / f"{index:03d}.png"), image)
        counts[f"{index:03d}.png"] = count
    (folder / "counts.json").write_text(json.dumps(counts))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with data and a training run."""
    visionattn.openmmlab.add_job("toy_job")
    place = tmp_path_factory.mktemp("toy")
    write_images(place / "train", 48, 0)
    write_images(place / "val", 12, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["train", str(REPO / "tests/toy_job/config.py"), "--work-dir", "run"]) == 0
    return place


@pytest.fixture(autouse=True)
def _here(home, monkeypatch):
    monkeypatch.chdir(home)


def test_it_is_measured(home, capsys):
    assert main(["test", "run", "--out", "test", "--report"]) == 0
    assert "The errors of counting models are not analyzed further" in (home / "test/report.html").read_text()
    assert json.loads((home / "test/results.json").read_text())["metrics"]["count_error"] < 1.3  # 1.5 by the mean


def test_it_predicts_on_files(home, capsys):
    assert main(["infer", "val", "--run", "run", "--out", "out"]) == 0
    assert "squares: " in capsys.readouterr().out
    content = json.loads((home / "out/predictions.json").read_text())
    truth = json.loads((home / "val/counts.json").read_text())
    assert content["model"]["task"] == "counting"
    errors = [abs(record["count"] - truth[record["file"].rsplit("/", 1)[-1]]) for record in content["images"]]
    assert np.mean(errors) == pytest.approx(
        json.loads((home / "test/results.json").read_text())["metrics"]["count_error"], abs=2e-3
    )
    assert cv2.imread(str(home / "out/000.png")).shape == (64, 64, 3)
    assert "squares" in (home / "out/report.html").read_text()


def test_it_predicts_on_arrays(home):
    predictor = Predictor.from_run("run", "cpu")
    image = cv2.imread("val/000.png")
    found = predictor(image)
    assert found.count == pytest.approx(predictor("val/000.png").count, abs=1e-4)
    assert (found.draw() != image).any()


def test_unsupported_options_are_rejected(home, capsys):
    assert main(["infer", "val", "--run", "run", "--tta"]) == 1
    assert "--tta is not supported for counting models" in capsys.readouterr().err


def test_it_is_checked_and_browsed(home, capsys):
    config = str(REPO / "tests/toy_job/config.py")
    assert main(["check", config]) == 0
    assert main(["browse", config, "--number", "2", "--out", "browse"]) == 0
    assert len(list((home / "browse").glob("*.png"))) == 2


def test_it_is_exported(home, capsys):
    torch = pytest.importorskip("torch")
    assert main(["export", "--run", "run", "--size", "64", "--out", "counter.pt2"]) == 0
    program = torch.export.load("counter.pt2").module()
    image = cv2.imread("val/000.png")
    tensor = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    (counts,) = program(tensor)
    assert float(counts[0]) == pytest.approx(Predictor.from_run("run", "cpu")(image).count, abs=1e-3)
