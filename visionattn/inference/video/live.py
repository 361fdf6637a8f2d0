"""Frames of cameras and network streams."""

import threading
import time
from collections.abc import Iterator

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.images import MAX_PIXELS, check_size
from visionattn.io.inputs import live_name

__all__ = ["LiveReader"]

cv2 = require("cv2")
TIMEOUT = 30.0
"""Seconds without a frame after which a stream has ended."""


class LiveReader:
    """Iterate over the frames of a camera or stream as BGR uint8 ``[height, width, 3]``; always the newest one.

    A thread reads all frames. Those that arrive while the caller is busy are dropped, so that the delay does not grow.

    Args:
        address: index of a camera, such as ``"0"``, or an address such as ``rtsp://HOST/PATH``.
        max_pixels: streams with more pixels per frame are rejected.

    Attributes:
        width, height: frame size in pixels.
        fps: frames per second; 25 if the stream does not state it.
        frames: 0, as their number is unknown.
        time: arrival of the last frame in seconds, from that of the first one.

    Raises:
        DataError: the camera or stream cannot be opened, or its frames are too large.
    """

    frames = 0

    def __init__(self, address: str, max_pixels: int = MAX_PIXELS) -> None:
        self.address = live_name(address)
        level = cv2.utils.logging.setLogLevel(0)  # silences warnings of OpenCV; the error below replaces them
        if address.isdecimal():
            self._capture = cv2.VideoCapture(int(address))
        else:
            self._capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG)
        cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            kind = "camera" if address.isdecimal() else "stream"
            raise DataError(f"{self.address}: the {kind} cannot be opened")
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        check_size(self.address, self.width, self.height, max_pixels)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps <= 1000 else 25.0
        self.time, self._start = 0.0, None
        self._newest: tuple[float, np.ndarray] | None = None
        self._change, self._ended = threading.Condition(), False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._ended:
            found, frame = self._capture.read()
            with self._change:
                self._ended = self._ended or not found
                self._newest = (time.monotonic(), frame) if found else self._newest
                self._change.notify()
            if not found:
                return

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the newest frame, each once, until the stream ends or no frame arrives for `TIMEOUT` seconds."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._newest is not None or self._ended, TIMEOUT)
                if self._newest is None:
                    return
                (arrival, frame), self._newest = self._newest, None
            self._start = arrival if self._start is None else self._start
            self.time = arrival - self._start
            yield frame

    def check_complete(self) -> None:
        """Raise `DataError` if no frame has arrived."""
        if self._start is None:
            raise DataError(f"{self.address}: no frames could be decoded")

    def __enter__(self) -> "LiveReader":
        return self

    def __exit__(self, *exc_info) -> None:
        self._ended = True
        self._thread.join(timeout=5)
        if not self._thread.is_alive():  # releasing the stream during a read would crash
            self._capture.release()
