"""What a model says of one point cloud, as a typed record."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["PointPrediction"]


def _none() -> np.ndarray:
    return np.zeros((0, 7), np.float32)


@dataclass(frozen=True)
class PointPrediction:
    """Boxes in a point cloud.

    Attributes:
        points: float32 ``[N, C]`` that the model was given: x, y, z, intensity (0..1), ...
        classes: the name of each class.
        boxes: float32 ``[M, 7]``: x, y, z of the centre, length, width, height in metres, heading in radians
            counter-clockwise from +x; best score first.
        scores: float32 ``[M]`` in 0..1; NaN for annotations, which have none.
        labels: int64 ``[M]``, indices into `classes`.
        velocity: float32 ``[M, 2]`` in metres per second, or None.
        truth: labelled boxes ``[T, 7]``, where there are some.
        truth_classes: name of each one's class.
        name: of the frame.
        path: the file, or None.
        seconds: time the model took, its preparation included.
        dropped: points of the file that were left out because a value was not finite.
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

    def to_records(self) -> list[dict[str, Any]]:
        """Each box as plain values: class, box, score and, where it is known, velocity."""
        records = []
        for index, name in enumerate(self.names):
            record: dict[str, Any] = {
                "class": name,
                "box": [round(float(value), 4) for value in self.boxes[index]],
                "score": round(float(self.scores[index]), 5),
            }
            if self.velocity is not None:
                record["velocity"] = [round(float(value), 4) for value in self.velocity[index]]
            records.append(record)
        return records
