"""Video clips with keypoints: decoding, frame sampling, resizing, cropping and flipping."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require

__all__ = ["Clip", "VideoInfo", "probe_video", "read_frames", "sample_indices"]

MAX_PIXELS = 64_000_000
"""Maximum number of pixels of a frame, checked before decoding."""


@dataclass(frozen=True)
class VideoInfo:
    """Metadata of a video file: number of frames, frames per second, width and height in pixels."""

    frames: int
    fps: float
    width: int
    height: int


def _open(path: str | Path):
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2 = require("cv2")
    if not Path(path).is_file():
        raise DataError(f"{path}: video file not found")
    level = cv2.utils.logging.setLogLevel(0)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        raise DataError(f"{path}: is not a supported video, or is damaged or truncated")
    fps = capture.get(cv2.CAP_PROP_FPS)
    info = VideoInfo(
        frames=max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))),
        fps=float(fps) if 0 < fps <= 1000 else 25.0,
        width=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        height=int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
    )
    if info.width * info.height > MAX_PIXELS or info.width < 1 or info.height < 1:
        raise DataError(f"{path}: frames must have between 1 and {MAX_PIXELS} pixels, got {info.width} x {info.height}")
    return capture, info


def probe_video(path: str | Path) -> VideoInfo:
    """Read the metadata of a video.

    Raises:
        DataError: if the file is missing or not a video, or its number of frames is unknown.
    """
    capture, info = _open(path)
    capture.release()
    if info.frames < 1:
        raise DataError(f"{path}: the number of frames is unknown")
    return info


def read_frames(path: str | Path, indices: Sequence[int]) -> np.ndarray:
    """Decode frames of a video.

    Decoding starts at the first frame, since many formats do not support exact seeking. Containers may announce a few
    frames too many; the last frame is returned for those.

    Args:
        path: the video.
        indices: frame indices from 0, in any order, possibly repeated.

    Returns:
        RGB uint8 ``[len(indices), H, W, 3]``.

    Raises:
        ValueError: if ``indices`` is empty or has a negative number.
        DataError: if the file is not a video, or ends long before the last requested frame.
    """
    cv2 = require("cv2")
    if not len(indices) or min(indices) < 0:
        raise ValueError(f"`indices` must be one or more numbers of at least 0, got {list(indices)}")
    capture, info = _open(path)
    wanted, found, number = set(map(int, indices)), {}, 0
    try:
        while len(found) < len(wanted) and number <= max(wanted):
            if not capture.grab():
                break
            if number in wanted:
                done, frame = capture.retrieve()
                if not done:
                    break
                found[number] = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            number += 1
        if wanted - set(found):
            if number == 0 or max(wanted) - number >= max(2, 0.02 * info.frames):
                raise DataError(
                    f"{path}: is damaged or truncated: frame {max(wanted)} of {info.frames} cannot be decoded"
                )
            last = found.get(number - 1)
            if last is None:
                capture.release()
                last = read_frames(path, [number - 1])[0]
            for index in wanted - set(found):
                found[index] = last
    finally:
        capture.release()
    return np.stack([found[int(index)] for index in indices])


def sample_indices(
    frames: int,
    fps: float,
    count: int,
    rate: int,
    *,
    rng: np.random.Generator | None = None,
    view: int = 0,
    views: int = 1,
    margin: int = 1,
) -> np.ndarray:
    """Sample evenly spaced frame indices of one clip, as in training and testing of the published models.

    A clip spans ``rate * count`` frames at 30 fps, and the same duration at other frame rates. With ``rng`` it starts
    at a random position; otherwise at the fraction ``view / views`` of the possible start positions.

    Args:
        frames: number of frames of the video.
        fps: frames per second of the video.
        count: number of frames of the clip.
        rate: distance of two sampled frames at 30 fps.
        rng: generator for training; None for testing.
        view, views: index and number of the test views.
        margin: number of frames excluded at the end of the video, since some keypoint files lack the last one.

    Returns:
        int64 ``[count]``, ascending.

    Raises:
        ValueError: if an argument is out of range.
    """
    for name, value in (("frames", frames), ("count", count), ("rate", rate), ("views", views)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}")
    if not fps > 0 or not math.isfinite(fps):
        raise ValueError(f"`fps` must be positive and finite, got {fps}")
    if not 0 <= view < views:
        raise ValueError(f"`view` must be in 0..{views - 1}, got {view}")
    length = rate * count / 30 * fps
    room = max(frames - length, 0)
    start = rng.uniform(0, room) if rng is not None else room * view / views
    last = max(0, frames - 1 - margin)
    return np.clip(np.linspace(start, start + length - 1, count), 0, last).astype(np.int64)


@dataclass(frozen=True)
class Clip:
    """Frames and their keypoints; every transform is applied to both.

    Attributes:
        frames: uint8 ``[T, H, W, 3]``.
        points: float ``[T, people, J, 2]``, x and y in pixels, NaN where missing; None without a pose.
    """

    frames: np.ndarray
    points: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.frames.shape[1], self.frames.shape[2]

    def resized(self, height: int, width: int) -> "Clip":
        """Resize to the given size, ignoring the aspect ratio."""
        cv2 = require("cv2")
        if height < 1 or width < 1:
            raise ValueError(f"`height` and `width` must be at least 1, got {height} and {width}")
        old = self.size
        if (height, width) == old:
            return self
        shrinks = height * width < old[0] * old[1]
        mode = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        frames = np.stack([cv2.resize(frame, (width, height), interpolation=mode) for frame in self.frames])
        points = None if self.points is None else self.points * np.array([width / old[1], height / old[0]])
        return Clip(frames, points)

    def short_side(self, length: int) -> "Clip":
        """Resize the shorter side to the given length, keeping the aspect ratio."""
        height, width = self.size
        factor = length / min(height, width)
        return self.resized(max(length, round(height * factor)), max(length, round(width * factor)))

    def crop(self, top: int, left: int, height: int, width: int) -> "Clip":
        """Crop every frame; keypoints outside the crop get coordinates outside the frame.

        Raises:
            ValueError: if the crop is not within the frames.
        """
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(
                f"crop must be within frames of {self.size[0]} x {self.size[1]}, "
                f"got {height} x {width} at row {top}, column {left}"
            )
        frames = self.frames[:, top : top + height, left : left + width]
        return Clip(frames, None if self.points is None else self.points - np.array([left, top]))

    def flipped(self, pairs: Sequence[tuple[int, int]] = ()) -> "Clip":
        """Flip horizontally and swap the joints of ``pairs``, see `visionattn.heads.action.keypoints.FLIP_PAIRS`."""
        points = self.points
        if points is not None:
            order = np.arange(points.shape[-2])
            for a, b in pairs:
                if not 0 <= a < len(order) or not 0 <= b < len(order):
                    raise ValueError(f"`pairs` must have joints in 0..{len(order) - 1}, got {(a, b)}")
                order[[a, b]] = order[[b, a]]
            points = points[..., order, :] * np.array([-1, 1]) + np.array([self.size[1] - 1, 0])
        return replace(self, frames=self.frames[:, :, ::-1], points=points)
