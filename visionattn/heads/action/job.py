"""The job of action recognition."""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from visionattn.errors import DataError, FormatError
from visionattn.heads.action.draw import draw_keypoints, draw_sheet
from visionattn.heads.action.results import ActionPrediction, find_points
from visionattn.inference.decoding import to_array
from visionattn.inference.job import Job, RunTotals, View
from visionattn.io.inputs import Source, find_inputs

__all__ = ["JOBS", "ActionJob", "ActionOptions"]


@dataclass(frozen=True)
class ActionOptions:
    """Options of action recognition.

    Attributes:
        points: keypoints of the videos: a file, or a folder with files that have the names of the videos.
    """

    points: str | None = None


class ActionJob(Job):
    """The action in a video."""

    name = "action"
    OwnOptions = ActionOptions
    noun = "video"
    records = "images"
    accepts_video = True
    max_batch_size = 1  # the views of a video already form a batch
    record_types: ClassVar[Mapping[str, Any]] = {
        "action": str,
        "action_score": float,
        "class_scores": {str: float},
        "with_pose": bool,
        "frames": [int],
    }

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add ``--points``."""
        parser.add_argument_group("action recognition").add_argument(
            "--points", metavar="PATH", help="keypoints of the videos: a file, or a folder with files named like them"
        )

    @classmethod
    def find(cls, inputs: Sequence[str | Path], exclude: Path | None = None) -> list[Source]:
        """Return images and videos; images are then reported as unreadable inputs."""
        return find_inputs(inputs, exclude=exclude)

    def read(self, source: str | Path) -> dict[str, str | None]:
        """Return the paths of a video and of its keypoints; the test pipeline reads them.

        Raises:
            DataError: there is no such video, or it has no keypoints.
        FormatError: it is an image.
        """
        path = Path(source)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        if not find_inputs([path])[0].is_video:
            raise FormatError(f"{path}: is not a video; this model classifies videos")
        points = find_points(path, self.own.points)
        return {"video_path": str(path), "points_path": None if points is None else str(points)}

    def sample(self, item: dict[str, str | None], view: View = View()) -> dict[str, Any]:  # noqa: B008
        """Return the paths, and the option to keep the frames that are passed to the model."""
        return {**item, "keep_frames": True}

    def decode(self, output: Any, item: dict[str, str | None]) -> ActionPrediction:
        """Return the class scores and the frames from which they were computed."""
        return ActionPrediction(
            self.classes,
            to_array(output.pred_scores, np.float32),
            output.metainfo["frame_indices"],
            to_array(output.frames, np.uint8),
            to_array(output.pose_mask[0], bool) if "pose_mask" in output else None,
            int(self.model.model.backbone.net.patch_embed.patch_size[0]),
        )

    def record(self, prediction: ActionPrediction, index: int) -> dict[str, Any]:
        """Return the best class, all scores, and the sampled frames."""
        scores = zip(self.classes, prediction.class_scores, strict=True)
        return {
            "action": prediction.names[0],
            "action_score": round(prediction.score, 5),
            "class_scores": {name: round(float(score), 5) for name, score in scores},
            "with_pose": prediction.pose_mask is not None,
            "frames": prediction.frame_indices,
        }

    def lines(self, record: Mapping[str, Any], counts: Counter) -> list[str]:
        """Return the best class with its score."""
        pose = "with keypoints" if record["with_pose"] else "without keypoints"
        return [f"{record['action']}, score {record['action_score']:.3f}, {pose}"]

    def summary(self, tally: RunTotals) -> str:
        """Return the number of videos by action."""
        return "actions: " + (", ".join(f"{name} {count}" for name, count in tally.found.most_common()) or "none")

    @classmethod
    def draw_samples(cls, config: Any, split: str, number: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the frames of each clip after all transforms, with their keypoints and class."""
        from visionattn.heads.action.mmlab_data import read_clip_samples

        for name, action, frames, points in read_clip_samples(config, split, number):
            drawn = [draw_keypoints(frame[..., ::-1], at) for frame, at in zip(frames, points, strict=True)]
            yield name, draw_sheet(drawn, action)


JOBS = (ActionJob,)
