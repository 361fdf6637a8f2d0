"""Clips of videos with the key points that go with them: reading, sampling of frames, crops and flips."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from visionattn.errors import DataError, require

__all__ = ["Clip", "VideoInfo", "probe_video", "read_frames", "sample_indices"]

MAX_PIXELS = 64_000_000
"""Frames with more pixels are refused before they are decoded."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file says of itself: number of frames, frames in a second, width and height."""

    frames: int
    fps: float
    width: int
    height: int


def _open(path: str | Path):
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2 = require("cv2")
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such video file")
    level = cv2.utils.logging.setLogLevel(0)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        raise DataError(f"{path}: not a video that can be read, or it is damaged or cut short")
    fps = capture.get(cv2.CAP_PROP_FPS)
    info = VideoInfo(
        frames=max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))),
        fps=float(fps) if 0 < fps <= 1000 else 25.0,
        width=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
        height=int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
    )
    if info.width * info.height > MAX_PIXELS or info.width < 1 or info.height < 1:
        raise DataError(f"{path}: frames of {info.width} x {info.height} pixels are not read")
    return capture, info


def probe_video(path: str | Path) -> VideoInfo:
    """Open a video and tell its size and length.

    Raises:
        DataError: the file is missing or not a video, or says that it has no frames.
    """
    capture, info = _open(path)
    capture.release()
    if info.frames < 1:
        raise DataError(f"{path}: does not tell its number of frames")
    return info


def read_frames(path: str | Path, indices: Sequence[int]) -> np.ndarray:
    """Frames of a video by number, RGB uint8 ``[len(indices), H, W, 3]``.

    Decodes from the start, since many formats cannot be entered at an exact frame. Containers may announce a few
    frames too many; for those the last one stands.

    Args:
        path: the video.
        indices: numbers from 0, in any order, repeated or not.

    Raises:
        DataError: the file is not a video, or ends long before the last frame asked for.
    """
    cv2 = require("cv2")
    if not len(indices) or min(indices) < 0:
        raise ValueError(f"indices={list(indices)} must be numbers from 0 on, at least one")
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
                raise DataError(f"{path}: damaged or cut short, frame {max(wanted)} of {info.frames} cannot be decoded")
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
    """Numbers of the frames of one clip, spread evenly over it, as the published models are trained and tested.

    A clip covers ``rate * count`` frames of a video with 30 in a second, and as long a time of another. With `rng` it
    starts at random; without, clip ``view`` of ``views`` starts at that share of the room that there is.

    Args:
        frames: of the video.
        fps: of the video.
        count: frames of the clip.
        rate: distance of two of them, at 30 frames in a second.
        rng: for training.
        view, views: for testing.
        margin: frames at the end that are left out; some recordings of key points lack the last one.

    Returns:
        int64 ``[count]``, rising.

    Raises:
        ValueError: a number out of range.
    """
    for name, value in (("frames", frames), ("count", count), ("rate", rate), ("views", views)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if not fps > 0 or not math.isfinite(fps):
        raise ValueError(f"fps={fps} must be positive")
    if not 0 <= view < views:
        raise ValueError(f"view={view} must be in 0..{views - 1}")
    length = rate * count / 30 * fps
    room = max(frames - length, 0)
    start = rng.uniform(0, room) if rng is not None else room * view / views
    last = max(0, frames - 1 - margin)
    return np.clip(np.linspace(start, start + length - 1, count), 0, last).astype(np.int64)


@dataclass(frozen=True)
class Clip:
    """Frames and the key points in them, which every change moves together.

    Attributes:
        frames: uint8 ``[T, H, W, 3]``.
        points: float ``[T, people, J, 2]`` in pixels of the frames, NaN for missing; None without a pose.
    """

    frames: np.ndarray
    points: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.frames.shape[1], self.frames.shape[2]

    def resized(self, height: int, width: int) -> "Clip":
        """Stretched to a size."""
        cv2 = require("cv2")
        if height < 1 or width < 1:
            raise ValueError(f"size {height} x {width} must be at least 1 x 1")
        old = self.size
        if (height, width) == old:
            return self
        shrinks = height * width < old[0] * old[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        frames = np.stack([cv2.resize(frame, (width, height), interpolation=how) for frame in self.frames])
        points = None if self.points is None else self.points * np.array([width / old[1], height / old[0]])
        return Clip(frames, points)

    def short_side(self, length: int) -> "Clip":
        """Resized so that the shorter side has a length."""
        height, width = self.size
        factor = length / min(height, width)
        return self.resized(max(length, round(height * factor)), max(length, round(width * factor)))

    def crop(self, top: int, left: int, height: int, width: int) -> "Clip":
        """A part of every frame; what lies outside of it comes out of range.

        Raises:
            ValueError: the part is not within the frames.
        """
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > self.size[0] or left + width > self.size[1]:
            raise ValueError(f"crop {height} x {width} at row {top}, column {left} is not within {self.size}")
        frames = self.frames[:, top : top + height, left : left + width]
        return Clip(frames, None if self.points is None else self.points - np.array([left, top]))

    def flipped(self, pairs: Sequence[tuple[int, int]] = ()) -> "Clip":
        """Mirrored left to right; ``pairs`` are the joints that change places, see `FLIP_PAIRS`."""
        points = self.points
        if points is not None:
            order = np.arange(points.shape[-2])
            for a, b in pairs:
                if not 0 <= a < len(order) or not 0 <= b < len(order):
                    raise ValueError(f"pairs: joints {a} and {b} are not both among the {len(order)} of the pose")
                order[[a, b]] = order[[b, a]]
            points = points[..., order, :] * np.array([-1, 1]) + np.array([self.size[1] - 1, 0])
        return replace(self, frames=self.frames[:, :, ::-1], points=points)
