"""Image files that lie about their size, fill the memory, or are of a kind that is more than an image."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmdet")

import visionattn.openmmlab  # noqa: F401
from visionattn.data import cityscapes, convert
from visionattn.data.donors import read_photo
from visionattn.data.forgery_items import ForgeryImages
from visionattn.data.forgery_sets import ForgeryItem, read_truth
from visionattn.data.image_files import image_size
from visionattn.data.mask_folders import check_masks
from visionattn.data.panoptic_check import check_panoptic
from visionattn.inference.images import read_image
from visionattn.openmmlab import localization_metric
from visionattn.openmmlab.data_checks import check_images
from visionattn.openmmlab.panopticapi import pq_compute

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes, size: int | None = None) -> bytes:
    length = struct.pack(">I", len(data) if size is None else size)
    return length + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes = b"", depth: int = 1, colour: int = 0, extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return SIGNATURE + head + extra + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """So many zeros, compressed."""
    squeezer = zlib.compressobj(9)
    part = bytes(1 << 20)
    return b"".join([*(squeezer.compress(part) for _ in range(count >> 20)), squeezer.flush()])


def small(kind: str, size: tuple[int, int] = (64, 48), mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, kind)
    return stream.getvalue()


def tiff(*tags: tuple[int, int, int, int], following: int = 0, data: bytes = b"") -> bytes:
    """A TIFF of one directory: (tag, type, count, value)."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(tags)) + entries + struct.pack("<I", following) + data


def plain_tiff(width: int, height: int, **other: Any) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: 16}
    return tiff(*((tag, 4, 1, value & 0xFFFFFFFF) for tag, value in tags.items()), **other)


def exif(directory: bytes) -> bytes:
    """A sound JPEG with this as its EXIF data."""
    data = b"Exif\0\0II*\x00\x08\x00\x00\x00" + directory
    whole = small("JPEG")
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + whole[2:]


def box(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data) + 8) + kind + data


def riff(kind: bytes, data: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


BIG = 20_000 * 20_000
MUST_REFUSE: dict[str, Callable[[], bytes]] = {
    "png_100k_x_100k": lambda: png(100_000, 100_000, bytes(1000)),
    "png_bomb": lambda: SIGNATURE
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    + chunk(b"IDAT", zeros(20_000 * 2501))
    + chunk(b"IEND", b""),
    "png_2_31": lambda: png(0x7FFFFFFF, 0x7FFFFFFF, b"x"),
    "png_negative": lambda: png(0xFFFFFFFF, 1, b"x"),
    "png_no_pixels": lambda: png(0, 0, b""),
    "png_no_data": lambda: SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)),
    "png_bad_depth": lambda: png(64, 64, bytes(64 * 65), depth=77),
    "png_chunk_of_2_gb": lambda: png(64, 64, extra=chunk(b"tEXt", b"x", 0x7FFFFFFF)),
    "jpeg_65535": lambda: small("JPEG").replace(b"\x00\x30\x00\x40\x03", b"\xff\xff\xff\xff\x03", 1),
    "gif_65535": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + small("GIF")[10:],
    "webp_16383": lambda: riff(b"VP8L", b"\x2f" + struct.pack("<I", 0x0FFFFFFF) + bytes(32)),
    "webp_canvas": lambda: riff(b"VP8X", b"\x00\x00\x00\x00" + b"\xff\xff\xff" * 2),
    "bmp_2_31": lambda: b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 0x7FFFFFFF, 0x7FFFFFFF, 1, 24, *[0] * 6),
    "bmp_negative": lambda: b"BM" + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, -64, -64, 1, 24, *[0] * 6),
    "bmp_palette_of_2_gb": lambda: b"BM"
    + struct.pack("<IIIIiiHHIIiiII", 200, 0, 54, 40, 64, 64, 1, 8, 0, 0, 0, 0, 0x7FFFFFFF, 0),
    "ppm_huge": lambda: b"P6 99999999 99999999 255\n" + bytes(100),
    "ppm_digits": lambda: b"P6 " + b"9" * 5000 + b" 1 255\n" + bytes(100),
    "ppm_negative": lambda: b"P6 -64 -64 255\n" + bytes(100),
    "tiff_100k": lambda: plain_tiff(100_000, 100_000),
    "tiff_2_31": lambda: plain_tiff(0x7FFFFFFF, 0x7FFFFFFF),
    "tiff_offset_beyond": lambda: plain_tiff(64, 64).replace(struct.pack("<I", 200), struct.pack("<I", 0xFFFFFFF0)),
    "tiff_directory_beyond": lambda: b"II*\x00\xff\xff\xff\x7f" + bytes(16),
    "tiff_tiles_of_2_31": lambda: tiff(
        (256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
        (322, 4, 1, 0x7FFFFFF0), (323, 4, 1, 0x7FFFFFF0), (324, 4, 1, 200), (325, 4, 1, 0x7FFFFFFF),
    ),
    "tiff_strips_of_2_32": lambda: tiff(
        (256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 5), (262, 3, 1, 1), (277, 3, 1, 1),
        (273, 4, 0x3FFFFFFF, 100), (278, 4, 1, 1), (279, 4, 0x3FFFFFFF, 100),
    ),
    "tiff_empty_directory": lambda: tiff(),
    "jp2_huge": lambda: box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    + box(b"jp2h", box(b"ihdr", struct.pack(">IIHBBBB", 0x7FFFFFFF, 0x7FFFFFFF, 3, 7, 7, 0, 0))),
    "avif_huge": lambda: box(b"ftyp", b"avif\0\0\0\0avifmif1") + box(b"meta", bytes(4)
    + box(b"iprp", box(b"ipco", box(b"ispe", struct.pack(">III", 0, 0x7FFFFFFF, 0x7FFFFFFF))))),
    "jpeg_cut": lambda: small("JPEG")[:700],
    "png_cut": lambda: small("PNG")[:4000],
    "webp_cut": lambda: small("WEBP")[:300],
    "tiff_cut": lambda: small("TIFF")[:300],
    "gif_cut": lambda: small("GIF")[:900],
    "svg": lambda: b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><text>&x;</text></svg>',
    "html": lambda: b"<html><img src='file:///etc/passwd'></html>",
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n"
    b"%ImageData: 64 48 8 1 0 1 2 \"x\"\n%%EndComments\n(trace) (w) file closefile\n%%EOF\n",
    "ico_with_a_bomb": lambda: struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, 60, 22) + png(100_000, 100_000),
    "text": lambda: b"hello",
    "one_byte": lambda: b"\x89",
    "empty": lambda: b"",
}  # fmt: skip

