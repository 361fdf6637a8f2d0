"""Layouts of data sets."""

import cv2
import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.heads.super_resolution.sets import find_pairs


def write(path, height=24, width=36):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


@pytest.mark.parametrize(
    ("high", "low", "folder"),
    [
        ("0801.png", "X4/0801x4.png", "DIV2K_valid_LR_bicubic"),
        ("img_001.png", "X4/img_001x4.png", "LR_bicubic"),
        ("Bokuha.png", "X4/Bokuha_LRBI_x4.png", "LR_bicubic"),
        ("baby_HR_x4.png", "x4/baby_LRBI_x4.png", "LRBI"),
        ("sub/a.png", "sub/a.jpg", "low"),
    ],
)
def test_layouts(tmp_path, high, low, folder):
    write(tmp_path / "HR" / high)
    write(tmp_path / folder / low)
    write(tmp_path / folder / low.replace("x4", "x2").replace("X4", "X2"))
    (pair,) = find_pairs(tmp_path / "HR", tmp_path / folder, 4)
    assert (pair.high, pair.low) == (tmp_path / "HR" / high, tmp_path / folder / low)


def test_only_high_resolution_images(tmp_path):
    write(tmp_path / "b.png")
    write(tmp_path / "a.jpg")
    (tmp_path / "notes.txt").write_text("x")
    assert [(pair.name, pair.low) for pair in find_pairs(tmp_path, None, 2)] == [("a", None), ("b", None)]


def test_errors(tmp_path):
    with pytest.raises(DataError, match="HR: folder of high-resolution images not found"):
        find_pairs(tmp_path / "HR", None, 2)
    (tmp_path / "HR").mkdir()
    with pytest.raises(DataError, match="HR: contains no images"):
        find_pairs(tmp_path / "HR", None, 2)
    write(tmp_path / "HR/a.png")
    with pytest.raises(DataError, match="LR: folder of low-resolution images not found"):
        find_pairs(tmp_path / "HR", tmp_path / "LR", 2)
    write(tmp_path / "LR/X2/ax3.png")
    with pytest.raises(
        DataError, match=r"LR/X2: has no low-resolution image of .*a\.png; looked for ax2, a_LRBI_x2, a"
    ):
        find_pairs(tmp_path / "HR", tmp_path / "LR", 2)
