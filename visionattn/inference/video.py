"""Read the frames of a video one by one, and write a video of overlays."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require
from visionattn.io.images import MAX_PIXELS, check_size

__all__ = ["VideoReader", "VideoWriter"]

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read once, at the first video: our errors say what is wrong
cv2 = require("cv2")


class VideoReader:
    """The frames of a video, in order, as BGR uint8 ``[height, width, 3]``.

    Attributes:
        fps: frames in a second; 25 where the file does not say.
        frames: how many frames the file says it has, 0 where it does not.

    Raises:
        DataError: the file is missing, not a video, or its pictures are too large.
    """

    def __init__(self, path: str | Path, max_pixels: int = MAX_PIXELS):
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path}: there is no such video file")
        level = cv2.utils.logging.setLogLevel(0)  # OpenCV would warn on the screen of what the next error says
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            raise DataError(f"{path}: not a video that can be read, or it is damaged or cut short")
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        check_size(str(path), self.width, self.height, max_pixels)
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(fps) if 0 < fps <= 1000 else 25.0
        self._decoded = 0
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[np.ndarray]:
        """The frames, once, as far as they can be decoded."""
        while True:
            found, frame = self._capture.read()
            if not found:
                return
            self._decoded += 1
            yield frame

    def check_complete(self) -> None:
        """To call after the last frame.

        Raises:
            DataError: there were far fewer frames than the file says: it is damaged or cut short.
        """
        # the number is an estimate in some formats, so a frame or two less means nothing
        if self._decoded == 0 or self.frames - self._decoded > max(2, 0.02 * self.frames):
            raise DataError(
                f"{self.path}: damaged or cut short, only {self._decoded} of {self.frames} frames can be decoded"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._capture.release()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()


class VideoWriter:
    """Write BGR uint8 frames of one size to an MP4 file, which appears under its name when it is complete.

    An odd width or height grows by one pixel, for the format has only even ones.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: Path, width: int, height: int, fps: float):
        self.path, self._partial = path, path.with_name(f".{path.stem}.partial.mp4")
        self._size = (height, width, 3)
        code = cv2.VideoWriter_fourcc(*"mp4v")  # the one MP4 encoder that every OpenCV wheel has
        even = width + width % 2, height + height % 2  # an odd row or column would be cut off
        self._writer = cv2.VideoWriter(str(self._partial), cv2.CAP_FFMPEG, code, fps, even)
        if not self._writer.isOpened():
            raise DataError(f"{path}: cannot write a video of {width}x{height} there")

    def write(self, frame: np.ndarray) -> None:
        """Append a frame."""
        if frame.shape != self._size:
            raise ValueError(f"a frame must be of shape {self._size}, got {frame.shape}")
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
