import json
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from visionattn.errors import ConfigError, DataError
from visionattn.inference import Predictor
from visionattn.inference.file_run import VideoOptions
from visionattn.inference.files import plan_files, predict_files
from visionattn.inference.video import LiveReader, VideoReader, VideoWriter
from visionattn.io.inputs import find_inputs, live_name, live_source


@contextmanager
def stream(content: bytes, hold: float = 0.0):
    """A server that sends a video to its first client, and closes the connection after a while."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(content)
                stop.wait(hold)

        stop = threading.Event()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join(10)


@pytest.fixture
def content(painted, tmp_path) -> bytes:
    with VideoWriter(tmp_path / "v.webm", 128, 96, 10) as writer:
        for frame in range(30):
            writer.write(painted(96, 128, ("red", 10 + 3 * frame, 30, 30 + 3 * frame, 60)))
    return (tmp_path / "v.webm").read_bytes()


def test_newest_frames_of_a_stream(content):
    with stream(content) as address, LiveReader(address) as reader:
        assert (reader.width, reader.height, reader.frames) == (128, 96, 0)
        places = []
        for frame in reader:
            time.sleep(0.02)  # frames that arrive meanwhile are dropped
            places.append(int((frame[..., 2].astype(int) - frame[..., 0]).mean(axis=0).argmax()))
        reader.check_complete()
    assert 1 <= len(places) <= 30
    assert places == sorted(places)
    assert places[-1] > 10 + 3 * 28  # the last frame is always shown


def test_files_of_a_stream(make_model, content, tmp_path):
    predictor = Predictor.from_model(make_model())
    with stream(content) as address:
        plan = plan_files(find_inputs([address]), tmp_path / "out")
        summary = predict_files(predictor, plan, {}, video=VideoOptions(max_frames=2))
    record = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"][0]
    assert record["file"] == address
    assert 1 <= record["frames"] == summary.frames <= 2
    assert (tmp_path / "out" / record["frames_file"]).is_file()


def test_interrupt_ends_a_stream(make_model, content, tmp_path):
    predictor, count = Predictor.from_model(make_model()), []

    def interrupt(number: int) -> None:
        count.append(number)
        raise KeyboardInterrupt

    with stream(content, hold=20) as address:
        plan = plan_files(find_inputs([address]), tmp_path / "out")
        summary = predict_files(predictor, plan, {}, interrupt)
    assert (summary.videos, summary.failed, len(count)) == (1, [], 1)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["complete"] is True
    assert (tmp_path / "out" / content["images"][0]["overlay"]).is_file()


def test_streams_that_cannot_be_opened():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DataError, match="the stream cannot be opened") as error:
        LiveReader(f"tcp://user:secret@127.0.0.1:{port}")
    assert "secret" not in str(error.value)
    with pytest.raises(DataError, match="camera 97: the camera cannot be opened"):
        LiveReader("97")


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert live_source("rtsp://me:word@host:554/a b").label == "rtsp://host:554/a b"
    assert live_source("rtsp://me:word@host:554/a").path.name == "rtsp_host_554_a"
    assert (live_source("0").address, live_source("0").label) == ("0", "camera 0")
    assert live_name("udp://1.2.3.4:5") == "udp://1.2.3.4:5"
    for file in ("x.mp4", "http://host/x.jpg", "1234", "rtsp"):
        assert live_source(file) is None
    (tmp_path / "0").mkdir()
    assert live_source("0") is None, "an existing folder"


def test_overlay_of_a_variable_rate(tmp_path):
    """Frames at 0, 0.1, 0.5 and 0.55 seconds: the second one is shown four times, the last one is dropped."""
    with VideoWriter(tmp_path / "v.webm", 64, 48, 10) as writer:
        for value, moment in ((40, 0.0), (90, 0.1), (160, 0.5), (230, 0.52)):
            writer.write(np.full((48, 64, 3), value, np.uint8), moment)
    with VideoReader(tmp_path / "v.webm") as reader:
        shown = [int(frame.mean()) for frame in reader]
    assert shown == pytest.approx([40, 90, 90, 90, 90, 160], abs=6)


def test_wrong_options():
    with pytest.raises(ConfigError, match="`max_frames` must be at least 1"):
        VideoOptions(max_frames=0)
