"""The prediction of an action recognition model for one video."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.heads.action.draw import draw_sheet

__all__ = ["ActionPrediction", "find_points"]

SUFFIXES = (".npy", ".json", ".skeleton", ".csv", "_pose3d.json", "_skeleton2d.json")


@dataclass(frozen=True)
class ActionPrediction:
    """The action in a video.

    Attributes:
        classes: class names by label.
        class_scores: float32 ``[classes]``, sum 1.
        frame_indices: indices of the sampled frames, one list per view.
        frames: frames of the first view after preprocessing, RGB uint8 ``[T, H, W, 3]``.
        pose_mask: patches of these frames that contain keypoints, bool ``[T, h, w]``, or None without keypoints.
        patch_size: side of a patch in pixels.
        seconds: inference time in seconds, including decoding of the video.
        path: the video file, or None.
    """

    classes: tuple[str, ...]
    class_scores: np.ndarray
    frame_indices: list[list[int]]
    frames: np.ndarray = field(repr=False)
    pose_mask: np.ndarray | None = field(default=None, repr=False)
    patch_size: int = 16
    seconds: float = 0.0
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.class_scores.shape != (len(self.classes),):
            raise ValueError(f"class_scores must be [{len(self.classes)}], got shape {self.class_scores.shape}")

    @property
    def label(self) -> int:
        """The best class."""
        return int(np.argmax(self.class_scores))

    @property
    def score(self) -> float:
        """The score of the best class."""
        return float(self.class_scores[self.label])

    @property
    def names(self) -> list[str]:
        """The name of the best class."""
        return [self.classes[self.label]]

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """Return the frames of the first view side by side, with the best class below, BGR uint8 ``[H, W, 3]``.

        Patches without keypoints are dimmed.

        Args:
            image: not used; the frames are part of the prediction.
        """
        frames = []
        for number, frame in enumerate(self.frames):
            shown = frame[..., ::-1].astype(np.float32)
            if self.pose_mask is not None:
                mask = self.pose_mask[number].astype(np.float32)
                mask = mask.repeat(self.patch_size, 0).repeat(self.patch_size, 1)
                shown = shown * (0.35 + 0.65 * mask[: frame.shape[0], : frame.shape[1], None])
            frames.append(shown.round().astype(np.uint8))
        return draw_sheet(frames, f"{self.names[0]} {self.score:.2f}")


def find_points(video: Path, points: str | Path | None) -> Path | None:
    """Return the keypoint file of a video: ``points`` itself, or the file in that folder with the name of the video.

    Raises:
        DataError: ``points`` does not exist, or the folder has no file for this video.
    """
    if points is None:
        return None
    points = Path(points)
    if points.is_file():
        return points
    if not points.is_dir():
        raise DataError(f"`points` {points}: no such file or folder")
    for suffix in SUFFIXES:
        if (found := points / f"{video.stem}{suffix}").is_file():
            return found
    raise DataError(f"{video}: {points} has no keypoints for it, such as {video.stem}.npy")
