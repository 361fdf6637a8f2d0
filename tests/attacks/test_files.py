"""Point clouds, archives, videos and folders that lie, or lead out of their folder."""

import bz2
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2")

from visionattn.data.public import fetch_public
from visionattn.heads.action.clips import probe_video, read_frames
from visionattn.heads.action.keypoints import read_points as read_pose
from visionattn.heads.lidar.data.files import read_points
from visionattn.heads.lidar.data.object_database import ObjectDatabase
from visionattn.inference.files import plan_files
from visionattn.inference.video import VideoReader, VideoWriter
from visionattn.io.archives import unpack
from visionattn.io.fetch import download
from visionattn.io.inputs import find_inputs

# --- point clouds ----------------------------------------------------------------------------------------------------


def pcd(data: bytes = b"", kind: str = "binary", **changes: str) -> bytes:
    head = {"VERSION": "0.7", "FIELDS": "x y z i", "SIZE": "4 4 4 4", "TYPE": "F F F F", "COUNT": "1 1 1 1",
            "WIDTH": "2", "HEIGHT": "1", "POINTS": "2"} | changes  # fmt: skip
    return "".join(f"{k} {v}\n" for k, v in head.items()).encode() + f"DATA {kind}\n".encode() + data


def npy(shape: str, kind: str = "<f4", data: bytes = bytes(64), magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = struct.pack("<H", len(header)) if magic[6] == 1 else struct.pack("<I", len(header))
    return magic + size + header + data


def npz(path: Path, content: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in content.items():
            archive.writestr(f"{name}.npy", data)


HUGE = "99999999999"
CLOUDS: dict[str, tuple[str, bytes]] = {
    "pcd_points": ("a.pcd", pcd(bytes(32), WIDTH=HUGE, POINTS=HUGE)),
    "pcd_overflow": ("a.pcd", pcd(bytes(32), WIDTH=str(2**62), HEIGHT="4", POINTS="0")),
    "pcd_negative": ("a.pcd", pcd(bytes(32), WIDTH="-2", HEIGHT="-1")),
    "pcd_count": ("a.pcd", pcd(bytes(32), COUNT=f"1 1 1 {HUGE}")),
    "pcd_count_of_nothing": ("a.pcd", pcd(b"", COUNT=f"1 1 1 {2**40}", WIDTH="0", POINTS="0")),
    "pcd_size": ("a.pcd", pcd(bytes(32), SIZE="4 4 4 4000000000")),
    "pcd_digits": ("a.pcd", pcd(bytes(32), WIDTH="9" * 5000)),
    "pcd_no_end": ("a.pcd", b"# " + b"x" * 1_000_000),
    "pcd_ascii_long_word": ("a.pcd", pcd(b"1 2 3 4\n1 2 3 " + b"4" * 3_000_000, "ascii")),
    "pcd_ascii_bomb": ("a.pcd", pcd(b"1 " * 999_999 + b"4" * 1_000_000, "ascii", WIDTH="250000", POINTS="250000")),
    "pcd_ascii_text": ("a.pcd", pcd(b"1 2 3 4\n1 2 3 __import__('os')", "ascii")),
    "pcd_lzf_size": ("a.pcd", pcd(struct.pack("<II", 8, 0xFFFFFFF0) + bytes(8), "binary_compressed")),
    "pcd_lzf_bomb": ("a.pcd", pcd(struct.pack("<II", 8, 3_200_000_000) + b"\xe0\xff\x00" * 3, "binary_compressed",
                                  WIDTH="200000000", POINTS="200000000")),
    "pcd_lzf_reference": ("a.pcd", pcd(struct.pack("<II", 3, 32) + b"\x3f\xff\xff", "binary_compressed")),
    "bin_odd": ("a.bin", bytes(33)),
    "npy_shape": ("a.npy", npy("(1000000000000, 4)")),
    "npy_overflow": ("a.npy", npy(f"({2**62}, {2**62})")),
    "npy_negative": ("a.npy", npy("(-4, -4)")),
    "npy_axes": ("a.npy", npy("(" + "1, " * 100 + ")")),
    "npy_nested": ("a.npy", npy("(" * 4000 + ")" * 4000)),
    "npy_minus": ("a.npy", npy("-" * 9000 + "1")),
    "npy_header_of_4_gb": ("a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"),
    "npy_version_9": ("a.npy", npy("(4, 4)", magic=b"\x93NUMPY\x09\x00")),
    "npy_records": ("a.npy", npy("(4, 4)", "V4")),
    "npy_text": ("a.npy", npy("(4, 4)", "<U1000000")),
    "npz_is_text": ("a.npz", b"hello"),
    "empty_pcd": ("a.pcd", b""),
    "empty_npy": ("a.npy", b""),
    "empty_npz": ("a.npz", b""),
}  # fmt: skip
ARCHIVES: dict[str, Callable[[Path], None]] = {
    "npz_bomb": lambda path: npz(path, {"points": npy("(400000000, 4)", data=b"")[:-1] + bytes(1 << 20)}),
    "npz_shape": lambda path: npz(path, {"points": npy("(1000000000000, 4)")}),
    "npz_short": lambda path: npz(path, {"points": npy("(4, 5)")}),
    "npz_claims_5_gb": lambda path: claim(path, 5 << 30),
    "npz_claims_2_gb": lambda path: claim(path, 0x7FFFFFFF),
    "npz_lzma": lambda path: npz(path, {"points": npy("(4, 5)")}, zipfile.ZIP_LZMA),
    "npz_nothing": lambda path: npz(path, {}),
    "npz_damaged": lambda path: damaged(path),
    "npz_unknown_method": lambda path: method(path, 77),
    "npz_encrypted": lambda path: flag(path, 1),
}


def claim(path: Path, size: int) -> None:
    """The directory says that an array is of that size."""
    npz(path, {"points": npy("(4, 4)")})
    data = bytearray(path.read_bytes())
    place = data.rfind(b"PK\x01\x02")
    data[place + 24 : place + 28] = struct.pack("<I", min(size, 0xFFFFFFFE))
    path.write_bytes(data)


def damaged(path: Path) -> None:
    npz(path, {"points": npy("(4, 4)")})
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)


def method(path: Path, number: int) -> None:
    npz(path, {"points": npy("(4, 4)")})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = data.rfind(mark)
        data[place + offset : place + offset + 2] = struct.pack("<H", number)
    path.write_bytes(data)


def flag(path: Path, bits: int) -> None:
    npz(path, {"points": npy("(4, 4)")})
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.rfind(mark)
        data[place + offset : place + offset + 2] = struct.pack("<H", bits)
    path.write_bytes(data)


CLOUD_LOADERS: dict[str, Callable[[Path], Any]] = {
    "point_files": lambda path: read_points(path).points.shape,
    "object_database": lambda path: len(ObjectDatabase.load(path)),
    "pose_files": lambda path: read_pose(path, "npy").shape,
}


@pytest.mark.parametrize("loader", CLOUD_LOADERS)
@pytest.mark.parametrize("attack", [*CLOUDS, *ARCHIVES])
def test_clouds(attack, loader, row, refused):
    def prepare(name: str) -> Callable[[Path, Path], Callable[[], Any]]:
        def call(folder: Path, trace: Path) -> Callable[[], Any]:
            path = folder / (CLOUDS[attack][0] if attack in CLOUDS else "a.npz")
            if attack in CLOUDS:
                path.write_bytes(CLOUDS[attack][1])
            else:
                ARCHIVES[attack](path)
            return lambda: CLOUD_LOADERS[name](path)

        return call

    refused(row(attack, loader, {name: prepare(name) for name in CLOUD_LOADERS}))


# --- archives of data sets -------------------------------------------------------------------------------------------


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    info.create_system = 3
    return info


def build(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in entries:
            archive.writestr(name, data, kind)


ZIPS: dict[str, Callable[[Path], Any]] = {
    "up": lambda p: build(p, ("../evil.txt", b"x")),
    "up_inside": lambda p: build(p, ("a/../../evil.txt", b"x")),
    "absolute": lambda p: build(p, ("/tmp/evil.txt", b"x")),
    "windows": lambda p: build(p, ("..\\evil.txt", b"x")),
    "drive": lambda p: build(p, ("C:/evil.txt", b"x")),
    "link_out": lambda p: build(p, (entry("link", stat.S_IFLNK | 0o777), b"/tmp"), ("link/evil.txt", b"x")),
    "link_up": lambda p: build(p, (entry("l.txt", stat.S_IFLNK | 0o777), b"../../../etc/passwd")),
    "device": lambda p: build(p, (entry("d.txt", stat.S_IFCHR | 0o777), b"")),
    "pipe": lambda p: build(p, (entry("p.txt", stat.S_IFIFO | 0o777), b"")),
    "twice": lambda p: twice(p),
    "file_and_folder": lambda p: build(p, ("a.txt", b"x"), ("a.txt/b.txt", b"x")),
    "bomb": lambda p: build(p, *((f"{n}.txt", bytes(20_000_000)) for n in range(3))),
    "many_files": lambda p: build(p, *((f"{n}.txt", b"") for n in range(300))),
    "long_name": lambda p: build(p, ("x" * 5000 + ".txt", b"x")),
    "no_zip": lambda p: p.write_text("hello" * 100),
    "cut": lambda p: cut(p),
    "lzma_damaged": lambda p: broken(p, zipfile.ZIP_LZMA),
    "bzip2_damaged": lambda p: broken(p, zipfile.ZIP_BZIP2),
    "deflate_damaged": lambda p: broken(p, zipfile.ZIP_DEFLATED),
    "overlapping": lambda p: overlapping(p),
}


def cut(path: Path) -> None:
    build(path, ("a.txt", b"x" * 1000))
    os.truncate(path, 60)


def twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        build(path, ("a.txt", b"x"), ("a.txt", b"y"))


def broken(path: Path, kind: int) -> None:
    noise = np.random.default_rng(0).bytes(4000)
    build(path, ("a.txt", noise), kind=kind)
    data = bytearray(path.read_bytes())
    data[45:1000] = np.random.default_rng(1).bytes(955)
    path.write_bytes(data)


def overlapping(path: Path) -> None:
    """Many names for one record."""
    build(path, ("a.txt", bytes(10_000_000)))
    data = path.read_bytes()
    start = data.rfind(b"PK\x01\x02")
    end = data.rfind(b"PK\x05\x06")
    one = bytearray(data[start:end])
    parts = []
    for number in range(100):
        one[46:51] = f"{number:02}txt".encode()[:5]
        parts.append(bytes(one))
    directory = b"".join(parts)
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 100, 100, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + tail)


@pytest.mark.parametrize("loader", ["unpack", "fetch_public"])
@pytest.mark.parametrize("attack", ZIPS)
def test_archives(attack, loader, tmp_path, harmless):
    ZIPS[attack](tmp_path / "a.zip")
    target = tmp_path / "deep" / "target"
    target.mkdir(parents=True)
    if loader == "unpack":
        wanted = lambda name: True  # noqa: E731
        call = lambda: unpack(tmp_path / "a.zip", target, wanted=wanted, max_bytes=30_000_000, max_files=200)  # noqa: E731
    else:
        call = lambda: fetch_public("bccd", target / "bccd", archive=tmp_path / "a.zip")  # noqa: E731
    found = harmless(call)
    assert found.ours or (loader == "unpack" and attack in ("link_up", "device", "pipe", "link_out")), found
    assert not list(Path("/tmp").glob("evil.txt"))
    written = [p for p in tmp_path.rglob("*") if not p.is_relative_to(target) and p.name not in ("a.zip", "deep")]
    assert not [p for p in written if p != target and p.name != "trace"], written
    assert not [p for p in target.rglob("*") if p.is_symlink()]
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    assert size <= 31_000_000


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "/etc/passwd", "http://[", "http://", "http://a b/", "data:,x", ""]
)
def test_addresses(url, tmp_path, refused):
    refused(lambda: download(url, tmp_path / "x", max_bytes=10, attempts=1, timeout=1))
    assert not list(tmp_path.glob("x*"))


