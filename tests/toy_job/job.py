"""The job: what a prediction is, how it is drawn and written."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visionattn.inference.image_job import ImageJob
from visionattn.inference.job import RunTotals


@dataclass(frozen=True)
class Count:
    """The number of squares in an image."""

    classes: tuple[str, ...]
    count: float
    seconds: float = 0.0
    path: Path | None = None
    image: np.ndarray | None = field(default=None, repr=False)

    @property
    def names(self) -> list[str]:
        """One name per square."""
        return ["square"] * round(self.count)

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """Return the image with the number in the corner."""
        out = (self.image if image is None else image).copy()
        cv2.putText(out, f"{self.count:.1f}", (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 255, 255), 1)
        return out


class CountingJob(ImageJob):
    """The number of squares in an image."""

    name = "counting"

    def prediction(self, output: Any, size: tuple[int, int]) -> Count:
        """Return the number."""
        return Count(self.classes, float(output.count))

    def record(self, prediction: Count, index: int) -> dict[str, Any]:
        """Return the number."""
        return {"count": round(prediction.count, 3)}

    def lines(self, record: Mapping[str, Any], counts: Counter) -> list[str]:
        """Return the number in words."""
        return [f"{record['count']:.1f} squares"]

    def summary(self, tally: RunTotals) -> str:
        """Return the number of squares in all images."""
        return f"squares: {tally.found.total()}"


JOBS = (CountingJob,)
