"""The job of forgery detection."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visionattn.heads.forgery.results import ForgeryPrediction
from visionattn.inference.blending import MapCanvas, ViewSum
from visionattn.inference.decoding import pixel_logits, to_array
from visionattn.inference.image_job import ImageJob
from visionattn.inference.job import Merger, RunTotals, View
from visionattn.inference.tiling import Tile

__all__ = ["JOBS", "ForgeryJob"]


class ForgeryJob(ImageJob):
    """Prediction of the forged pixels, and of whether the image is forged."""

    name = "forgery"
    tiles = views = styled = dataset_colors = True

    def prediction(self, output: Any, size: tuple[int, int]) -> ForgeryPrediction:
        """Return the probability of each pixel and of the image."""
        heatmap = to_array(output.forgery_prob.data, np.float32)[0]
        return self.from_heatmap(heatmap, float(output.forgery_score))

    def from_heatmap(self, heatmap: np.ndarray, score: float) -> ForgeryPrediction:
        """Return the prediction for the probabilities of the pixels and of the image."""
        return ForgeryPrediction(
            heatmap.shape,
            heatmap=heatmap,
            semantic=(heatmap > float(self.model.model.threshold)).astype(np.int64),
            image_scores=np.array([1 - score, score], np.float32),
            **self.common(),
        )

    def merger(self, item: np.ndarray, views: Sequence[View], overlap: int) -> "ForgeryMerger":
        """Return a merger by mean probabilities."""
        return ForgeryMerger(self, item.shape[:2], views, overlap)

    def record(self, prediction: ForgeryPrediction, index: int) -> dict[str, Any]:
        """Return the score of the image, whether it is forged, and the fraction of forged pixels."""
        return {
            "forgery_score": round(prediction.forgery_score, 5),
            "forged": prediction.forged,
            "forged_share": round(float((prediction.semantic == 1).mean()), 5),
        }

    def maps(self, prediction: ForgeryPrediction) -> dict[str, np.ndarray]:
        """Return the probability of each pixel, and the mask of forged pixels."""
        return {"heatmap": prediction.heatmap, "mask": prediction.semantic == 1}

    def count(self, prediction: ForgeryPrediction) -> Counter:
        """Return whether the image is forged."""
        return Counter({"forged" if prediction.forged else "authentic": 1})

    def lines(self, record: Mapping[str, Any], counts: Counter) -> list[str]:
        """Return whether the image is forged, its score, and the fraction of forged pixels."""
        verdict = "forged" if record["forged"] else "authentic"
        return [f"{verdict}, score {record['forgery_score']:.3f}, {record['forged_share']:.1%} of the pixels marked"]

    def summary(self, tally: RunTotals) -> str:
        """Return how many images are forged."""
        return f"forged: {tally.found['forged']} of {tally.inputs} by the score of the whole image"


class ForgeryMerger(Merger):
    """Blends the probabilities of the tiles; the score of the image is the maximum over its tiles.

    Args:
        job: the job.
        size: (height, width) of the image in pixels.
        views: the views of each tile, whose scores are averaged.
        overlap: overlap of neighboring tiles in pixels.
    """

    def __init__(self, job: ForgeryJob, size: tuple[int, int], views: Sequence[View], overlap: int) -> None:
        self.job = job
        self.canvas = MapCanvas(size, overlap, keep=1)
        self.sum = ViewSum(len(views))
        self.scores = dict.fromkeys(views, 0.0)

    def add(self, tile: Tile, view: View, output: Any) -> None:
        """Add the probabilities of one view of one tile."""
        self.scores[view] = max(self.scores[view], float(output.forgery_score))
        for done, values in self.sum.add(tile, pixel_logits(output), view.mirrored):
            self.canvas.add(done, values)

    def result(self) -> ForgeryPrediction:
        """Return the merged prediction."""
        self.canvas.result()
        return self.job.from_heatmap(self.canvas.kept / len(self.scores), float(np.mean(list(self.scores.values()))))


JOBS = (ForgeryJob,)
