"""Analysis of the errors of weakly supervised localization."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.heads.localization.metrics import box_iou
from visionattn.inference.analysis.base import Analysis, Findings, Section, TestData
from visionattn.inference.analysis.blocks import confusions, matrix, number, paragraph
from visionattn.inference.analysis.worst import Example, Worst, pictures
from visionattn.inference.decoding import to_array
from visionattn.inference.results import Prediction

if TYPE_CHECKING:
    from visionattn.engine.train.testing import TestResult

__all__ = ["LocalizationAnalysis"]


class LocalizationAnalysis(Analysis):
    """Confusion matrix of the classes, and the worst images."""

    def __init__(self, data: TestData) -> None:
        super().__init__(data)
        self.counts = np.zeros((len(data.classes),) * 2, np.int64)
        self.ious: list[float] = []
        self.worst = Worst()

    def add(self, sample: Mapping[str, Any]) -> None:
        """Evaluate the class and the box of one image."""
        scores = to_array(sample["pred_scores"], np.float64)
        truth, found = int(sample["gt_label"]), int(scores.argmax())
        boxes = np.asarray(sample.get("true_boxes", []), np.float64).reshape(-1, 4)
        box = to_array(sample["pred_instances"]["bboxes"], np.float64).reshape(-1, 4)
        self.counts[truth, found] += 1
        iou = float(box_iou(box, boxes, extra=0).max()) if len(boxes) and len(box) else None
        if iou is not None:
            self.ious.append(iou)
        error = 1 + float(scores[found]) if truth != found else 0.0 if iou is None else 1 - iou
        names = self.data.classes
        line = f"{names[truth]}, predicted {names[found]} {scores[found]:.3f}, IoU {number(iou)}"

        def draw(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return tuple(
                Prediction(
                    image.shape[:2],
                    names,
                    rows.astype(np.float32),
                    np.full(len(rows), score, np.float32),
                    np.full(len(rows), label),
                ).draw(image)
                for rows, score, label in ((boxes, np.nan, truth), (box, scores[found], found))
            )

        self.worst.offer(error, lambda: Example(str(sample.get("img_path")), [line], draw))

    def findings(self, result: "TestResult") -> Findings:
        """Return the sections."""
        names = list(self.data.classes)
        notes = (
            "The class with the highest score of each image.",
            "Images with a wrong class, those with the highest score first, then those with the lowest IoU of the box.",
        )
        block = matrix(self.counts, names, names, row_title="true class", column_title="predicted class")
        sections = [
            Section("Confusion matrix", [paragraph(notes[0]), block, confusions(self.counts, names, "images")]),
            Section("Worst images", [paragraph(notes[1]), pictures(self.worst.items())]),
        ]
        mean = round(float(np.mean(self.ious)), 5) if self.ious else None
        return Findings(sections, {"confusion": self.counts.tolist(), "mean_iou": mean})
