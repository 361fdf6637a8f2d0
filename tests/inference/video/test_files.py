import struct

import numpy as np
import pytest

from visionattn.errors import DataError
from visionattn.inference.video import VideoReader, VideoWriter


def write(path, frames: int = 12, height: int = 48, width: int = 64, fps: float = 10) -> None:
    with VideoWriter(path, width, height, fps) as writer:
        for index in range(frames):
            frame = np.full((height, width, 3), 40, np.uint8)
            frame[:, 4 * index : 4 * index + 8] = (0, 0, 255)
            writer.write(frame)


def test_frames_come_back_in_order(tmp_path):
    write(tmp_path / "v.mp4")
    with VideoReader(tmp_path / "v.mp4") as reader:
        assert (reader.width, reader.height, reader.fps, reader.frames) == (64, 48, 10, 12)
        frames = list(reader)
        reader.check_complete()
    assert len(frames) == 12
    for index, frame in enumerate(frames):
        assert frame.shape == (48, 64, 3)
        assert abs(int(frame[..., 2].mean(axis=0).argmax()) - 4 * index) <= 8
        assert frame[24, 4 * index + 4, 2] > 200 > 90 > frame[24, 4 * index + 4, 0]


def test_odd_sizes_lose_no_pixel(tmp_path):
    write(tmp_path / "v.mp4", height=47, width=63)
    with VideoReader(tmp_path / "v.mp4") as reader:
        assert (reader.width, reader.height) == (64, 48)
    with VideoWriter(tmp_path / "w.mp4", 64, 48, 10) as writer, pytest.raises(ValueError, match="shape"):
        writer.write(np.zeros((47, 63, 3), np.uint8))


def test_what_is_no_video(tmp_path, capfd):
    (tmp_path / "text.mp4").write_text("hello")
    write(tmp_path / "whole.mp4")
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    for name, words in [
        ("text.mp4", "not a video"),
        ("cut.mp4", "damaged or truncated"),
        ("gone.mp4", "no such video"),
    ]:
        with pytest.raises(DataError, match=words):
            VideoReader(tmp_path / name)
    assert capfd.readouterr() == ("", "")  # OpenCV and FFmpeg keep quiet


def test_frames_that_cannot_be_decoded_are_an_error(tmp_path):
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "v.mp4", 64, 48, 10) as writer:
        for _ in range(60):
            writer.write(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    start = data.index(b"mdat") + len(data) // 4
    data[start : start + len(data) // 3] = bytes(len(data) // 3)
    (tmp_path / "v.mp4").write_bytes(data)
    with VideoReader(tmp_path / "v.mp4") as reader:
        assert len(list(reader)) < 57
        with pytest.raises(DataError, match="of 60 frames can be decoded"):
            reader.check_complete()


def test_frames_too_large(tmp_path):
    write(tmp_path / "v.mp4")
    with pytest.raises(DataError, match="megapixels"):
        VideoReader(tmp_path / "v.mp4", max_pixels=1000)


def test_writer_leaves_nothing_half_done(tmp_path):
    writer = VideoWriter(tmp_path / "v.mp4", 64, 48, 10)
    writer.write(np.zeros((48, 64, 3), np.uint8))
    assert not (tmp_path / "v.mp4").exists()
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="cannot write"):
        VideoWriter(tmp_path / "gone" / "v.mp4", 64, 48, 10)


def with_times(data: bytes, first: int, second: int) -> bytes:
    """Change an MP4 file so that the frames of its halves are these numbers of ticks apart, instead of 1024."""

    def edit(part: bytes) -> bytes:
        out, at = b"", 0
        while at < len(part):
            size, kind = struct.unpack(">I4s", part[at : at + 8])
            body = part[at + 8 : at + size]
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
                body = edit(body)
            if kind == b"stts":
                count = struct.unpack(">I", body[8:12])[0]
                body = body[:4] + struct.pack(">IIIII", 2, count // 2, first, count - count // 2, second)
            for name, place in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16), (b"edts", 16)):
                if kind == name:  # the duration
                    length = struct.unpack(">I", body[place : place + 4])[0] * (first + second) // 2048
                    body = body[:place] + struct.pack(">I", length) + body[place + 4 :]
            out += struct.pack(">I4s", len(body) + 8, kind) + body
            at += size
        return out

    return edit(data)


def test_times_of_a_variable_rate(tmp_path):
    write(tmp_path / "v.mp4", frames=12)
    with VideoReader(tmp_path / "v.mp4") as reader:
        assert [round(reader.time, 3) for _ in reader] == [round(i / 10, 3) for i in range(12)]
    (tmp_path / "w.mp4").write_bytes(with_times((tmp_path / "v.mp4").read_bytes(), 512, 3072))  # of 10240 per second
    with VideoReader(tmp_path / "w.mp4") as reader:
        times = [reader.time for _ in reader]
    assert times == pytest.approx([0.05 * i for i in range(6)] + [0.3 + 0.3 * i for i in range(6)], abs=2e-3)


def test_video_for_browsers(tmp_path):
    write(tmp_path / "v.webm", height=47, width=63)
    assert (tmp_path / "v.webm").read_bytes()[:4] == bytes.fromhex("1a45dfa3"), "Matroska"
    with VideoReader(tmp_path / "v.webm") as reader:
        assert (reader.width, reader.height, len(list(reader))) == (64, 48, 12)


def test_rotation_of_a_phone(tmp_path):
    """Held upright, a phone stores the frames lying, and how to turn them."""
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:12] = 255  # the upper edge as stored
    with VideoWriter(tmp_path / "v.mp4", 64, 48, 10) as writer:
        for _ in range(3):
            writer.write(frame)
    data = (tmp_path / "v.mp4").read_bytes()
    place = data.index(b"tkhd") + 4 + 40  # the matrix of the track header, after its times, ids and duration
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    assert data[place : place + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "v.mp4").write_bytes(data[:place] + clockwise + data[place + 36 :])
    with VideoReader(tmp_path / "v.mp4") as reader:
        assert (reader.width, reader.height) == (48, 64)
        for shown in reader:
            assert shown.shape == (64, 48, 3)
            assert shown[:, -8:].min() > 200 > 60 > shown[:, :30].max()