CHUNKS: dict[str, Callable[[], bytes]] = {
    "png_text_bomb": lambda: png(8, 8, bytes(16), extra=chunk(b"zTXt", b"k\0\0" + zeros(200 << 20))),
    "png_itxt_bomb": lambda: png(8, 8, bytes(16), extra=chunk(b"iTXt", b"k\0\1\0\0\0" + zeros(200 << 20))),
    "png_profile_bomb": lambda: png(8, 8, bytes(16), extra=chunk(b"iCCP", b"p\0\0" + zeros(200 << 20))),
    "png_many_texts": lambda: png(8, 8, bytes(16), extra=chunk(b"zTXt", b"k\0\0" + zeros(1 << 20)) * 300),
    "png_too_much_data": lambda: SIGNATURE
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 1, 0, 0, 0, 0)) + chunk(b"IDAT", zeros(200 << 20))
    + chunk(b"IEND", b""),
    "tiff_loop": lambda: plain_tiff(8, 2, following=8, data=bytes(300)),
    "tiff_tags_of_4_gb": lambda: tiff(
        (256, 4, 1, 8), (257, 4, 1, 2), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200),
        (277, 3, 1, 1), (278, 4, 1, 2), (279, 4, 1, 16), (700, 1, 0xFFFFFFFF, 8), (33432, 12, 0x1FFFFFFF, 8),
        data=bytes(300),
    ),
    "jpeg_exif_loop": lambda: exif(struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)),
    "jpeg_exif_huge": lambda: exif(struct.pack("<HHHIII", 1, 0x0112, 12, 0x7FFFFFFF, 8, 0)),
}  # fmt: skip
"""Of these the pixels are sound: a reader may look at the rest, or not."""


def _masks(path: Path) -> Any:
    Image.new("RGB", (64, 48)).save(path.with_name("photo.png"))
    return check_masks([(path.with_name("photo.png"), path)], ["a", "b"])


def _image_of_a_mask(path: Path) -> Any:
    Image.new("L", (64, 48)).save(path.with_name("mask.png"))
    return check_masks([(path, path.with_name("mask.png"))], ["a", "b"])


