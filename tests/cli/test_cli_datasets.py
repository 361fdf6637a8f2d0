"""``visionattn data convert`` and ``visionattn data stats``."""

from pathlib import Path

import pytest
from fixtures.annotated import BOXES, photos
from PIL import Image

from visionattn.cli import main
from visionattn.data.coco import check_coco


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BOXES["labelme: embedded"](tmp_path / "in", photos(polygons=True))
    return tmp_path / "in"


def test_convert(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["data", "convert", str(folder), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{folder}: labelme (JSON files such as" in printed
    assert "images embedded in annotations, written to files: 5" in printed
    assert (
        f"custom_data.root={tmp_path / 'out'} custom_data.train_ann=train.json custom_data.val_ann=val.json" in printed
    )
    assert "visionattn train mask-rcnn_dinat-pico_fpn_coco_custom" in printed
    for split, count in (("train", 3), ("val", 2)):
        assert check_coco(tmp_path / "out" / f"{split}.json", tmp_path / "out" / "images" / split).images == count


def test_stats(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    sheet = tmp_path / "sheets" / "sheet.jpg"
    assert main(["data", "stats", str(folder), "--out", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert "boxes and masks" in printed
    assert "near-duplicates in train and val: 0 pairs" in printed
    with Image.open(sheet) as image:
        assert image.size == (4 * 360, 2 * 360)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "convert requires the folder of the data"),
        (["convert", "{in}"], "convert requires --out"),
        (["stats", "{in}", "--val", "0.5"], "--val does not apply to 'stats'"),
        (["bccd", "{in}"], "`folder` does not apply to 'bccd'"),
        (["convert", "{in}", "--out", "{out}", "--val", "2"], "--val must be between 0 and 1"),
        (["convert", "{in}", "--out", "{out}", "--from", "coco"], "no object has a class (coco)"),
        (["convert", "{out}", "--out", "{in}"], "is not a folder"),
        (["stats", "{in}", "--out", "x.png"], "--out must be a .jpg file"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, arguments, message):
    words = [word.replace("{in}", str(folder)).replace("{out}", str(tmp_path / "out")) for word in arguments]
    assert main(["data", *words]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
