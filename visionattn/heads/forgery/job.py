"""The job of forgery detection, and its prediction for one image."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from visionattn.errors import require
from visionattn.heads.forgery.analysis import ForgeryAnalysis
from visionattn.heads.forgery.export import ForgeryOutputs, restore_forgery
from visionattn.inference.analysis.base import TestData
from visionattn.inference.blending import MapCanvas, ViewSum
from visionattn.inference.decoding import pixel_logits, to_array
from visionattn.inference.draw import draw_areas
from visionattn.inference.export.outputs import FinalOutputs
from visionattn.inference.image_job import ImageJob
from visionattn.inference.job import Merger, RunTotals, View
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.inference.options import ExportOptions
from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.inference.tiling import Tile

FORGED, AUTHENTIC = (30, 40, 224), (90, 130, 0)
"""Colors (blue, green, red) of forged areas, unless the data set has one, and of the title of authentic images: the red
and green of the palette."""

__all__ = ["JOBS", "ForgeryJob", "ForgeryPrediction"]


@dataclass(frozen=True)
class ForgeryPrediction(Prediction):
    """Prediction of forged pixels and of whether the image is forged.

    Attributes:
        heatmap: probability that a pixel is forged, float32 ``[H, W]``.
        semantic: 1 where a pixel is forged, 0 elsewhere, ``[H, W]``.
        image_scores: probability that the image is authentic, and that it is forged.
        threshold: images with a higher probability are forged.
    """

    threshold: float = 0.5

    @property
    def forgery_score(self) -> float:
        """Probability that any part of the image is forged."""
        return float(self.image_scores[1])

    @property
    def forged(self) -> bool:
        """True if the probability that the image is forged exceeds the threshold."""
        return self.forgery_score > self.threshold

    def areas(self) -> Prediction:
        """Return each connected area of forged pixels as a mask with its box, the largest first.

        The score of an area is the mean probability of its pixels.
        """
        cv2 = require("cv2")
        count, numbers, stats, _ = cv2.connectedComponentsWithStats((self.semantic == 1).astype(np.uint8))
        order = [index for index in np.argsort(-stats[:, cv2.CC_STAT_AREA], kind="stable").tolist() if index]
        corners, sizes = stats[order, :2], stats[order, 2:4]
        windows = [(slice(y, y + h), slice(x, x + w)) for (x, y), (w, h) in zip(corners, sizes, strict=True)]
        crops = [numbers[window] == index for window, index in zip(windows, order, strict=True)]
        scores = [self.heatmap[window][crop].mean() for window, crop in zip(windows, crops, strict=True)]
        return Prediction(
            self.image_size,
            self.classes,
            boxes=np.concatenate([corners, corners + sizes], axis=1).astype(np.float32),
            scores=np.array(scores, np.float32),
            labels=np.ones(count - 1, np.int64),
            masks=InstanceMasks(crops, [(int(x), int(y)) for x, y in corners], self.image_size),
            opacity=self.opacity,
            line_width=self.line_width,
            hide_labels=self.hide_labels,
        )

    def _overlay(self, image: np.ndarray) -> np.ndarray:
        """Draw the areas of forged pixels with their scores, and the decision for the image as its title.

        In an image that is authentic by its score, the areas are only outlined.
        """
        red = FORGED if self.colors is None else tuple(self.colors[1])[::-1]
        values = (f"forgery score {self.forgery_score:.2f}", f"{self.forgery_score:.2f}", "")
        title = self.classes[int(self.forged)], values, red if self.forged else AUTHENTIC
        return draw_areas(image, self.areas(), red, title, filled=self.forged)


class ForgeryJob(ImageJob):
    """Prediction of the forged pixels, and of whether the image is forged."""

    name = "forgery"
    tiles = views = styled = dataset_colors = True
    record_types: ClassVar[Mapping[str, Any]] = {"forgery_score": float, "forged": bool, "forged_share": float}

    @property
    def threshold_names(self) -> tuple[str, ...]:
        """Names of the thresholds: of the probability of the image, and of those of the pixels."""
        return ("image", "pixels")

    @classmethod
    def analysis(cls, data: TestData) -> ForgeryAnalysis:
        """Return the analysis of images and pixels."""
        return ForgeryAnalysis(data)

    @classmethod
    def exported(cls, model: nn.Module, options: ExportOptions) -> FinalOutputs:
        """Return the final outputs."""
        return ForgeryOutputs(model)

    @classmethod
    def restored(cls, outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
        """Return the output of the model for one image from those of an exported program."""
        return restore_forgery(outputs, about, geometry)

    def prediction(self, output: Any, size: tuple[int, int]) -> ForgeryPrediction:
        """Return the probability of each pixel and of the image."""
        heatmap = to_array(output.forgery_prob.data, np.float32)[0]
        return self.from_heatmap(heatmap, float(output.forgery_score))

    def from_heatmap(self, heatmap: np.ndarray, score: float) -> ForgeryPrediction:
        """Return the prediction for the probabilities of the pixels and of the image."""
        limits = self.options.score_thr if isinstance(self.options.score_thr, Mapping) else {}
        return ForgeryPrediction(
            heatmap.shape,
            heatmap=heatmap,
            semantic=(heatmap > limits.get("pixels", float(self.model.model.threshold))).astype(np.int64),
            image_scores=np.array([1 - score, score], np.float32),
            threshold=limits.get("image", ForgeryPrediction.threshold),
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
