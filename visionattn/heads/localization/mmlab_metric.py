"""Evaluators of weakly supervised localization; the measures are in `visionattn.metrics`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric

from visionattn.engine.registry import METRICS
from visionattn.errors import DataError, require
from visionattn.heads.localization.metrics import (
    BOX_STEP,
    PIXEL_STEP,
    BoxAccuracy,
    PixelPrecision,
    best_centre_box,
    box_iou,
    contour_boxes,
    prepare_map,
    resize_boxes,
    thresholds,
    truth_mask,
)
from visionattn.heads.localization.metrics_sat import LocalizationAccuracy, crop_boxes, normalize_map
from visionattn.heads.localization.sets import read_localization
from visionattn.io.images import decode_image

__all__ = ["LocalizationMetric", "SATLocalizationMetric"]


@METRICS.register_module()
class LocalizationMetric(BaseMetric):
    """MaxBoxAcc, MaxBoxAccV2, PxAP and the share of right classes, by the protocol of Choe et al. (CVPR 2020).

    Maps and true boxes are brought to one size. An image is measured by the map of its true class. In percent:

    - ``MaxBoxAccV2``, ``MaxBoxAcc``, and ``BoxAcc30``, ``BoxAcc50``, ``BoxAcc70``, the parts of the former;
    - ``threshold``, where MaxBoxAcc is reached. It is chosen on the images that it measures, as the protocol has it;
      give the one of the validation as an argument for figures without that advantage;
    - ``GTKnownLoc``, ``Top1Loc``, ``Top5Loc``: right boxes (IoU 0.5, largest contour) at the threshold given, or else
      at ``threshold``, of all images, and of those whose class is right or among the best five;
    - ``Top1``, ``Top5``: right classes;
    - ``PlainV2``: MaxBoxAccV2 by IoUs that do not add a pixel to each side;
    - ``CentreBoxV2``: what the centred box that is best on other images reaches here, with ``centre_from``;
    - ``PxAP`` instead of all about boxes, where the images have masks.

    Args:
        size: height and width that maps and boxes are brought to.
        threshold: of the map, for the three localization accuracies.
        centre_from: metadata folder with boxes and sizes of the training images, for ``CentreBoxV2``.
        step: of the thresholds of boxes.
        pixel_step: width of the bins of PxAP.
        collect_device: of mmengine.
        prefix: of mmengine.
    """

    def __init__(
        self,
        size: Sequence[int] = (224, 224),
        threshold: float | None = None,
        centre_from: str | None = None,
        step: float = BOX_STEP,
        pixel_step: float = PIXEL_STEP,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self.size, self.threshold, self.centre_from = tuple(size), threshold, centre_from
        self.step, self.pixel_step = step, pixel_step

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Measure each sample of a batch."""
        for sample in data_samples:
            score_map = prepare_map(_array(sample["true_map"]), self.size)
            result = _class_hits(sample)
            if sample.get("true_masks"):
                pictures = [_mask(path) for path in sample["true_masks"]]
                ignore = _mask(sample["ignore_mask"]) if sample.get("ignore_mask") else None
                truth = truth_mask(pictures, ignore, self.size)
                result["pixels"] = PixelPrecision(self.pixel_step).histograms(score_map, truth)
            else:
                boxes = resize_boxes(sample["true_boxes"], sample["ori_shape"][:2], self.size)
                result["boxes"] = boxes
                found = contour_boxes(score_map, thresholds(self.step))
                for name, accuracy in self._accuracies().items():
                    result[name] = accuracy.best_ious(score_map, boxes, found)
            self.results.append(result)

    def _accuracies(self) -> dict[str, BoxAccuracy]:
        return {
            "single": BoxAccuracy(multi=False, step=self.step),
            "multi": BoxAccuracy(multi=True, step=self.step),
            "plain": BoxAccuracy(multi=True, step=self.step, extra=0),
        }

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """The figures of the class docstring over all images."""
        metrics: dict[str, float] = {}
        if "pixels" in results[0]:
            precision = PixelPrecision(self.pixel_step)
            for result in results:
                precision.count(result["pixels"])
            metrics["PxAP"] = precision.compute()
        else:
            metrics |= self._box_metrics(results)
        return metrics | {f"Top{k}": float(np.mean([r[f"top{k}"] for r in results]) * 100) for k in (1, 5)}

    def _box_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        accuracies = self._accuracies()
        for name, accuracy in accuracies.items():
            for result in results:
                accuracy.count(result[name])
        single, multi = accuracies["single"].compute(), accuracies["multi"].compute()
        threshold = single.best_threshold[50] if self.threshold is None else self.threshold
        metrics = {"MaxBoxAccV2": multi.max_box_acc_v2, "MaxBoxAcc": single.max_box_acc}
        metrics |= {f"BoxAcc{iou}": value for iou, value in multi.by_iou.items()}
        metrics["threshold"] = single.best_threshold[50]
        metrics["GTKnownLoc"] = single.at(50, threshold)
        for k in (1, 5):
            right = np.array([r[f"top{k}"] for r in results])
            metrics[f"Top{k}Loc"] = accuracies["single"].compute(right).at(50, threshold)
        metrics["PlainV2"] = accuracies["plain"].compute().max_box_acc_v2
        if self.centre_from:
            box, _ = best_centre_box(_train_boxes(self.centre_from, self.size), self.size)
            best = np.array([box_iou(box, r["boxes"]).max() for r in results])
            metrics["CentreBoxV2"] = float(np.mean([(best >= iou).mean() * 100 for iou in (0.3, 0.5, 0.7)]))
        return metrics


