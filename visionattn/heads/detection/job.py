"""The jobs of object detection and instance segmentation."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from visionattn.heads.detection.merging import NMS_IOU, flip_prediction, merge_by_nms, merge_tiles
from visionattn.inference.decoding import decode_instances, look_up
from visionattn.inference.image_job import ImageJob, TensorMode
from visionattn.inference.job import Merger, View
from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.inference.tiling import Tile

__all__ = ["JOBS", "DetectionJob", "InstanceJob"]


class DetectionJob(ImageJob):
    """Boxes with classes."""

    name = "detection"
    masks = False
    tiles = views = styled = thresholded = True

    @classmethod
    def matches(cls, model: type, config: Mapping[str, Any]) -> bool:
        """Return True for detectors of mmdet that perform this job."""
        if super().matches(model, config):
            return True
        if "mmdet" not in sys.modules:  # the model is not from mmdet
            return False
        from visionattn.heads.detection.mmlab_models import is_detector, predicts_masks

        return is_detector(model, config) and predicts_masks(model, config) == cls.masks

    def prediction(self, output: Any, size: tuple[int, int]) -> Prediction:
        """Return the detections above the score threshold, best first."""
        return Prediction(size, **decode_instances(output, size, self.classes, self.options.score_thr), **self.common())

    def merger(self, item: np.ndarray, views: Sequence[View], overlap: int) -> "BoxMerger":
        """Return a merger by non-maximum suppression."""
        return BoxMerger(self, item.shape[:2])

    @classmethod
    def exported(cls, model: nn.Module) -> nn.Module:
        """Return the raw outputs of a one-stage head; of two-stage detectors the feature maps of the neck."""
        return TensorMode(model, features_only=hasattr(model, "roi_head"))


class InstanceJob(DetectionJob):
    """Boxes with classes and instance masks."""

    name = "instance"
    masks = True

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
        found = decode_instances(output, size, self.classes, self.options.score_thr)
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
