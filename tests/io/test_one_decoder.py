"""Checks, training pipelines and inference read the same pixels from every kind of file in docs/images.md."""

import struct
import warnings
import zlib

import numpy as np
import pytest

pytest.importorskip("mmengine")

from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.compat import install
from visionattn.errors import DataError
from visionattn.io.images import image_size, known_formats, read_image

cv2 = pytest.importorskip("cv2")
HEIGHT, WIDTH = 40, 56


def photo() -> Image.Image:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    values = np.stack([4 * columns, 6 * rows, 255 - 2 * (rows + columns)], -1).clip(0, 255).astype(np.uint8)
    values[:10, :20] = (250, 10, 10)
    return Image.fromarray(values)


def oriented(tag: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = tag
    return exif


def save(path, kind: str) -> None:
    image = photo()
    if kind.startswith("exif"):
        image.save(path, exif=oriented(int(kind[-1])))
    elif kind == "alpha":
        image.putalpha(Image.fromarray(np.tile(np.arange(WIDTH, dtype=np.uint8) * 4, (HEIGHT, 1))))
        image.save(path)
    elif kind == "gray with alpha":
        image.convert("LA").save(path)
    elif kind == "palette":
        image.quantize(16).save(path)
    elif kind == "palette with transparency":
        image.quantize(16).save(path, transparency=3)
    elif kind == "one bit":
        image.convert("1").save(path)
    elif kind == "CMYK":
        image.convert("CMYK").save(path)
    elif kind in ("16 bits", "12 bits in 16"):
        values = np.asarray(image.convert("L")).astype(np.uint16)
        Image.fromarray(values * (257 if kind == "16 bits" else 16)).save(path)
    elif kind in ("16 bits of color", "12 bits of color in 16", "12 bits of color, alpha"):
        values = np.asarray(image)[..., ::-1].astype(np.uint16) * (257 if kind == "16 bits of color" else 16)
        if kind.endswith("alpha"):
            values = np.dstack([values, np.zeros((HEIGHT, WIDTH), np.uint16)])
        cv2.imwrite(str(path), values)
    elif kind == "float to 255":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.float32)).save(path)
    elif kind == "MPO, exif 6":
        image.save(path, "MPO", save_all=True, append_images=[image], exif=oriented(6))
    elif kind == "late exif 6":  # behind the pixels, as some editors write it
        image.save(path)
        data = path.read_bytes()
        tag = oriented(6).tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I4s", len(tag), b"eXIf") + tag + struct.pack(">I", zlib.crc32(b"eXIf" + tag))
        path.write_bytes(data[:-12] + chunk + data[-12:])
    elif kind == "float":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255).save(path)
    elif kind == "pages":
        image.save(path, save_all=True, append_images=[Image.new("RGB", image.size, "black")] * 2)
    else:
        image.save(path)


