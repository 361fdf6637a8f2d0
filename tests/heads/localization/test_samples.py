import cv2
import numpy as np
import pytest

pytest.importorskip("sklearn")

from visionattn.errors import DataError
from visionattn.heads.localization.samples import build_single_digits
from visionattn.heads.localization.sets import read_localization


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_single_digits(tmp_path_factory.mktemp("digits") / "data", train=12, val=3, test=4)


def test_each_picture_has_one_digit_of_the_size_asked_for(folder):
    for split, count in (("train", 12), ("val", 3), ("test", 4)):
        images = read_localization(folder / "metadata" / split, need_objects=True)
        assert len(images) == count
        for image in images:
            assert cv2.imread(str(folder / "images" / image.image_id)).shape == (128, 128, 3)
            assert image.size == (128, 128)
            ((x0, y0, x1, y1),) = image.boxes.tolist()
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
            assert 0.28 * 128 <= max(x1 - x0, y1 - y0) <= 0.57 * 128


def test_masks_are_those_of_the_boxes(folder):
    boxes = read_localization(folder / "metadata/test")
    for image, with_box in zip(read_localization(folder / "metadata/test-masks"), boxes, strict=True):
        mask = cv2.imread(str(folder / "masks" / image.masks[0]), cv2.IMREAD_GRAYSCALE) > 0
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] == with_box.boxes[0].tolist()
        assert image.label == with_box.label


def test_same_arguments_give_the_same_pictures(folder, tmp_path):
    again = build_single_digits(tmp_path / "data", train=12, val=3, test=4)
    for file in sorted(folder.rglob("*.jpg")):
        assert (again / file.relative_to(folder)).read_bytes() == file.read_bytes()
    before = (again / "README.txt").stat().st_mtime_ns
    assert build_single_digits(again, train=12, val=3, test=4) == again
    assert (again / "README.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("argument", [{"train": 0}, {"size": 32}, {"extent": (0.5, 0.4)}])
def test_arguments_out_of_range_are_named(tmp_path, argument):
    with pytest.raises(DataError, match=next(iter(argument))):
        build_single_digits(tmp_path / "x", **argument)
