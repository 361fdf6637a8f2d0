"""Reading image files and their sizes."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL.Image")

from PIL import Image, ImageFile

from visionattn.errors import DataError
from visionattn.io.images import MAX_PIXELS, image_size, jpeg_round_trip, read_image, to_bgr

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (37, 53, 3), dtype=np.uint8)


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that says it is of this size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


def save(path: Path, array: np.ndarray = RGB, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


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
    with pytest.raises(DataError, match="the image does not exist"):
        image_size(file)
    Image.new("RGB", (30, 20)).save(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"a\.{suffix}: is truncated"):
        image_size(file)
    file.write_bytes(b"text")
    with pytest.raises(DataError, match="cannot be opened as an image"):
        image_size(file)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_colour_is_bgr(tmp_path, suffix):
    image = read_image(save(tmp_path / f"x.{suffix}"))
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, RGB[..., ::-1])


def test_gray_palette_alpha_and_one_bit(tmp_path):
    gray = RGB[..., 0]
    np.testing.assert_array_equal(read_image(save(tmp_path / "l.png", gray)), np.stack([gray] * 3, axis=2))
    rgba = np.dstack([RGB, rng.integers(0, 256, RGB.shape[:2], dtype=np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", rgba)), RGB[..., ::-1])
    la = np.dstack([gray, rgba[..., 3]])
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", la))[..., 1], gray)
    palette = Image.fromarray(RGB).quantize(200)
    expected = np.asarray(palette.convert("RGB"))[..., ::-1]
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), expected)
    palette.save(tmp_path / "pt.png", transparency=bytes(range(200)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path / "pt.png"), expected)
    bits = gray > 127
    np.testing.assert_array_equal(read_image(save(tmp_path / "1.png", bits))[..., 0], bits * np.uint8(255))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_scale_by_the_full_range(tmp_path, suffix):
    deep = np.array([[0, 128, 129, 257, 4095], [25700, 32768, 65278, 65534, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / f"deep.{suffix}", deep))
    assert image.shape == (2, 5, 3)
    np.testing.assert_array_equal(image[..., 0], [[0, 0, 1, 1, 16], [100, 128, 254, 255, 255]])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.filterwarnings("ignore:.*of such files|.*such files are")
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0, 0.25, 0.5], [0, 64, 128]),  # a dark image stays dark
        ([0, 0.3, 1.2], [0, 64, 255]),
        ([0, 128, 255.7], [0, 128, 255]),
        ([0, 2048, 4000], [0, 128, 249]),
    ],
)
def test_float(tmp_path, values, expected):
    image = read_image(save(tmp_path / "f.tif", np.array([values], dtype=np.float32)))
    np.testing.assert_array_equal(image[0, :, 0], expected)


@pytest.mark.parametrize("values", [[-1.0, 0], [0, np.nan], [0, np.inf], [0, 70000]])
def test_values_without_a_meaning_as_brightness(tmp_path, values):
    for kind in (np.float32, np.int32)[: 1 + bool(np.isfinite(values).all())]:
        with pytest.raises(DataError, match=r"g\.tif: pixels must be in \[0, 65535\]"):
            read_image(save(tmp_path / "g.tif", np.array([values], dtype=kind)))


def test_cmyk_jpeg(tmp_path):
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    image = read_image(save(tmp_path / "c.jpg", flat, mode="CMYK", quality=95))
    assert np.abs(image.astype(int) - flat[..., ::-1]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    """Stored so that a viewer that heeds the tag shows RGB: Pillow's own exif_transpose is the oracle."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"x.{suffix}", exif=exif)
    if suffix == "tif":
        with Image.open(path) as image:
            image.load()
            expected = np.asarray(image)
    else:
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
    assert expected.shape[:2] == ((53, 37) if orientation > 4 else (37, 53))
    np.testing.assert_array_equal(read_image(path), expected[..., ::-1])


def test_damaged_exif_leaves_the_picture(tmp_path):
    path = save(tmp_path / "x.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_image(path).shape == (37, 53, 3)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {}),
        ("jpg", {"progressive": True}),
        ("png", {}),
        ("bmp", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("gif", {}),
        ("webp", {}),
        ("ppm", {}),
    ],
)
@pytest.mark.parametrize("share", [0.95, 0.5, 0.02])
def test_truncated_files_are_errors(tmp_path, suffix, options, share, capfd):
    photo = np.asarray(Image.fromarray(RGB).resize((300, 200)))
    path = save(tmp_path / f"cut.{suffix}", photo, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_stays_an_error_where_other_code_made_pillow_lenient(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = save(tmp_path / "x.jpg", np.asarray(Image.fromarray(RGB).resize((300, 200))))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="truncated"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True  # left as it was


def test_giant_header_is_refused_before_decoding(tmp_path):
    path = png_header(tmp_path / "giant.png", 100_000, 100_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            DataError, match=r"giant\.png: 100000x100000 is 10000 megapixels, more than the limit `max_pixels` of 179"
        ):
            read_image(path)


def test_limit_is_the_callers(tmp_path):
    path = save(tmp_path / "x.png")
    assert read_image(path, max_pixels=53 * 37).shape == (37, 53, 3)
    with pytest.raises(DataError, match="`max_pixels`"):
        read_image(path, max_pixels=53 * 37 - 1)
    wide = png_header(tmp_path / "wide.png", 20_000, 20_000)  # more than twice Pillow's own limit
    with pytest.raises(DataError, match="truncated"):  # so it got as far as decoding
        read_image(wide, max_pixels=500_000_000)
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS < 200_000_000


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "fig.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n")
    for name, words in [
        ("text.jpg", "not an image"),
        ("zero.png", "empty"),
        ("fig.eps", "not an image"),
        ("gone.png", "the file does not exist"),
        (".", "is not a file"),
    ]:
        with pytest.raises(DataError, match=words):
            read_image(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_no_permission(tmp_path):
    path = save(tmp_path / "x.png")
    path.chmod(0)
    with pytest.raises(DataError, match="permission"):
        read_image(path)


def test_random_damage_is_an_image_or_a_data_error(tmp_path):
    photo = np.asarray(Image.fromarray(RGB).resize((80, 60)))
    for suffix in ("jpg", "png", "gif", "tif", "webp"):
        data = save(tmp_path / f"x.{suffix}", photo).read_bytes()
        for _ in range(40):
            damaged = bytearray(data)
            for at in rng.integers(0, min(len(data), 600), 4):
                damaged[at] = int(rng.integers(256))
            path = tmp_path / f"d.{suffix}"
            path.write_bytes(damaged)
            try:
                image = read_image(path, max_pixels=1_000_000)
            except DataError:
                continue
            assert image.ndim == 3
            assert image.shape[2] == 3


def test_jpeg_round_trip_is_what_a_file_would_hold(tmp_path):
    file = save(tmp_path / "x.png")
    image = read_image(file)
    again = jpeg_round_trip(image, 60)
    assert again.shape == image.shape
    assert not np.array_equal(again, image)
    assert np.abs(jpeg_round_trip(image, 100).astype(int) - image).mean() < np.abs(again.astype(int) - image).mean()


def test_to_bgr_of_an_image_in_memory():
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(buffer, "PNG", exif=exif)
    image = to_bgr(Image.open(buffer))
    np.testing.assert_array_equal(image, np.rot90(RGB, -1)[..., ::-1])
