"""The jobs of object detection and instance segmentation."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from visionattn.data.recipes import DataSummary, Recipe, Request
from visionattn.errors import ConfigError
from visionattn.heads.detection.analysis import DetectionAnalysis
from visionattn.heads.detection.files import coco_results, write_crops, write_labels
from visionattn.heads.detection.merging import NMS_IOU, flip_prediction, merge_by_nms, merge_tiles
from visionattn.heads.detection.recipe import detection_recipe, instance_recipe
from visionattn.heads.detection.restore import restore_instances
from visionattn.inference.analysis.base import TestData
from visionattn.inference.decoding import decode_instances, look_up
from visionattn.inference.export.outputs import FinalOutputs
from visionattn.inference.image_job import ImageJob
from visionattn.inference.job import Merger, View
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.inference.options import ExportOptions
from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.inference.tiling import Tile

__all__ = ["JOBS", "DetectionJob", "DetectionOptions", "InstanceJob"]


@dataclass(frozen=True)
class DetectionOptions:
    """Options of detectors.

    Attributes:
        save_txt: write the objects of each image in the format of YOLO.
        save_conf: with scores.
        save_crops: write the boxes, cut out of the images.
    """

    save_txt: bool = False
    save_conf: bool = False
    save_crops: bool = False

    def __post_init__(self) -> None:
        if self.save_conf and not self.save_txt:
            raise ConfigError("`save_conf` has no effect without `save_txt`; set both")


class DetectionJob(ImageJob):
    """Boxes with classes."""

    name = "detection"
    OwnOptions = DetectionOptions
    masks = False
    tiles = views = styled = trackable = thresholded = True
    trains_on = "boxes"

    @classmethod
    def matches(cls, model: type, config: Mapping[str, Any]) -> bool:
        """Return True for detectors of mmdet that perform this job."""
        if super().matches(model, config):
            return True
        if "mmdet" not in sys.modules:  # the model is not from mmdet
            return False
        from visionattn.heads.detection.mmlab_models import is_detector, predicts_masks

        return is_detector(model, config) and predicts_masks(model, config) == cls.masks

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the arguments for files of detections; those of `InstanceJob` are the same."""
        if cls.masks:
            return
        group = parser.add_argument_group("boxes and instance masks")
        group.add_argument(
            "--save-txt",
            action="store_true",
            help="write labels/NAME.txt for images: class, center, width and height of each object as fractions of the "
            "image size (YOLO), or the polygon of its mask",
        )
        group.add_argument("--save-conf", action="store_true", help="append the scores to the lines of --save-txt")
        group.add_argument(
            "--save-crops", action="store_true", help="write crops/CLASS/NAME_1.png, ...: the boxes of images, cut out"
        )

    def prediction(self, output: Any, size: tuple[int, int]) -> Prediction:
        """Return the detections above the score threshold, best first."""
        return Prediction(size, **decode_instances(output, size, self.classes, self.class_thresholds), **self.common())

    @classmethod
    def analysis(cls, data: TestData) -> DetectionAnalysis:
        """Return the analysis of boxes, or of masks if there are any."""
        return DetectionAnalysis(data, cls.masks)

    def write(self, out: Path, name: str, prediction: Prediction) -> dict[str, Any]:
        """Write the files that the options ask for."""
        entries = super().write(out, name, prediction)
        if self.own.save_txt:
            entries |= write_labels(out, name, prediction, self.own.save_conf)
        if self.own.save_crops:
            entries |= write_crops(out, name, prediction)
        return entries

    def run_files(self, out: Path) -> contextlib.AbstractContextManager[Callable[[Mapping[str, Any]], None]]:
        """Write the detections of all images as COCO results; frames of videos are not included."""
        return coco_results(out, ("bbox", "segm") if self.masks else ("bbox",))

    def merger(self, item: np.ndarray, views: Sequence[View], overlap: int) -> "BoxMerger":
        """Return a merger by non-maximum suppression."""
        return BoxMerger(self, item.shape[:2])

    @classmethod
    def recipe(cls, data: DataSummary, request: Request) -> Recipe:
        """Return how a detector is trained on the data."""
        return instance_recipe(data, request) if cls.masks else detection_recipe(data, request)

    @classmethod
    def exported(cls, model: nn.Module, options: ExportOptions) -> FinalOutputs:
        """Return the boxes, and masks if there are any."""
        from visionattn.heads.detection.mmlab_export import final_outputs

        return final_outputs(model, options)

    @classmethod
    def restored(cls, outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
        """Return the output of the model for one image from those of an exported program."""
        return restore_instances(outputs, about, geometry)


class InstanceJob(DetectionJob):
    """Boxes with classes and instance masks."""

    name = "instance"
    masks = True
    trains_on = "masks"

    @property
    def pixel_bytes(self) -> int:
        """Estimate of the main memory per pixel; mmdet returns every mask at the size of the image."""
        test_cfg = look_up(self.model.cfg, "model", "test_cfg") or {}
        rcnn = look_up(test_cfg, "rcnn") or {}
        found = rcnn.get("max_per_img") or test_cfg.get("max_per_image") or test_cfg.get("max_per_img") or 100
        # one byte for a mask of a box; masks of queries are resized in float32, and thresholded in copies
        return super().pixel_bytes + int(found) * (1 if rcnn else 12)

    def prediction(self, output: Any, size: tuple[int, int]) -> Prediction:
        """Return the detections above the score threshold, best first."""
        found = decode_instances(output, size, self.classes, self.class_thresholds)
        if found["masks"] is None:  # mmdet omits the field if there are no detections
            found["masks"] = InstanceMasks.from_dense(np.zeros((0, *size), bool))
        return Prediction(size, **found, **self.common())


class BoxMerger(Merger):
    """Merges the detections in all views of each tile, then those of all tiles.

    Args:
        job: the job.
        size: (height, width) of the image in pixels.
    """

    def __init__(self, job: DetectionJob, size: tuple[int, int]) -> None:
        self.job, self.size = job, size
        self.iou_thr = nms_threshold(job.model.cfg)
        self.found: dict[Tile, list[Prediction]] = {}

    def add(self, tile: Tile, view: View, output: Any) -> None:
        """Add the detections of one view of one tile."""
        prediction = self.job.prediction(output, (tile[3] - tile[1], tile[2] - tile[0]))
        self.found.setdefault(tile, []).append(flip_prediction(prediction) if view.mirrored else prediction)

    def result(self) -> Prediction:
        """Return the merged detections."""
        merged = [found[0] if len(found) == 1 else merge_by_nms(found, self.iou_thr) for found in self.found.values()]
        if len(merged) == 1:
            return merged[0]
        return merge_tiles(merged, list(self.found), self.size, self.iou_thr)


def nms_threshold(cfg: Mapping[str, Any]) -> float:
    """Return the IoU threshold of the model's own final NMS, or `NMS_IOU` if it has none."""
    test_cfg = look_up(cfg, "model", "test_cfg") or {}
    nms = look_up(test_cfg, "rcnn", "nms") or look_up(test_cfg, "nms") or {}
    return float(nms["iou_threshold"]) if nms.get("type") == "nms" and "iou_threshold" in nms else NMS_IOU


JOBS = (DetectionJob, InstanceJob)
