"""The job of weakly supervised localization."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from visionattn.heads.localization.metrics_sat import normalize_map
from visionattn.inference.decoding import decode_instances, to_array
from visionattn.inference.image_job import ImageJob
from visionattn.inference.results import Prediction

__all__ = ["JOBS", "LocalizationJob"]


class LocalizationJob(ImageJob):
    """The class of an image, the heat map of that class, and a box around its largest region."""

    name = "localization"
    styled = thresholded = True

    def prediction(self, output: Any, size: tuple[int, int]) -> Prediction:
        """Return box, class scores and heat map."""
        return Prediction(
            size,
            **decode_instances(output, size, self.classes, self.options.score_thr),
            heatmap=normalize_map(to_array(output.pred_map, np.float32), size),
            image_scores=to_array(output.pred_scores, np.float32),
            **self.common(),
        )

    def record(self, prediction: Prediction, index: int) -> dict[str, Any]:
        """Return the detection and the score of each class."""
        scores = zip(self.classes, prediction.image_scores.tolist(), strict=True)
        return super().record(prediction, index) | {"image_scores": {name: round(score, 5) for name, score in scores}}

    def maps(self, prediction: Prediction) -> dict[str, np.ndarray]:
        """Return the heat map."""
        return {"heatmap": prediction.heatmap}

    def lines(self, record: Mapping[str, Any], counts: Counter) -> list[str]:
        """Return the class of the box, and the best class of the image with its score."""
        name, score = max(record["image_scores"].items(), key=lambda item: item[1])
        return [*super().lines(record, counts), f"image: {name} {score:.3f}"]


JOBS = (LocalizationJob,)
