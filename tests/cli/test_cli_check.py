"""``visionattn check`` as a person uses it."""

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from PIL import Image

from visionattn.cli import main

CONFIG = "configs/detection/atss/atss_dinat-pico_fpn_bccd.py"


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_sound_config(capsys):
    assert main(["check", CONFIG, "--model-only"]) == 0
    assert "no problems found" in capsys.readouterr().out


def test_every_problem_on_its_line(capsys):
    options = ["model.neck.in_channels=[64,128,250]", "model.bbox_head.in_channels=32", "model.neck.type=FNP"]
    assert main(["check", CONFIG, "--model-only", "--cfg-options", *options]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: atss_dinat-pico_fpn_bccd.py: 2 problems"
    assert "model.neck.type='FNP'" in lines[1]
    assert "[64, 128, 256]" in lines[2]


def test_what_only_building_shows(capsys):
    option = "model.bbox_head.anchor_generator.strides=[8,16]"
    assert main(["check", CONFIG, "--model-only", "--cfg-options", option, "model.neck.num_outs=1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert CONFIG in err


def test_data_that_is_not_there(capsys):
    assert main(["check", CONFIG, "--cfg-options", "custom_data.root=/no/such"]) == 1
    assert "custom_data.root must be an existing folder, got '/no/such'" in capsys.readouterr().err


def test_masks_are_read(tmp_path, capsys):
    for part, suffix, fill in (("images", "jpg", (9, 9, 9)), ("masks", "png", 1)):
        for split in ("train", "val"):
            (tmp_path / part / split).mkdir(parents=True)
            Image.new("RGB" if part == "images" else "L", (8, 6), fill).save(tmp_path / part / split / f"a.{suffix}")
    Image.fromarray(np.eye(6, 8, dtype=np.uint8)).save(tmp_path / "masks/train/a.png")
    config = "configs/segmentation/semantic_fpn/semantic-fpn_dinat-pico_masks_custom.py"
    options = [f"custom_data.root={tmp_path}", "custom_data.classes=[road,car]"]
    assert main(["check", config, "--cfg-options", *options]) == 0
    assert (
        "train: 1 image, 2 of 2 classes in their masks\nval: 1 image, 1 of 2 classes in their masks; none of road"
        in capsys.readouterr().out
    )
    options[1] = "custom_data.classes=[road]"
    assert main(["check", config, "--cfg-options", *options]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "masks/train/a.png: contains the value 1 (6 pixels), but the 1 classes are 0, and 255 is ignored" in err