@METRICS.register_module()
class SATLocalizationMetric(BaseMetric):
    """GT-known, Top-1 and Top-5 localization accuracy as the authors of SAT measure them.

    For the published protocol the test pipeline resizes to 256x256 and crops the middle 224x224; without that crop
    give ``resize=224``. Figures are in percent, under names that begin with ``SAT_``.

    Args:
        threshold: of the stretched map.
        resize: side of the square that the pipeline resizes images to.
        crop: side of the crop in its middle.
        collect_device: of mmengine.
        prefix: of mmengine.
    """

    def __init__(
        self,
        threshold: float = 0.4,
        resize: int = 256,
        crop: int = 224,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self.threshold, self.resize, self.crop = threshold, resize, crop

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keep what each sample of a batch is measured by."""
        for sample in data_samples:
            score_map = normalize_map(_array(sample["true_map"]), (self.crop, self.crop))
            boxes = crop_boxes(sample["true_boxes"], sample["ori_shape"][:2], self.resize, self.crop)
            accuracy = LocalizationAccuracy(self.threshold)
            scores, label = _array(sample["pred_scores"]), int(sample["gt_label"])
            _, iou = accuracy.add(score_map, boxes, scores, label)
            self.results.append(_class_hits(sample) | {"iou": iou})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """The shares over all images."""
        accuracy = LocalizationAccuracy(self.threshold)
        for result in results:
            accuracy.count(result["iou"], result["top1"], result["top5"])
        scores = accuracy.compute()
        return {"SAT_GTKnown": scores.gt_known, "SAT_Top1Loc": scores.top1, "SAT_Top5Loc": scores.top5}


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _class_hits(sample: dict[str, Any]) -> dict[str, bool]:
    order = np.argsort(-_array(sample["pred_scores"]), kind="stable")
    label = int(sample["gt_label"])
    return {"top1": bool(order[0] == label), "top5": bool(label in order[:5])}


def _mask(path: str) -> np.ndarray:
    return decode_image(path, require("cv2").IMREAD_GRAYSCALE)


def _train_boxes(folder: str, size: tuple[int, int]) -> list[np.ndarray]:
    images = [image for image in read_localization(folder, need_objects=True) if len(image.boxes)]
    lacking = [image.image_id for image in images if image.size is None]
    if lacking:
        raise DataError(f"{folder}: image_sizes.txt has no size of {lacking[0]!r}")
    return [resize_boxes(image.boxes, image.size, size) for image in images]
