"""Weakly supervised localization metrics for mmengine's evaluator."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
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
    best_center_box,
    box_iou,
    contour_boxes,
    prepare_map,
    resize_boxes,
    thresholds,
    truth_mask,
)
from visionattn.heads.localization.metrics_sat import LocalizationAccuracy, crop_boxes, normalize_map
from visionattn.heads.localization.sets import read_class_folders, read_localization
from visionattn.io.images import decode_image, image_size

__all__ = ["LocalizationMetric", "SATLocalizationMetric"]


@METRICS.register_module()
class LocalizationMetric(BaseMetric):
    """MaxBoxAcc, MaxBoxAccV2, PxAP and classification accuracy, with the protocol of Choe et al. (CVPR 2020).

    Maps and ground-truth boxes are resized to one size. The map of the ground-truth class is evaluated. In percent:

    - ``MaxBoxAccV2``, ``MaxBoxAcc``, and ``BoxAcc30``, ``BoxAcc50``, ``BoxAcc70``, the components of MaxBoxAccV2;
    - ``threshold``: the threshold (not in percent) at which MaxBoxAcc is reached. The protocol selects it on the test
      images; for an unbiased result, pass the threshold of the validation set as an argument;
    - ``GTKnownLoc``, ``Top1Loc``, ``Top5Loc``: localization accuracy (IoU 0.5, largest contour) at the given
      threshold, or else at ``threshold``; for the latter two, the class must also be correct or among the top five;
    - ``Top1``, ``Top5``: classification accuracy;
    - ``PlainV2``: MaxBoxAccV2 with the standard IoU instead of the pixel-inclusive one;
    - ``CentreBoxV2``: accuracy of the centered box that is best on the images of ``centre_from``, if given;
    - ``PxAP``: in place of the box metrics if the images have masks.

    Images without boxes and masks are only evaluated for classification.

    Args:
        size: height and width that maps and boxes are resized to.
        threshold: threshold on the map for the three localization accuracies.
        centre_from: for ``CentreBoxV2``, the metadata folder of the training images with boxes and sizes, or a folder
            with one subfolder of images per class and ``boxes.csv``.
        step: step of the box thresholds.
        pixel_step: bin width of PxAP.
        collect_device, prefix: see ``mmengine.evaluator.BaseMetric``.
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

    def check(self, dataset: Any) -> None:
        """Read the boxes of ``centre_from`` before a run.

        Raises:
            DataError: they are missing.
        """
        if self.centre_from:
            _ = self._centre_box

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Evaluate each sample of a batch."""
        for sample in data_samples:
            score_map = prepare_map(_array(sample["true_map"]), self.size)
            result = _class_hits(sample)
            if sample.get("true_masks"):
                masks = [_mask(path) for path in sample["true_masks"]]
                ignore = _mask(sample["ignore_mask"]) if sample.get("ignore_mask") else None
                truth = truth_mask(masks, ignore, self.size)
                result["pixels"] = PixelPrecision(self.pixel_step).histograms(score_map, truth)
            elif len(sample["true_boxes"]):
                boxes = resize_boxes(sample["true_boxes"], sample["ori_shape"][:2], self.size)
                result["boxes"] = boxes
                found = contour_boxes(score_map, thresholds(self.step))
                for name, accuracy in self._accuracies().items():
                    result[name] = accuracy.best_ious(score_map, boxes, found)
            self.results.append(result)

    @cached_property
    def _centre_box(self) -> np.ndarray:
        """The centered box that is best on the training images."""
        return best_center_box(_train_boxes(str(self.centre_from), self.size), self.size)[0]

    def _accuracies(self) -> dict[str, BoxAccuracy]:
        return {
            "single": BoxAccuracy(multi=False, step=self.step),
            "multi": BoxAccuracy(multi=True, step=self.step),
            "plain": BoxAccuracy(multi=True, step=self.step, extra=0),
        }

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the metrics listed in the class docstring."""
        metrics: dict[str, float] = {}
        pixels, boxed = [r for r in results if "pixels" in r], [r for r in results if "boxes" in r]
        if pixels:
            precision = PixelPrecision(self.pixel_step)
            for result in pixels:
                precision.count(result["pixels"])
            metrics["PxAP"] = precision.compute()
        elif boxed:
            metrics |= self._box_metrics(boxed)
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
            best = np.array([box_iou(self._centre_box, r["boxes"]).max() for r in results])
            metrics["CentreBoxV2"] = float(np.mean([(best >= iou).mean() * 100 for iou in (0.3, 0.5, 0.7)]))
        return metrics


@METRICS.register_module()
class SATLocalizationMetric(BaseMetric):
    """GT-known, Top-1 and Top-5 localization accuracy with the protocol of SAT, in percent.

    In the published protocol, the test pipeline resizes to 256x256 and crops the center 224x224; without the crop, set
    ``resize=224``. Metric names start with ``SAT_``.

    Args:
        threshold: threshold on the normalized map.
        resize: side length of the square that the pipeline resizes images to.
        crop: side length of the center crop.
        collect_device, prefix: see ``mmengine.evaluator.BaseMetric``.
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

    def check(self, dataset: Any) -> None:
        """Check before a run that all images of a dataset have boxes.

        Raises:
            DataError: an image has none.
        """
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        lacking = [info["img_path"] for info in infos if not len(info["true_boxes"])]
        if lacking:
            raise DataError(
                f"{lacking[0]}: has no box, as {len(lacking)} of {len(infos)} images, but SATLocalizationMetric needs "
                "boxes; use visionattn.LocalizationMetric, or add boxes"
            )

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Collect the IoU and the class correctness of each sample of a batch."""
        for sample in data_samples:
            score_map = normalize_map(_array(sample["true_map"]), (self.crop, self.crop))
            boxes = crop_boxes(sample["true_boxes"], sample["ori_shape"][:2], self.resize, self.crop)
            accuracy = LocalizationAccuracy(self.threshold)
            scores, label = _array(sample["pred_scores"]), int(sample["gt_label"])
            _, iou = accuracy.add(score_map, boxes, scores, label)
            self.results.append(_class_hits(sample) | {"iou": iou})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Compute the accuracies over all images."""
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
    if (boxes := Path(folder, "boxes.csv")).is_file():
        classes = sorted(path.name for path in Path(folder).iterdir() if path.is_dir())
        images = [image for image in read_class_folders(folder, classes, boxes) if len(image.boxes)]
        for image in images:
            width, height, turned = image_size(Path(folder, image.image_id))
            image.size = (width, height) if turned else (height, width)
        return [resize_boxes(image.boxes, image.size, size) for image in images]
    images = [image for image in read_localization(folder, need_objects=True) if len(image.boxes)]
    lacking = [image.image_id for image in images if image.size is None]
    if lacking:
        raise DataError(f"{folder}: image_sizes.txt has no size for {lacking[0]!r}")
    return [resize_boxes(image.boxes, image.size, size) for image in images]
