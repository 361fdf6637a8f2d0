"""The prediction for one point cloud."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.heads.lidar.data.nuscenes_results import attribute_names

__all__ = ["PointPrediction"]


def _none() -> np.ndarray:
    return np.zeros((0, 7), np.float32)


@dataclass(frozen=True)
class PointPrediction:
    """3-D boxes in a point cloud.

    Attributes:
        points: float32 ``[N, C]`` x, y, z, intensity in [0, 1], ...
        classes: class names by label.
        boxes: float32 ``[M, 7]``: x, y, z of the center, length, width, height in meters, heading in radians
            counter-clockwise from +x; sorted by score.
        scores: float32 ``[M]`` in [0, 1]; NaN for annotations.
        labels: int64 ``[M]``, indices into `classes`.
        velocity: float32 ``[M, 2]`` in meters per second, or None.
        truth: labeled boxes ``[T, 7]``.
        truth_classes: class name of each labeled box.
        name: name of the frame.
        path: the input file, or None.
        seconds: inference time in seconds, including voxelization.
        dropped: number of points removed because a value was not finite.
        area: minimum x, minimum y, maximum x, maximum y of the drawn area in meters; None for nearly all points.
    """

    points: np.ndarray
    classes: tuple[str, ...]
    boxes: np.ndarray = field(default_factory=_none)
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    velocity: np.ndarray | None = None
    truth: np.ndarray = field(default_factory=_none)
    truth_classes: tuple[str, ...] = ()
    name: str = ""
    path: Path | None = None
    seconds: float = 0.0
    dropped: int = 0
    area: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.scores), 7) or len(self.labels) != len(self.scores):
            raise ValueError(
                f"boxes {self.boxes.shape}, scores {self.scores.shape} and labels must be [M, 7], [M], [M]"
            )
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"labels must be in 0..{len(self.classes) - 1}, got {self.labels.max()}")
        if self.truth.shape != (len(self.truth_classes), 7):
            raise ValueError(f"truth {self.truth.shape} must be [T, 7] for {len(self.truth_classes)} classes")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each box."""
        return [self.classes[label] for label in self.labels]

    @property
    def attributes(self) -> list[str] | None:
        """The nuScenes attribute of each box, ``""`` for none; None without velocities or with other classes.

        See `visionattn.heads.lidar.data.nuscenes_results.attribute_names`.
        """
        return None if self.velocity is None else attribute_names(self.classes, self.labels, self.velocity)

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """Return the bird's-eye view, BGR uint8 ``[H, W, 3]``.

        Args:
            image: not used; the points are part of the prediction.
        """
        from visionattn.heads.lidar.draw import draw_bev

        return draw_bev(self, self.area)

    def to_records(self) -> list[dict[str, Any]]:
        """Return each box as plain values: class, box, score and, if predicted, velocity and attribute."""
        attributes = self.attributes
        records = []
        for index, name in enumerate(self.names):
            record: dict[str, Any] = {
                "class": name,
                "box": [round(float(value), 4) for value in self.boxes[index]],
                "score": round(float(self.scores[index]), 5),
            }
            if self.velocity is not None:
                record["velocity"] = [round(float(value), 4) for value in self.velocity[index]]
            if attributes is not None:
                record["attribute"] = attributes[index]
            records.append(record)
        return records
