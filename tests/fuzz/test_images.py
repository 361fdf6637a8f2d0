"""Image files with changed bytes: each reader decodes what is left or refuses it by one of our errors."""

import shutil
import tempfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("mmdet")

from image_loaders import DECODERS, HEADERS, small
from mutations import byte_edits, edited_bytes, fewer, try_read
from PIL import Image

import visionattn.openmmlab  # noqa: F401
from visionattn.errors import VisionattnError
from visionattn.io.images import read_image

KINDS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
LOADERS = DECODERS | HEADERS


def _load(loader: str, place: Path, content: bytes):
    """Some loaders make folders beside the file, so each file has a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=place))
    try:
        (folder / "picture.png").write_bytes(content)
        return try_read(lambda: LOADERS[loader](folder / "picture.png"))
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("loader", LOADERS)
@given(kind=st.sampled_from(KINDS), mode=st.sampled_from(["RGB", "L"]), edits=byte_edits)
def test_changed_bytes(loader, place, kind, mode, edits):
    _load(loader, place, edited_bytes(small(kind, (16, 12), mode), edits))


@pytest.mark.parametrize("loader", LOADERS)
@fewer(2)
@given(start=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"BM", b"RIFF", b"P5 "]),
       rest=st.binary(max_size=80))  # fmt: skip
def test_noise(loader, place, start, rest):
    _load(loader, place, start + rest)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["PNG", "BMP", "TIFF"]),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P", "1", "I;16", "LA", "CMYK", "F"]),
    turn=st.sampled_from([None, 0, 1, 3, 6, 8, 9, 65535]),
)
def test_sound_files_of_all_modes(place, size, kind, mode, turn):
    """Whatever the mode, a photograph is uint8 ``[H, W, 3]``; one turned by a quarter has its sides exchanged."""
    image = Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1]))
    stream = BytesIO()
    image = image.convert("I;16" if mode == "I;16" else mode)
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    try:
        image.save(stream, kind, exif=exif)
    except (OSError, KeyError):  # the kind has no such mode
        return
    (place / "a.png").write_bytes(stream.getvalue())
    found = try_read(lambda: read_image(place / "a.png"))
    if not isinstance(found, VisionattnError):
        assert found.dtype == np.uint8
        assert found.shape in ((*size[::-1], 3), (*size, 3))
    elif mode in ("RGB", "L", "P", "1"):
        raise found
