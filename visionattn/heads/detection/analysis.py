"""Analysis of the errors of detectors, at an IoU of 0.5, from the results that COCO's evaluation has written."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionattn.errors import require
from visionattn.heads.detection.curves import BINS, Curve, calibration, class_curve, confusion
from visionattn.heads.detection.errors import TYPES, Errors, error_costs, find_errors
from visionattn.heads.detection.examples import Scene, worst_images
from visionattn.heads.detection.matching import RANGES, Matches, Objects, match, mean_ap
from visionattn.inference.analysis.base import Analysis, Findings, Section, TestData
from visionattn.inference.analysis.blocks import columns, confusions, matrix, number, paragraph, table
from visionattn.inference.analysis.plots import Series, bars, line_plot, reliability
from visionattn.inference.analysis.worst import pictures
from visionattn.inference.options import Options
from visionattn.io.json import read_json

if TYPE_CHECKING:
    from visionattn.engine.train.testing import TestResult

__all__ = ["DetectionAnalysis", "load_objects"]

SHOWN = 10
"""Number of curves in a plot."""
DESCRIPTIONS = {
    "localization": "right class, but an IoU of 0.1 to 0.5",
    "classification": "on an object of another class",
    "duplicate": "on an object that another detection matches",
    "background": "on no object: an IoU of at most 0.1",
    "both": "wrong class and an IoU of 0.1 to 0.5",
    "missed": "object without any of these detections",
    "false positives": "all detections without a match",
    "false negatives": "all objects without a match",
}


class DetectionAnalysis(Analysis):
    """Error types, curves, confusion matrix, sizes, calibration, and the images with most errors.

    Args:
        data: the test data.
        masks: compare masks instead of boxes.
    """

    def __init__(self, data: TestData, masks: bool) -> None:
        super().__init__(data)
        self.kind = "segm" if masks else "bbox"
        self.paths: dict[Any, str] = {}

    def add(self, sample: Mapping[str, Any]) -> None:
        """Keep the path of the image; the predictions are in the result files."""
        self.paths[sample.get("img_id")] = str(sample.get("img_path"))

    def findings(self, result: "TestResult") -> Findings:
        """Analyze the result files."""
        found = [path for path in result.files if path.name == f"predictions.{self.kind}.json"]
        if self.kind not in result.annotations or not found:
            note = f"The analysis needs a CocoMetric with `metric` {self.kind!r} and `ann_file` in `test_evaluator`."
            return Findings([Section("Errors", [paragraph(note)])])
        truth, detections, ids = load_objects(result.annotations[self.kind], found[0], self.data.classes, self.kind)
        matches = match(detections, truth, len(ids))
        return _Report(self, truth, detections, ids, matches).findings()


def load_objects(
    ann_file: str | Path, predictions: str | Path, classes: tuple[str, ...], kind: str
) -> tuple[Objects, Objects, list]:
    """Read COCO annotations and results.

    Args:
        ann_file: the annotations.
        predictions: detections in COCO's result format.
        classes: class names; annotations and results of other categories are not read.
        kind: ``"bbox"``, or ``"segm"`` for masks.

    Returns:
        Ground truth, detections, and the image ids by index.
    """
    content = read_json(ann_file)
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in content["images"]}
    ids = sorted(sizes)
    index = {image: position for position, image in enumerate(ids)}
    label = {c["id"]: classes.index(c["name"]) for c in content["categories"] if c["name"] in classes}

    def gather(records: list[dict], ground_truth: bool) -> Objects:
        records = [r for r in records if r["category_id"] in label and r["image_id"] in index]
        image = np.array([index[r["image_id"]] for r in records], np.int64)
        score = None if ground_truth else np.array([r["score"] for r in records], np.float64)
        order = np.argsort(image, kind="stable") if score is None else np.lexsort((-score, image))
        records = [records[position] for position in order]
        box = (
            np.array([r["bbox"] for r in records], np.float64).reshape(-1, 4)
            if "bbox" in (records or [{}])[0]
            else None
        )
        rle = [_rle(r["segmentation"], *sizes[r["image_id"]]) for r in records] if kind == "segm" else None
        if box is None:
            box = require("pycocotools.mask").toBbox(rle).reshape(-1, 4) if rle else np.zeros((0, 4))
        if ground_truth:
            area = np.array([r["area"] for r in records], np.float64)
        elif rle:
            measure = require("pycocotools.mask").area  # one at a time: lists of large masks overflow in 2.0.11
            area = np.array([measure(code) for code in rle], np.float64)
        else:
            area = box[:, 2] * box[:, 3]
        return Objects(
            image[order],
            np.array([label[r["category_id"]] for r in records], np.int64),
            area,
            box,
            rle,
            None if score is None else score[order],
            np.array([bool(r.get("iscrowd")) for r in records], bool) if ground_truth else None,
        )

    truth = gather(content.get("annotations", []), True)
    del content
    return truth, gather(read_json(predictions), False), ids


def _rle(segmentation: Any, height: int, width: int) -> dict:
    """Return polygons, an uncompressed or a compressed RLE as compressed RLE."""
    api = require("pycocotools.mask")
    if isinstance(segmentation, list):
        return api.merge(api.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return api.frPyObjects(segmentation, height, width)
    return segmentation


class _Report:
    """The sections for one test."""

    def __init__(self, job: DetectionAnalysis, truth: Objects, detections: Objects, ids: list, matches: Matches):
        self.data, self.masks, self.paths = job.data, job.kind == "segm", job.paths
        self.truth, self.detections, self.ids, self.matches = truth, detections, ids, matches
        self.names = list(job.data.classes)
        self.classes = len(self.names)
        self.objects = np.bincount(truth.label[~truth.crowd], minlength=self.classes)
        self.curves = [self._curve(label) for label in range(self.classes)]
        limits = np.array([Options.score_thr if c.best is None else c.best for c in self.curves])
        self.kept = detections.score >= limits[detections.label]
        self.errors: Errors = find_errors(detections, truth, matches)

    def _curve(self, label: int) -> Curve:
        mine = (self.detections.label == label) & self.matches.counted
        return class_curve(self.detections.score[mine], self.matches.correct[mine], self.objects[label])

    def findings(self) -> Findings:
        what = "masks" if self.masks else "boxes"
        figures: dict[str, Any] = {"compared": what, "iou": 0.5}
        sections = [
            self._costs(figures, what), self._curves(figures), self._confusion(figures), self._sizes(figures),
            self._calibration(figures), self._worst(),
        ]  # fmt: skip
        thresholds = {name: curve.best for name, curve in zip(self.names, self.curves, strict=True)}
        return Findings(sections, figures, thresholds, "F1 at an IoU of 0.5")

    def _costs(self, figures: dict, what: str) -> Section:
        costs = error_costs(self.detections, self.truth, self.matches, self.errors, self.classes)
        counts = self.errors.counts()
        counts["false positives"] = sum(counts[name] for name in TYPES if name != "missed")
        counts["false negatives"] = int(self.errors.unmatched.sum())
        figures["errors"] = {k: {"number": counts[k], "cost": round(100 * costs[k], 3)} for k in DESCRIPTIONS}
        rows = [[name, counts[name], 100 * costs[name], description] for name, description in DESCRIPTIONS.items()]
        names = list(TYPES)
        note = (
            f"Errors of {what}, of all detections of the test, as defined by TIDE. The cost of a type is the AP50 with "
            f"its errors corrected minus the AP50, which is {100 * costs['AP50']:.2f}, in percentage points. The costs "
            "do not add up, as correcting one type may reveal another."
        )
        plot = bars(names, [100 * costs[name] for name in names], title="Cost in AP50, percentage points")
        return Section(
            "Types of errors", [paragraph(note), columns(table(["type", "number", "cost", "meaning"], rows, 2), plot)]
        )

    def _curves(self, figures: dict) -> Section:
        ap = mean_ap(self.detections, self.truth, self.matches, self.classes, 0)
        rows, thresholds = [], {}
        for name, count, curve in zip(self.names, self.objects.tolist(), self.curves, strict=True):
            at = (float(a[curve.at]) for a in (curve.f1, curve.precision, curve.recall)) if curve.at is not None else ()
            best = tuple(at) or (None, None, None)
            rows.append([name, count, curve.best, *best])
            thresholds[name] = {"threshold": curve.best, "f1": best[0], "precision": best[1], "recall": best[2]}
        figures["thresholds"] = thresholds
        order = np.argsort(np.nan_to_num(ap[:, 0], nan=2.0), kind="stable")[:SHOWN]
        shown = [label for label in order.tolist() if self.objects[label]]
        recall = [
            Series(self.names[k], c.recall, c.precision, None if c.at is None else (c.recall[c.at], c.precision[c.at]))
            for k in shown
            if len((c := self.curves[k]).score)
        ]
        scores = [
            Series(self.names[k], c.score, c.f1, None if c.at is None else (c.best, c.f1[c.at]))
            for k in shown
            if len((c := self.curves[k]).score)
        ]
        note = (
            "The threshold is the score at which F1 is highest; dots mark it. visionattn infer --score-thr best uses "
            "the threshold of each class."
        )
        if np.count_nonzero(self.objects) > SHOWN:
            note += f" The plots show the {SHOWN} classes with the lowest AP50."
        heads = ["class", "objects", "threshold", "F1", "precision", "recall"]
        plots = columns(
            line_plot(recall, title="Precision and recall", x_label="recall", y_label="precision"),
            line_plot(scores, title="F1 by score threshold", x_label="score threshold", y_label="F1"),
        )
        return Section("Score thresholds", [paragraph(note), table(heads, rows), plots])

    def _confusion(self, figures: dict) -> Section:
        counts = confusion(self.detections, self.truth, self.matches, self.kept, self.classes)
        figures["confusion"] = counts.tolist()
        note = (
            "At an IoU of 0.5, with detections above the best threshold of their class "
            f"({Options.score_thr:g} for classes without one)."
        )
        block = matrix(
            counts, [*self.names, "background"], [*self.names, "missed"],
            row_title="objects, and detections on the background", column_title="detections",
        )  # fmt: skip
        pairs = confusions(counts[:-1, :-1], self.names, "objects")
        return Section("Confusion matrix", [paragraph(note), block, pairs])

    def _sizes(self, figures: dict) -> Section:
        names = list(RANGES)[1:]
        ap = [mean_ap(self.detections, self.truth, self.matches, self.classes, k + 1) for k in range(len(names))]
        counts = [
            np.bincount(self.truth.label[~self.matches.excluded[k + 1]], minlength=self.classes) for k in range(3)
        ]
        found = np.zeros(len(self.truth), bool)
        found[self.matches.truth[self.kept & self.matches.correct]] = True
        rows = []
        for k, name in enumerate(names):
            inside = ~self.matches.excluded[k + 1]
            recall = float(found[inside].mean()) if inside.any() else None
            values = [_mean(ap[k]), _mean(ap[k][:, 0])]
            figures.setdefault("sizes", {})[name] = {"objects": int(inside.sum()), "AP": values[0], "AP50": values[1]}
            rows.append([name, int(inside.sum()), *values, recall])
        heads = ["size", "objects", "AP", "AP50", "recall at the thresholds"]
        blocks = [
            paragraph(
                "By the area of the object, as in COCO: small up to 32², large from 96² square pixels of the image."
            ),
            table(heads, rows),
        ]
        if self.classes > 1:
            per_class = [
                [name, *(v for k in range(3) for v in (int(counts[k][label]), float(ap[k][label].mean())))]
                for label, name in enumerate(self.names)
            ]
            blocks.append(table(["class", *(h for name in names for h in (name, "AP"))], per_class))
        return Section("Sizes of objects", blocks)

    def _calibration(self, figures: dict) -> Section:
        used = self.matches.counted
        observed, counts, error = calibration(self.detections.score[used], self.matches.correct[used])
        figures["ece"] = round(error, 5)
        note = (
            f"Share of the detections in each of {BINS} bins of scores that match an object at an IoU of 0.5. Bars "
            "below the diagonal: scores are too high; above: too low. Darker bars have more detections. Expected "
            f"calibration error (ECE): {number(error)} over {int(used.sum())} detections."
        )
        plot = reliability(
            observed, counts, title="Reliability", x_label="score", y_label="share of correct detections"
        )
        return Section("Calibration", [paragraph(note), plot])

    def _worst(self) -> Section:
        note = (
            "The images with most errors: detections above the best thresholds without a match at an IoU of 0.5, and "
            "objects without a match. Errors have a frame in black and white."
        )
        scene = Scene(self.truth, self.detections, self.kept, self.matches, self.data, self.masks)
        return Section("Worst images", [paragraph(note), pictures(worst_images(scene, self.ids, self.paths))])


def _mean(values: np.ndarray) -> float | None:
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else None
