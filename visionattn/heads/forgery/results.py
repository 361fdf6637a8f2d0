"""The prediction of a forgery model for one image."""

from dataclasses import dataclass, replace

import numpy as np

from visionattn.inference.draw import class_color, draw_prediction
from visionattn.inference.results import Prediction

__all__ = ["ForgeryPrediction"]


@dataclass(frozen=True)
class ForgeryPrediction(Prediction):
    """Prediction of forged pixels and of whether the image is forged.

    Attributes:
        heatmap: probability that a pixel is forged, float32 ``[H, W]``.
        semantic: 1 where a pixel is forged, 0 elsewhere, ``[H, W]``.
        image_scores: probability that the image is authentic, and that it is forged.
    """

    @property
    def forgery_score(self) -> float:
        """Probability that any part of the image is forged."""
        return float(self.image_scores[1])

    @property
    def forged(self) -> bool:
        """True if the image is more likely forged than authentic."""
        return self.forgery_score > 0.5

    def _overlay(self, image: np.ndarray) -> np.ndarray:
        """Draw the forged regions, and the image-level decision in the upper left corner."""
        label = int(self.forged)
        color = class_color(label) if self.colors is None else tuple(self.colors[label])[::-1]
        title = f"{self.classes[label]} {self.forgery_score:.2f}"
        return draw_prediction(image, replace(self, heatmap=None), (title, color))