def _panoptic_content(path: Path) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "map.jpg", "width": 64, "height": 48}],
        "annotations": [{"image_id": 1, "file_name": "map.png", "segments_info": [
            {"id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 64, 48], "area": 3072}]}],
        "categories": [{"id": 1, "name": "a", "isthing": 1}],
    }  # fmt: skip
    (path.parent / "images").mkdir()
    (path.parent / "maps").mkdir()
    os.rename(path, path.parent / "maps" / "map.png")
    Image.new("RGB", (64, 48)).save(path.parent / "images" / "map.jpg")
    file = path.parent / "panoptic.json"
    file.write_text(json.dumps(content))
    return file


def _panoptic(path: Path) -> Any:
    file = _panoptic_content(path)
    return check_panoptic(file, path.parent / "images", path.parent / "maps")


def _quality(path: Path) -> Any:
    file = _panoptic_content(path)
    return pq_compute(file, file, path.parent / "maps", path.parent / "maps")


def _cityscapes(path: Path) -> Any:
    for split in ("train", "val"):
        truth, images = path.parent / "gtFine" / split / "b", path.parent / "leftImg8bit" / split / "b"
        truth.mkdir(parents=True)
        images.mkdir(parents=True)
        (truth / "b_1_gtFine_instanceIds.png").write_bytes(path.read_bytes())
        Image.new("RGB", (64, 48)).save(images / "b_1_leftImg8bit.png")
    return cityscapes.convert_cityscapes(path.parent)


def _forgery_item(path: Path) -> Any:
    return ForgeryImages([ForgeryItem(path, None)])[0]["label"]


DECODERS: dict[str, Callable[[Path], Any]] = {
    "read_image": lambda path: read_image(path).shape,
    "read_photo": lambda path: read_photo(path).shape,
    "read_truth": lambda path: read_truth(path).shape,
    "forgery_item": _forgery_item,
    "mask": _masks,
    "panoptic_map": _panoptic,
    "panoptic_quality": _quality,
    "cityscapes": _cityscapes,
    "localization_mask": lambda path: localization_metric._mask(str(path)).shape,
    "convert": lambda path: convert._read(path, "RGB").shape,
}
HEADERS: dict[str, Callable[[Path], Any]] = {
    "image_size": image_size,
    "check_images": lambda path: check_images(path.parent, [{"file_name": path.name, "width": 64, "height": 48}]),
    "image_of_a_mask": _image_of_a_mask,
}


def with_ghostscript(call: Callable[[], Any], trace: Path) -> Callable[[], Any]:
    """A call with a Ghostscript at hand that leaves a trace, for readers of EPS start it."""
    folder = trace.parent / "bin"
    folder.mkdir(exist_ok=True)
    for name in ("gs", "gswin64c"):
        (folder / name).write_text(f"#!/bin/sh\n/bin/mkdir {trace}\n")
        (folder / name).chmod(0o755)

    def changed() -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
            return call()

    return changed


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """Each file once."""
    return {name: make() for name, make in (MUST_REFUSE | CHUNKS).items()}


@pytest.fixture
def tried(made, row) -> Callable[[str, str], Any]:
    """What a loader made of an attack."""

    def prepare(attack: str, load: Callable[[Path], Any]) -> Callable[[Path, Path], Callable[[], Any]]:
        def call(folder: Path, trace: Path) -> Callable[[], Any]:
            (folder / "picture.png").write_bytes(made[attack])
            return with_ghostscript(lambda: load(folder / "picture.png"), trace)

        return call

    def get(attack: str, loader: str) -> Any:
        return row(attack, loader, {n: prepare(attack, load) for n, load in (DECODERS | HEADERS).items()})

    return get


@pytest.mark.parametrize("loader", DECODERS)
@pytest.mark.parametrize("attack", MUST_REFUSE)
def test_lies(attack, loader, tried, refused):
    refused(tried(attack, loader))


@pytest.mark.parametrize("loader", HEADERS)
@pytest.mark.parametrize("attack", [*MUST_REFUSE, *CHUNKS])
def test_headers(attack, loader, tried, harmless):
    harmless(tried(attack, loader))


@pytest.mark.parametrize("loader", DECODERS)
@pytest.mark.parametrize("attack", CHUNKS)
def test_chunks(attack, loader, tried, harmless):
    harmless(tried(attack, loader))


@pytest.mark.parametrize("loader", ["read_image", "read_photo", "read_truth", "localization_mask", "convert", "size"])
@pytest.mark.parametrize("attack", ["pipe", "folder", "zeros_without_end", "link_to_itself", "missing", "nul_in_name"])
def test_not_files(attack, loader, tmp_path, refused):
    path = tmp_path / ("a\0b.png" if attack == "nul_in_name" else "picture.png")
    if attack == "pipe":
        os.mkfifo(path)
    elif attack == "folder":
        path.mkdir()
    elif attack == "zeros_without_end":
        path.symlink_to("/dev/zero")
    elif attack == "link_to_itself":
        path.symlink_to(path)
    refused(lambda: (DECODERS | {"size": image_size})[loader](path))


def test_sound_files_are_read(tmp_path):
    """Or all that is refused above may be refused for another reason."""
    (tmp_path / "picture.png").write_bytes(small("PNG"))
    for loader in ("read_image", "read_photo", "convert"):
        assert DECODERS[loader](tmp_path / "picture.png") == (48, 64, 3)
    for kind in ("JPEG", "WEBP", "TIFF", "BMP", "GIF"):
        (tmp_path / "picture.png").write_bytes(small(kind))
        assert DECODERS["read_image"](tmp_path / "picture.png") == (48, 64, 3)


def test_what_would_start_ghostscript(tmp_path, trace, ran):
    """Pillow itself would, had it been asked."""
    (tmp_path / "picture.eps").write_bytes(MUST_REFUSE["eps"]())
    ran(with_ghostscript(lambda: Image.open(tmp_path / "picture.eps").load(), trace))
    assert trace.is_dir()