# --- videos ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    with VideoWriter(path, 64, 48, 10) as writer:
        for index in range(6):
            writer.write(np.full((48, 64, 3), 40 * index, np.uint8))
    return path.read_bytes()


def _patched(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    place = data.find(box)
    assert place > 0
    return data[: place + offset] + value + data[place + offset + len(value) :]


VIDEOS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda v: b"",
    "text": lambda v: b"hello",
    "cut": lambda v: v[: len(v) // 2],
    "no_index": lambda v: v.replace(b"moov", b"zzzz"),
    "frame_count": lambda v: _patched(v, b"stsz", 12, b"\xff\xff\xff\x7f"),
    "chunk_count": lambda v: _patched(v, b"stco", 8, b"\xff\xff\xff\x7f"),
    "chunk_place": lambda v: _patched(v, b"stco", 12, b"\x7f\xff\xff\xff"),
    "duration": lambda v: _patched(v, b"mvhd", 16, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
    "time_scale": lambda v: _patched(v, b"mdhd", 16, b"\0\0\0\0"),
    "size": lambda v: _patched(v, b"mp4v", 28, b"\xff\xff\xff\xff"),
    "size_of_box": lambda v: b"\xff\xff\xff\xff" + v[4:],
    "playlist": lambda v: b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
    "concat": lambda v: b"ffconcat version 1.0\nfile '{secret}'\n",
    "dash": lambda v: b'<?xml version="1.0"?><MPD><Period><BaseURL>file://{secret}</BaseURL></Period></MPD>',
    "image": lambda v: b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", 100_000, 100_000)
    + b"\x08\x02\0\0\0" + bytes(4),
    "noise": lambda v: np.random.default_rng(0).bytes(20_000),
}  # fmt: skip


def _all_frames(path: Path) -> Any:
    with VideoReader(path) as reader:
        count = sum(1 for _ in reader)
        reader.check_complete()
        return count, reader.width, reader.height


VIDEO_LOADERS: dict[str, Callable[[Path], Any]] = {
    "video_reader": _all_frames,
    "probe_video": probe_video,
    "read_frames": lambda path: read_frames(path, [0, 3, 5]).shape,
}


@pytest.mark.parametrize("loader", VIDEO_LOADERS)
@pytest.mark.parametrize("attack", VIDEOS)
def test_videos(attack, loader, tmp_path, video, harmless):
    (tmp_path / "elsewhere").mkdir()
    secret = tmp_path / "elsewhere" / "secret.mp4"
    secret.write_bytes(video)
    path = tmp_path / "v.mp4"
    path.write_bytes(VIDEOS[attack](video).replace(b"{secret}", str(secret).encode()))
    found = harmless(lambda: VIDEO_LOADERS[loader](path), megabytes=400)
    if attack in ("empty", "text", "no_index", "noise", "playlist", "concat", "dash", "image"):
        assert found.ours, found


# --- folders ---------------------------------------------------------------------------------------------------------


def _infer(path: Path) -> Any:
    sources = find_inputs([path])
    plan = plan_files(sources, path / "out")
    return [str(s.path) for s in sources], plan.names


@pytest.mark.parametrize(
    "attack", ["loop", "file_loop", "dangling", "pipe", "newline", "surrogate", "long", "nul", "glob"]
)
def test_inputs_of_infer(attack, tmp_path, harmless):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"x")
    given: Any = folder
    if attack == "loop":
        (folder / "sub").symlink_to(folder)
        (folder / "sub2").symlink_to(folder)
    elif attack == "file_loop":
        (folder / "b.png").symlink_to(folder / "c.png")
        (folder / "c.png").symlink_to(folder / "b.png")
    elif attack == "dangling":
        (folder / "b.png").symlink_to(tmp_path / "nothing")
    elif attack == "pipe":
        os.mkfifo(folder / "b.png")
    elif attack == "newline":
        (folder / "b\nc.png").write_bytes(b"x")
    elif attack == "surrogate":
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.png")).write_bytes(b"x")
    elif attack == "long":
        (folder / ("x" * 251 + ".png")).write_bytes(b"x")
    else:
        given = tmp_path / ("a\0b.png" if attack == "nul" else "[" * 200)
    found = harmless(lambda: _infer(given))
    assert found.ours or attack not in ("nul", "glob"), found


def test_compressions_are_what_they_are(tmp_path):
    """The archives above are read where they are sound."""
    assert bz2.compress(b"x")
    assert zlib.compress(b"x")
    build(tmp_path / "a.zip", ("a/b.txt", b"hello"))
    (tmp_path / "t").mkdir()
    assert unpack(tmp_path / "a.zip", tmp_path / "t", wanted=lambda n: True, max_bytes=10, max_files=2) == 1
    np.savez(tmp_path / "a.npz", points=np.ones((4, 4), np.float32))
    assert read_points(tmp_path / "a.npz").points.shape == (4, 4)
