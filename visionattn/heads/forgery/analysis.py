"""Analysis of the errors of forgery detection."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.errors import require
from visionattn.heads.forgery.metrics import binary_auc
from visionattn.inference.analysis.base import Analysis, Findings, Section, TestData
from visionattn.inference.analysis.blocks import columns, matrix, number, paragraph
from visionattn.inference.analysis.plots import Series, line_plot
from visionattn.inference.analysis.worst import Example, Worst, pictures, shrunk
from visionattn.inference.decoding import to_array
from visionattn.inference.heatmap import paint_heatmap
from visionattn.inference.results import Prediction

if TYPE_CHECKING:
    from visionattn.engine.train.testing import TestResult

__all__ = ["ForgeryAnalysis", "roc"]

STEPS = 100
IGNORED = 255


class ForgeryAnalysis(Analysis):
    """ROC curve of the images, F1 of the pixels by threshold, and the worst images."""

    def __init__(self, data: TestData) -> None:
        super().__init__(data)
        self.scores: list[float] = []
        self.labels: list[bool] = []
        self.f1 = np.zeros(STEPS)  # sum over the forged images, by threshold
        self.marked = np.zeros(STEPS)  # sum of the shares of marked pixels over the authentic images
        self.worst = Worst()

    def add(self, sample: Mapping[str, Any]) -> None:
        """Evaluate the pixels of one image at all thresholds."""
        truth = to_array(_data(sample["gt_sem_seg"]), np.int64).squeeze()
        probability = to_array(_data(sample["forgery_prob"]), np.float32).squeeze()
        score, valid = float(sample["forgery_score"]), truth != IGNORED
        forged = truth == 1
        label = sample.get("forgery_label")
        label = bool(forged.any()) if label is None else bool(label)
        self.scores.append(score)
        self.labels.append(label)
        # a pixel exceeds the thresholds 0, 1 / STEPS, ... below its level
        level = np.ceil(probability * STEPS).clip(0, STEPS).astype(np.int64)
        hits, alarms = (
            np.bincount(level[chosen], minlength=STEPS + 1)[::-1].cumsum()[::-1][1:]
            for chosen in (forged & valid, ~forged & valid)
        )
        f1 = 2 * hits / np.maximum(hits + alarms + np.count_nonzero(forged & valid), 1)
        if label:
            self.f1 += f1
            error, line = 1 - float(f1[STEPS // 2]), f"pixel F1 {f1[STEPS // 2]:.3f} at a threshold of 0.5"
        else:
            self.marked += alarms / max(np.count_nonzero(valid), 1)
            error, line = score, "authentic"
        lines = [f"score {score:.3f}, {line}"]
        self.worst.offer(error, lambda: self._example(sample, shrunk(forged), shrunk(probability), lines))

    def _example(self, sample: Mapping[str, Any], truth: np.ndarray, heat: np.ndarray, lines: list[str]) -> Example:
        def draw(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            cv2 = require("cv2")
            image = cv2.resize(image, truth.shape[::-1], interpolation=cv2.INTER_AREA)
            fields = {"classes": self.data.classes, "colors": self.data.colors}
            known = Prediction(truth.shape, semantic=truth.astype(np.int64), **fields)
            return known.draw(image), paint_heatmap(image, heat)

        return Example(str(sample.get("img_path")), lines, draw)

    def findings(self, result: "TestResult") -> Findings:
        """Return the sections and the two thresholds."""
        figures: dict[str, Any] = {}
        image, pixels = self._images(figures), self._pixels(figures)
        note = (
            "Forged images with a low F1 of their pixels (error: 1 - F1 at a threshold of 0.5) and authentic images "
            "with a high score (error: score), the largest errors first. Right: the probabilities of the pixels."
        )
        worst = Section("Worst images", [paragraph(note), pictures(self.worst.items())])
        thresholds = {"image": figures.get("image_threshold"), "pixels": figures.get("pixel_threshold")}
        criterion = "image: true minus false positive rate; pixels: mean F1 of the forged images"
        return Findings([image, pixels, worst], figures, thresholds, criterion)

    def _images(self, figures: dict[str, Any]) -> Section:
        scores, labels = np.array(self.scores), np.array(self.labels, bool)
        if labels.all() or not labels.any():
            return Section("Images", [paragraph("A ROC curve needs forged and authentic images.")])
        false, true, threshold, at = roc(scores, labels)
        figures |= {"image_auc": round(binary_auc(scores, labels), 5), "image_threshold": threshold}
        plot = line_plot(
            [Series(f"AUC {figures['image_auc']:.3f}", false, true, (false[at], true[at]))],
            title="ROC curve of the images", x_label="false positive rate", y_label="true positive rate", diagonal=True,
        )  # fmt: skip
        note = (
            f"The dot marks the best threshold, {number(threshold)}, at which the true minus the false positive rate "
            "is largest."
        )
        counts = np.zeros((2, 2), np.int64)
        np.add.at(counts, (labels.astype(int), (scores > threshold).astype(int)), 1)
        names = ["authentic", "forged"]
        block = matrix(counts, names, names, row_title="truth", column_title="prediction at the best threshold")
        return Section("Images", [paragraph(note), columns(plot, block)])

    def _pixels(self, figures: dict[str, Any]) -> Section:
        forged = sum(self.labels)
        authentic = len(self.labels) - forged
        if not forged:
            return Section("Pixels", [paragraph("The F1 of the pixels needs forged images.")])
        levels, f1 = np.arange(STEPS) / STEPS, self.f1 / forged
        at = int(f1.argmax())
        figures |= {"pixel_threshold": float(levels[at]), "pixel_f1": np.round(f1, 5).tolist()}
        series = [Series("mean F1 of the forged images", levels, f1, (levels[at], f1[at]))]
        if authentic:
            series.append(Series("marked share of the authentic images", levels, self.marked / authentic))
        note = f"F1 is highest, {f1[at]:.3f}, at a threshold of {levels[at]:g}; it is {f1[STEPS // 2]:.3f} at 0.5."
        plot = line_plot(series, title="Pixels by threshold", x_label="threshold", y_label="F1, share")
        return Section("Pixels", [paragraph(note), plot])


def roc(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Compute the ROC curve.

    Args:
        scores: ``[N]``.
        labels: bool ``[N]``, with both values.

    Returns:
        False and true positive rates, from no positive to all; the threshold at which the true minus the false
        positive rate is largest, halfway between two scores; and the index of its point.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.diff(ranked, append=-np.inf))
    true = np.append(0, np.cumsum(labels[order])[last]) / labels.sum()
    false = np.append(0, np.cumsum(~labels[order])[last]) / (~labels).sum()
    at = int((true - false).argmax())
    edges = np.concatenate([[1.0], ranked[last], [0.0]])  # the point k is above the threshold between k and k + 1
    return false, true, round(float((edges[at] + edges[at + 1]) / 2), 6), at


def _data(field: Any) -> Any:
    return field["data"] if isinstance(field, Mapping) else getattr(field, "data", field)