KINDS = [
    ("a.jpg", "plain"), ("a.png", "plain"), ("a.bmp", "plain"), ("a.ppm", "plain"), ("a.tif", "plain"),
    ("a.webp", "plain"), ("a.jp2", "plain"), ("a.avif", "plain"), ("a.gif", "plain"),
    *((f"a.{suffix}", f"exif {tag}") for suffix in ("jpg", "png", "webp", "tif", "avif") for tag in (1, 3, 6, 7)),
    ("a.png", "alpha"), ("a.webp", "alpha"), ("a.tif", "alpha"), ("a.png", "gray with alpha"),
    ("a.png", "palette"), ("a.png", "palette with transparency"), ("a.gif", "palette with transparency"),
    ("a.png", "one bit"), ("a.tif", "one bit"), ("a.jpg", "CMYK"), ("a.tif", "CMYK"),
    ("a.png", "16 bits"), ("a.tif", "16 bits"), ("a.png", "12 bits in 16"), ("a.tif", "12 bits in 16"),
    *((f"a.{suffix}", f"{bits} bits of color{end}") for suffix in ("png", "tif", "ppm")
      for bits, end in ((16, ""), (12, " in 16"))),
    ("a.png", "12 bits of color, alpha"), ("a.tif", "float to 255"), ("a.jpg", "MPO, exif 6"), ("a.png", "late exif 6"),
    ("a.tif", "float"), ("a.tif", "pages"), ("a.gif", "pages"), ("a.webp", "pages"), ("a.png", "pages"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*of such files|.*such files are")
@pytest.mark.parametrize(("name", "kind"), KINDS, ids=lambda value: value.replace(" ", "-"))
def test_every_reader_gets_the_same(tmp_path, name, kind):
    if name.endswith("avif") and "AVIF" not in known_formats():
        pytest.skip("this Pillow has no AVIF")
    install()
    path = tmp_path / name
    save(path, kind)
    image = read_image(path)
    with DefaultScope.overwrite_default_scope("mmdet"):
        trained = TRANSFORMS.build({"type": "LoadImageFromFile"})({"img_path": str(path)})
    np.testing.assert_array_equal(trained["img"], image)
    assert trained["ori_shape"] == image.shape[:2]
    width, height, turned = image_size(path)
    assert ((width, height) if turned else (height, width)) == image.shape[:2]
    expected = np.asarray(photo())[..., ::-1].astype(int)
    turns = {1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1),
             7: lambda a: a[::-1, ::-1].swapaxes(0, 1)}  # fmt: skip
    if "exif" in kind:
        expected = turns[int(kind[-1])](expected)
    if kind in ("plain", "alpha", "pages") or "exif" in kind or "color" in kind:
        assert image.shape == expected.shape
        limit = 20 if name.endswith("gif") else 1.1 if "color" in kind else 12
        assert np.abs(image.astype(int) - expected).mean() < limit
    if kind in ("16 bits", "12 bits in 16", "float", "float to 255"):
        gray = np.asarray(photo().convert("L")).astype(int)
        assert np.abs(image[..., 0].astype(int) - gray).max() <= 1


def test_bit_depth_is_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr("visionattn.io.images._told", set())
    values = np.full((8, 8), 3000, np.uint16)
    values[0] = 0
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.warns(
        UserWarning, match=r"a\.tif: its 16-bit pixels are at most 3000; such files are read as 12-bit values"
    ):
        image = read_image(tmp_path / "a.tif")
    assert image[1, 0, 0] == round(3000 / 4095 * 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(tmp_path / "a.tif")
    for values, top in ((np.full((8, 8), 65535, np.uint16), 255), (np.full((8, 8), 40000, np.uint16), 156)):
        Image.fromarray(values).save(tmp_path / "b.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert int(read_image(tmp_path / "b.png")[0, 0, 0]) == top


def test_options_for_something_else_are_mmcvs(tmp_path):
    install()
    save(tmp_path / "a.png", "alpha")
    loader = TRANSFORMS.build({"type": "LoadImageFromFile", "color_type": "unchanged"})
    assert loader({"img_path": str(tmp_path / "a.png")})["img"].shape == (HEIGHT, WIDTH, 4)
    (tmp_path / "b.png").write_bytes(b"no image")
    assert (
        TRANSFORMS.build({"type": "LoadImageFromFile", "ignore_empty": True})({"img_path": tmp_path / "b.png"}) is None
    )
    with pytest.raises(DataError, match=r"b\.png"):
        TRANSFORMS.build({"type": "LoadImageFromFile"})({"img_path": tmp_path / "b.png"})


def test_heic_if_the_package_is_there(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    photo().save(tmp_path / "a.heic", quality=95)
    image = read_image(tmp_path / "a.heic")
    assert np.abs(image.astype(int) - np.asarray(photo())[..., ::-1]).mean() < 12
    from visionattn.io.inputs import find_inputs

    assert [source.path.name for source in find_inputs([tmp_path])] == ["a.heic"]


def test_pages_that_are_not_read_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("visionattn.io.images._told", set())
    save(tmp_path / "a.tif", "pages")
    with pytest.warns(UserWarning, match=r"a\.tif: has 3 pages or frames; of such files, only the first one is read"):
        read_image(tmp_path / "a.tif")
