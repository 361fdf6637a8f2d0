"""Datasets and pipeline steps of weakly supervised localization."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform, to_tensor
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from torchvision.transforms.functional import ten_crop

from visionattn.engine.registry import DATASETS, TRANSFORMS
from visionattn.errors import ConfigError, DataError
from visionattn.heads.localization.sets import read_localization

__all__ = ["LocalizationDataset", "PackLocalizationInputs", "TenCrop"]


@DATASETS.register_module()
class LocalizationDataset(BaseDataset):
    """Images with a label each, and boxes or masks to measure by; see `visionattn.heads.localization.sets`.

    Args:
        ann_file: folder with the metadata of one split, below ``data_root``.
        data_prefix: ``img_path``, the image folder, and ``mask_path``, the mask folder.
        metainfo: ``classes``, the names of the classes in the order of their labels. Without it they are numbers.
        test_mode: each image must have a box or a mask.
        **kwargs: of mmengine's ``BaseDataset``.

    Raises:
        DataError: the metadata is missing or malformed, or has a label beyond the classes.
    """

    open_arguments = True

    def load_data_list(self) -> list[dict[str, Any]]:
        """One dict for each image: path, label, boxes, masks."""
        images = read_localization(self.ann_file, need_objects=self.test_mode)
        highest = max(image.label for image in images)
        classes = self._metainfo.setdefault("classes", tuple(str(label) for label in range(highest + 1)))
        if highest >= len(classes):
            raise DataError(f"{self.ann_file}: has the label {highest}, but the config names {len(classes)} classes")
        folder, masks = Path(self.data_prefix.get("img_path") or ""), Path(self.data_prefix.get("mask_path") or "")
        return [
            {
                "img_path": str(folder / image.image_id),
                "image_id": image.image_id,
                "gt_label": image.label,
                "true_boxes": image.boxes,
                "true_masks": tuple(str(masks / name) for name in image.masks),
                "ignore_mask": str(masks / image.ignore) if image.ignore else None,
            }
            for image in images
        ]


@TRANSFORMS.register_module()
class TenCrop(BaseTransform):
    """The middle of a picture to localize in, and ten crops to classify by: corners and middle, and these mirrored.

    SAT and earlier work are tested so: resized to 256x256, the map is of the middle 224x224, and the class has the
    best mean softmax over the crops. The models of `visionattn.heads.localization.mmlab` take that mean.

    Args:
        size: side of the crops.

    Raises:
        ConfigError: ``size`` is not positive.
        DataError: a picture is smaller than the crops.
    """

    def __init__(self, size: int = 224) -> None:
        if size < 1:
            raise ConfigError(f"TenCrop size={size} must be positive")
        self.size = size

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Put the middle into ``img`` and all ten, ``[10, 3, size, size]``, into ``crops``."""
        image = results["img"]
        height, width = image.shape[:2]
        if min(height, width) < self.size:
            raise DataError(f"{results.get('img_path')}: is {width} x {height}, less than TenCrop's {self.size}")
        crops = ten_crop(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), self.size)
        results["crops"] = torch.stack(crops)
        results["img"] = crops[4].permute(1, 2, 0).numpy()
        results["img_shape"] = (self.size, self.size)
        results["cropped_from"] = (height, width)
        return results


@TRANSFORMS.register_module()
class PackLocalizationInputs(BaseTransform):
    """Make the image a tensor and the rest a data sample: ``gt_label``, and what describes the image.

    Args:
        meta_keys: what of the pipeline's results the sample keeps, where they are there.
    """

    def __init__(
        self,
        meta_keys: Sequence[str] = (
            "img_id", "image_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "true_boxes",
            "true_masks", "ignore_mask", "cropped_from",
        ),
    ) -> None:  # fmt: skip
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack ``img``, ``gt_label``, and the ``crops`` of `TenCrop`."""
        image = results["img"]
        image = image[..., None] if image.ndim == 2 else image
        sample = BaseDataElement(metainfo={key: results[key] for key in self.meta_keys if key in results})
        if "gt_label" in results:
            sample.set_field(torch.tensor(int(results["gt_label"])), "gt_label")
        if "crops" in results:
            sample.set_field(results["crops"], "crops")
        return {"inputs": to_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))), "data_samples": sample}
