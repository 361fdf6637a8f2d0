"""Analysis of the errors of semantic and panoptic segmentation."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.data.panoptic import PanopticStats, rgb2id
from visionattn.errors import require
from visionattn.heads.segmentation.segments import decode_segments
from visionattn.inference.analysis.base import Analysis, Findings, Section, TestData
from visionattn.inference.analysis.blocks import confusions, matrix, paragraph, table
from visionattn.inference.analysis.worst import Example, Worst, pictures, shrunk
from visionattn.inference.decoding import to_array
from visionattn.inference.results import Prediction
from visionattn.io.console import count_of
from visionattn.io.images import decode_image
from visionattn.io.json import read_json

if TYPE_CHECKING:
    from visionattn.engine.train.testing import TestResult

__all__ = ["PanopticAnalysis", "SemanticAnalysis"]


class SemanticAnalysis(Analysis):
    """Confusion matrix of the pixels, scores by class, and the images with the lowest mean IoU."""

    def __init__(self, data: TestData) -> None:
        super().__init__(data)
        self.counts = np.zeros((len(data.classes),) * 2, np.int64)
        self.worst = Worst()

    def add(self, sample: Mapping[str, Any]) -> None:
        """Count the pixels of one image by true and predicted class; unlabeled pixels do not count."""
        if "gt_sem_seg" not in sample:
            return
        number = len(self.data.classes)
        truth, found = _map(sample["gt_sem_seg"]), _map(sample["pred_sem_seg"])
        known = (truth >= 0) & (truth < number)
        counts = np.bincount(truth[known] * number + found[known], minlength=number**2).reshape(number, number)
        self.counts += counts
        iou = _iou(counts)
        if known.any():
            mean = float(np.nanmean(iou))
            self.worst.offer(1 - mean, lambda: self._example(sample, truth, found, mean))

    def _example(self, sample: Mapping[str, Any], truth: np.ndarray, found: np.ndarray, mean: float) -> Example:
        maps = shrunk(np.where((truth >= 0) & (truth < len(self.data.classes)), truth, len(self.data.classes)))
        maps = maps, shrunk(found)

        def draw(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            image = _resized(image, maps[0].shape)
            fields = {"classes": self.data.classes, "colors": self.data.colors}
            return tuple(Prediction(values.shape, semantic=values, **fields).draw(image) for values in maps)

        return Example(str(sample.get("img_path")), [f"mean IoU {mean:.3f}"], draw)

    def findings(self, result: "TestResult") -> Findings:
        """Return the sections."""
        names, counts = list(self.data.classes), self.counts
        if not counts.any():
            return Findings([Section("Errors", [paragraph("The test data have no labeled pixels.")])])
        right = np.diag(counts)
        with np.errstate(invalid="ignore"):
            precision, recall = right / counts.sum(0), right / counts.sum(1)
        rows = [
            [name, *values]
            for name, *values in zip(
                names, (counts.sum(1) / counts.sum()).tolist(), _iou(counts).tolist(), precision.tolist(),
                recall.tolist(), strict=True,
            )
        ]  # fmt: skip
        notes = (
            "Shares of the pixels of each true class, in percent, over all images. Unlabeled pixels do not count.",
            "The images with the lowest mean IoU over the classes that occur in their truth or prediction.",
        )
        block = matrix(counts, names, names, row_title="true class", column_title="predicted class", percent=True)
        sections = [
            Section("Classes", [table(["class", "share of pixels", "IoU", "precision", "recall"], rows)]),
            Section("Confusion matrix", [paragraph(notes[0]), block, confusions(counts, names, "pixels")]),
            Section("Worst images", [paragraph(notes[1]), pictures(self.worst.items())]),
        ]
        return Findings(sections, {"confusion": counts.tolist()})


class PanopticAnalysis(Analysis):
    """Matched and unmatched segments by class, and the images with most unmatched segments."""

    def __init__(self, data: TestData) -> None:
        super().__init__(data)
        self.total, self.worst, self.segments = PanopticStats(), Worst(), {}
        evaluators = data.config["test_evaluator"]
        for metric in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
            if metric.get("ann_file") and metric.get("seg_prefix") is not None:
                content = read_json(metric["ann_file"])
                self.label = {
                    c["id"]: data.classes.index(c["name"]) for c in content["categories"] if c["name"] in data.classes
                }
                self.folder = Path(metric["seg_prefix"])
                self.segments = {record["image_id"]: record for record in content["annotations"]}

    def add(self, sample: Mapping[str, Any]) -> None:
        """Match the segments of one image."""
        record = self.segments.get(sample.get("img_id"))
        if record is None:
            return
        number = len(self.data.classes)
        color = decode_image(self.folder / record["file_name"], require("cv2").IMREAD_COLOR)
        truth = rgb2id(color[..., ::-1])
        found = _map(sample["pred_panoptic_seg"])
        codes = [int(code) for code in np.unique(found) if code % 1000 < number]
        known = [
            {**s, "category_id": self.label[s["category_id"]]}
            for s in record["segments_info"]
            if s["category_id"] in self.label
        ]
        stats = PanopticStats()
        stats.add_image(
            truth,
            known,
            np.where(found % 1000 < number, found + 1, 0),  # 0 has no segment, but is the code of a segment of class 0
            [{"id": code + 1, "category_id": code % 1000} for code in codes],
        )
        self.total += stats
        extra, missed = (sum(getattr(c, name) for c in stats.pq_per_cat.values()) for name in ("fp", "fn"))
        self.worst.offer(extra + missed, lambda: self._example(sample, truth, known, found, (extra, missed)))

    def _example(
        self, sample: Mapping[str, Any], truth: np.ndarray, known: list, found: np.ndarray, wrong: tuple[int, int]
    ) -> Example:
        number = len(self.data.classes)
        true, codes = shrunk(truth), shrunk(found)
        known_codes = np.full(true.shape, number, np.int64)
        for index, segment in enumerate(known, 1):
            known_codes[true == segment["id"]] = segment["category_id"] + 1000 * index

        def draw(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            image = _resized(image, codes.shape)
            fields = {"classes": self.data.classes, "colors": self.data.colors}
            return tuple(
                Prediction(values.shape, **decode_segments(values, number), **fields).draw(image)
                for values in (known_codes, codes)
            )

        line = f"{count_of(wrong[0], 'predicted segment')} without a match, {wrong[1]} of {len(known)} true ones"
        return Example(str(sample.get("img_path")), [line], draw)

    def findings(self, result: "TestResult") -> Findings:
        """Return the sections."""
        if not self.segments:
            note = "The analysis needs a CocoPanopticMetric with `ann_file` and `seg_prefix` in `test_evaluator`."
            return Findings([Section("Errors", [paragraph(note)])])
        rows, figures = [], {}
        for label, name in enumerate(self.data.classes):
            counts = self.total[label]
            quality = counts.quality()
            occurs = counts.tp + counts.fp + counts.fn > 0
            values = [quality[key] if occurs else None for key in ("pq", "sq", "rq")]
            rows.append([name, *values, counts.tp, counts.fp, counts.fn])
            figures[name] = {"matched": counts.tp, "extra": counts.fp, "missed": counts.fn, "PQ": values[0]}
        notes = (
            "A predicted and a true segment of one class match if their IoU exceeds 0.5.",
            "The images with most segments without a match, in prediction and truth together.",
        )
        heads = ["class", "PQ", "SQ", "RQ", "matched", "unmatched predictions", "unmatched truth"]
        sections = [
            Section("Segments", [paragraph(notes[0]), table(heads, rows)]),
            Section("Worst images", [paragraph(notes[1]), pictures(self.worst.items())]),
        ]
        return Findings(sections, {"segments": figures})


def _map(field: Any) -> np.ndarray:
    """Return the map of a PixelData in the form of a dict, int64 ``[H, W]``."""
    return to_array(field["data"] if "data" in field else field["sem_seg"], np.int64).squeeze()


def _iou(counts: np.ndarray) -> np.ndarray:
    """Return the IoU of each class from a confusion matrix, NaN for classes that do not occur."""
    right = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - right
    return np.divide(right, union, out=np.full(len(counts), np.nan), where=union > 0)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    cv2 = require("cv2")
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
