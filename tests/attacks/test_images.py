"""Image files that lie about their size, fill the memory, or are of a kind that is more than an image."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("mmdet")

from image_loaders import DECODERS, HEADERS, small

import visionattn.openmmlab  # noqa: F401
from visionattn.io.images import image_size

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
