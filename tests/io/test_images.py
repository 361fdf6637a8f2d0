"""Sizes of image files."""

import pytest

pytest.importorskip("PIL.Image")

from PIL import Image

from visionattn.errors import DataError
from visionattn.io.images import image_size


def test_sizes_and_turned_photographs(tmp_path):
    picture = Image.new("RGB", (30, 20))
    picture.save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png") == (30, 20, False)
    exif = picture.getexif()
    for orientation, turned in ((1, False), (3, False), (6, True)):
        exif[0x0112] = orientation
        picture.save(tmp_path / "a.jpg", exif=exif)
        assert image_size(tmp_path / "a.jpg") == (30, 20, turned)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_files(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    with pytest.raises(DataError, match="there is no such image"):
        image_size(file)
    Image.new("RGB", (30, 20)).save(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"a\.{suffix}: is cut short"):
        image_size(file)
    file.write_bytes(b"text")
    with pytest.raises(DataError, match="does not open as an image"):
        image_size(file)
