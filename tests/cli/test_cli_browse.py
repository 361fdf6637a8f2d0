"""``visionattn browse``: the pictures show the annotations where the pipeline put them."""

import numpy as np
import pytest
from fixtures import tiny

pytest.importorskip("mmdet")

from visionattn.cli import main


@pytest.fixture
def config(tmp_path):
    tiny.make_coco(tmp_path / "data")
    return tiny.write_config(tmp_path / "tiny.py", tmp_path / "data")


def test_pictures(config, tmp_path, capsys):
    import cv2

    assert main(["browse", str(config), "--out", str(tmp_path / "o"), "--number", "3"]) == 0
    assert "3 images" in capsys.readouterr().out
    files = sorted((tmp_path / "o").iterdir())
    assert [f.name[:4] for f in files] == ["000_", "001_", "002_"]
    assert cv2.imread(str(files[0])).shape == (64, 64, 3)


def test_annotations_have_no_score(config, tmp_path, monkeypatch):
    from visionattn.inference.drawing import cards

    written = []
    original = cards.cv2.putText
    monkeypatch.setattr(
        cards.cv2, "putText", lambda image, text, *a: (written.append(text), original(image, text, *a))[1]
    )
    assert main(["browse", str(config), "--out", str(tmp_path / "o"), "--number", "2"]) == 0
    assert written
    assert set(written) <= {"red", "blue"}


def test_boxes_follow_the_pipeline(config):
    from visionattn.engine.config.load import load_config
    from visionattn.engine.samples import read_samples

    for sample in read_samples(load_config(config), "val", 4):
        assert sample.classes == ("red", "blue")
        for box, label in zip(sample.boxes.astype(int), sample.labels, strict=True):
            inside = sample.image[box[1] : box[3], box[0] : box[2]].reshape(-1, 3)
            assert np.median(inside, axis=0).argmax() == (2 if label == 0 else 0), "BGR: red is last"


def test_wrong_number(config, capsys):
    assert main(["browse", str(config), "--number", "0"]) == 1
    assert "--number must be at least 1, got 0" in capsys.readouterr().err


def test_configs_of_one_name_have_folders_of_their_own(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(config.read_text())
        assert main(["browse", f"{folder}/same.py", "--number", "1"]) == 0
        assert f"outputs/browse/{folder}/same" in capsys.readouterr().out
