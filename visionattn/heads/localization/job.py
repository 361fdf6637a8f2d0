"""The job of weakly supervised localization."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from torch import nn

from visionattn.data.recipes import DataSummary, Recipe, Request
from visionattn.heads.localization.analysis import LocalizationAnalysis
from visionattn.heads.localization.export import LocalizationOutputs, restore_localization
from visionattn.heads.localization.metrics_sat import normalize_map
from visionattn.heads.localization.recipe import localization_recipe
from visionattn.inference.analysis.base import TestData
from visionattn.inference.decoding import decode_instances, to_array
from visionattn.inference.export.outputs import FinalOutputs
from visionattn.inference.image_job import ImageJob
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.inference.options import ExportOptions
from visionattn.inference.results import Prediction

__all__ = ["JOBS", "LocalizationJob"]


class LocalizationJob(ImageJob):
    """The class of an image, the heat map of that class, and a box around its largest region."""

    name = "localization"
    styled = thresholded = True
    trains_on = "labels"
    record_types: ClassVar[Mapping[str, Any]] = {**ImageJob.record_types, "image_scores": {str: float}}

    @classmethod
    def recipe(cls, data: DataSummary, request: Request) -> Recipe:
        """Return how a class activation map model is trained on the data."""
        return localization_recipe(data, request)

    @classmethod
    def analysis(cls, data: TestData) -> LocalizationAnalysis:
        """Return the analysis of classes and boxes."""
        return LocalizationAnalysis(data)

    @classmethod
    def exported(cls, model: nn.Module, options: ExportOptions) -> FinalOutputs:
        """Return the final outputs."""
        return LocalizationOutputs(model, options.resize)

    @classmethod
    def restored(cls, outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
        """Return the output of the model for one image from those of an exported program."""
        return restore_localization(outputs, about, geometry)

    def prediction(self, output: Any, size: tuple[int, int]) -> Prediction:
        """Return box, class scores and heat map."""
        return Prediction(
            size,
            **decode_instances(output, size, self.classes, self.class_thresholds),
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
