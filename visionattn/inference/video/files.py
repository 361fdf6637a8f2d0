"""Read and write videos frame by frame."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require
from visionattn.inference.writing import temporary_name
from visionattn.io.images import MAX_PIXELS, check_size

__all__ = ["VideoReader", "VideoWriter"]

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # OpenCV reads it at the first video; errors are raised below
cv2 = require("cv2")

CODECS = {".webm": "VP80", ".mp4": "mp4v"}
"""Codec by suffix. No OpenCV wheel has an encoder for H.264."""


class VideoReader:
    """Iterate over the frames of a video as BGR uint8 ``[height, width, 3]``.

    Args:
        path: the video file.
        max_pixels: videos with more pixels per frame are rejected.

    Attributes:
        width, height: frame size in pixels.
        fps: frames per second; 25 if the file does not state it.
        frames: number of frames stated by the file; 0 if it states none.
        time: time stamp of the last decoded frame in seconds from the first one. Phones record at a variable rate, so
            this may differ from the number of the frame divided by ``fps``.

    Raises:
        DataError: the file is missing or not a video, or its frames are too large.
    """

    def __init__(self, path: str | Path, max_pixels: int = MAX_PIXELS):
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: no such video file")
        level = cv2.utils.logging.setLogLevel(0)  # silences a warning of OpenCV; the error below replaces it
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            raise DataError(f"{path}: not a video, or damaged or truncated")
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        check_size(str(path), self.width, self.height, max_pixels)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps <= 1000 else 25.0
        self._decoded, self.time, self._start = 0, 0.0, 0.0
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames that can be decoded; works once."""
        while True:
            found, frame = self._capture.read()
            if not found:
                return
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if self._decoded == 0:
                self._start = stamp
            elif stamp - self._start <= self.time:  # the format has no time stamps, or a wrong one
                stamp = self._start + self.time + 1 / self.fps
            self.time = stamp - self._start
            self._decoded += 1
            yield frame

    def check_complete(self) -> None:
        """Check the number of decoded frames after the last one.

        Raises:
            DataError: there were far fewer frames than the file states, which is then damaged or truncated.
        """
        # the number is an estimate in some formats and may be off by a frame or two
        if self._decoded == 0 or self.frames - self._decoded > max(2, 0.02 * self.frames):
            raise DataError(
                f"{self.path}: damaged or truncated, only {self._decoded} of {self.frames} frames can be decoded"
            )

    def close(self) -> None:
        """Close the file."""
        self._capture.release()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what C code prints to the standard error stream: OpenCV prints a line about the tag of each WebM file."""
    try:
        kept, void = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # the stream is closed
        yield
        return
    try:
        os.dup2(void, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(void)


class VideoWriter:
    """Write BGR uint8 frames of one size to a video file: WebM with VP8, which browsers play, or MP4 with MPEG-4.

    The file is created under a temporary name and renamed when the ``with`` block ends without an error. Odd widths and
    heights, which the format does not support, are padded by one pixel.

    Args:
        path: the file, ``.webm`` or ``.mp4``.
        width, height: frame size in pixels.
        fps: frames per second.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: Path, width: int, height: int, fps: float):
        self.path, self._partial = path, temporary_name(path)
        self._size, self._fps = (height, width, 3), fps
        self._written, self._last = 0, None
        code = cv2.VideoWriter_fourcc(*CODECS[path.suffix])
        even = width + width % 2, height + height % 2  # the encoder would drop an odd row or column
        level = cv2.utils.logging.setLogLevel(0)
        with _silent_stderr():
            self._writer = cv2.VideoWriter(str(self._partial), cv2.CAP_FFMPEG, code, fps, even)
        cv2.utils.logging.setLogLevel(level)
        if not self._writer.isOpened():
            raise DataError(f"{path}: cannot write a video of {width}x{height} pixels")

    def write(self, frame: np.ndarray, time: float | None = None) -> None:
        """Append a frame.

        Args:
            frame: BGR uint8 ``[height, width, 3]``.
            time: its time in seconds from the first frame, for videos of a variable rate: the frame before it is
                repeated until then, and a frame that another one would cover is dropped. None appends the frame.
        """
        if time is not None:
            place = round(time * self._fps)
            while self._last is not None and self._written < place:
                self._append(self._last)
            self._last = frame
            if self._written > place:
                return
        self._append(frame)

    def _append(self, frame: np.ndarray) -> None:
        self._written += 1
        if frame.shape != self._size:
            raise ValueError(f"`frame` must have shape {self._size}, got {frame.shape}")
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = cv2.copyMakeBorder(frame, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._writer.write(frame)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._writer.release()
        if kind is None:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink(missing_ok=True)
