"""The images on which a detector makes most errors."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from visionattn.errors import require
from visionattn.heads.detection.matching import Matches, Objects
from visionattn.inference.analysis.base import TestData
from visionattn.inference.analysis.worst import WORST, Example
from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.io.console import count_of

__all__ = ["Scene", "worst_images"]

FRAMES = ((255, 255, 255), (0, 0, 0))
"""Colors of the frame of an error, from the outside: those that no class has."""


@dataclass(frozen=True)
class Scene:
    """Ground truth and detections of all images.

    Attributes:
        truth, detections, matches: see `visionattn.heads.detection.matching`.
        kept: detections that are shown, bool ``[D]``.
        data: the test data.
        masks: draw masks.
    """

    truth: Objects
    detections: Objects
    kept: np.ndarray
    matches: Matches
    data: TestData
    masks: bool

    def pictures(self, index: int, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pictures of the truth and of the detections of an image, BGR uint8 ``[H, W, 3]``."""
        wrong, missed = self.errors()
        known = np.flatnonzero((self.truth.image == index) & ~self.truth.crowd)
        found = np.flatnonzero((self.detections.image == index) & self.kept & self.matches.counted)
        return (
            self._draw(image, self.truth, known, missed[known]),
            self._draw(image, self.detections, found, wrong[found]),
        )

    def errors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the detections without a match, bool ``[D]``, and the objects without one, bool ``[G]``."""
        missed = ~self.truth.crowd
        missed[self.matches.truth[self.kept & self.matches.correct]] = False
        return self.kept & self.matches.counted & ~self.matches.correct, missed

    def _draw(self, image: np.ndarray, objects: Objects, rows: np.ndarray, wrong: np.ndarray) -> np.ndarray:
        box = objects.box[rows].astype(np.float32)
        box[:, 2:] += box[:, :2]
        height, width = image.shape[:2]
        masks = None
        if self.masks:
            codes = [objects.rle[row] for row in rows]
            dense = (
                require("pycocotools.mask").decode(codes).transpose(2, 0, 1) if codes else np.zeros((0, height, width))
            )
            masks = InstanceMasks.from_dense(dense)
        score = np.full(len(rows), np.nan) if objects.score is None else objects.score[rows]
        drawn = Prediction(
            (height, width), self.data.classes, box, score.astype(np.float32), objects.label[rows], masks
        ).draw(image)
        cv2 = require("cv2")
        line = max(1, round(max(height, width) / 320))  # remains visible in the shrunk picture
        for x0, y0, x1, y1 in np.rint(box[wrong]).astype(int).tolist():
            for index, color in enumerate(FRAMES):
                gap = line * (2 - index)
                cv2.rectangle(drawn, (x0 - gap, y0 - gap), (x1 + gap, y1 + gap), color, line)
        return drawn


def worst_images(scene: Scene, ids: list, paths: dict[Any, str]) -> list[Example]:
    """Return the images with most errors, at most `WORST`.

    Args:
        scene: ground truth and detections.
        ids: image ids by index.
        paths: image file by id.
    """
    wrong, missed = scene.errors()
    extra = np.bincount(scene.detections.image[wrong], minlength=len(ids))
    absent = np.bincount(scene.truth.image[missed], minlength=len(ids))
    order = np.argsort(-(extra + absent), kind="stable")[:WORST]
    total = np.bincount(scene.truth.image[~scene.truth.crowd], minlength=len(ids))
    return [
        Example(
            paths.get(ids[index], f"image {ids[index]}"),
            [_line(int(extra[index]), int(absent[index]), int(total[index]))],
            lambda image, index=index: scene.pictures(index, image),
        )
        for index in order.tolist()
        if extra[index] + absent[index]
    ]


def _line(wrong: int, missed: int, objects: int) -> str:
    return f"{count_of(wrong, 'wrong detection')}, {missed} of {count_of(objects, 'object')} missed"
