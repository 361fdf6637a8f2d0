"""Dataset and pipeline transforms of weakly supervised localization for mmengine."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from visionattn.heads.localization.sets import LocalizationImage, read_class_folders, read_localization
from visionattn.io.console import count_of
from visionattn.io.images import image_size

__all__ = ["LocalizationDataset", "PackLocalizationInputs", "TenCrop"]


@DATASETS.register_module()
class LocalizationDataset(BaseDataset):
    """Images with one label each, and boxes or masks for evaluation; see `visionattn.heads.localization.sets`.

    Args:
        ann_file: folder with the metadata of one split, relative to ``data_root``. Empty for an image folder with one
            subfolder per class.
        data_prefix: ``img_path``, the image folder, and ``mask_path``, the mask folder.
        metainfo: ``classes``, the class names in the order of the labels. Defaults to the labels as strings.
        test_mode: whether every image must have a box or a mask; for folders of classes, which may have none, this
            holds if ``boxes`` is set.
        boxes: for folders of classes, the file with boxes, see `visionattn.heads.localization.sets.read_class_folders`.
        **kwargs: passed to mmengine's ``BaseDataset``.

    Raises:
        DataError: if the metadata is missing or malformed, or has a label outside the classes.
    """

    open_arguments = True

    def __init__(self, boxes: str | None = None, **kwargs: Any) -> None:
        self.boxes = boxes
        super().__init__(**kwargs)

    @staticmethod
    def labels_by_name(config: Mapping[str, Any]) -> bool:
        """Return True for folders of classes, whose labels follow the order of the names in ``metainfo``."""
        return not config.get("ann_file")

    def load_data_list(self) -> list[dict[str, Any]]:
        """Create one record per image: path, label, boxes and masks."""
        if self.ann_file:
            images = read_localization(self.ann_file, need_objects=self.test_mode)
        else:
            images = self._read_folders()
        highest = max(image.label for image in images)
        classes = self._metainfo.setdefault("classes", tuple(str(label) for label in range(highest + 1)))
        if highest >= len(classes):
            raise DataError(f"{self.ann_file}: labels must be below the {len(classes)} classes, got {highest}")
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

    def _read_folders(self) -> list[LocalizationImage]:
        classes = self._metainfo.get("classes")
        if not classes:
            raise ConfigError(
                "LocalizationDataset: `metainfo` must have `classes` for an image folder, or set `ann_file`"
            )
        images = read_class_folders(self.data_prefix.get("img_path") or "", classes, self.boxes)
        lacking = [image.image_id for image in images if self.boxes and self.test_mode and not len(image.boxes)]
        if lacking:
            raise DataError(f"{self.boxes}: has no box for {lacking[0]!r} and {len(lacking) - 1} other images")
        return images

    def check(self, steps: Sequence[Mapping[str, Any]] = ()) -> str:
        """Open the images and masks, and return the number of images and the classes without any.

        Raises:
            DataError: a file is missing or damaged, or a box is outside its image.
        """
        infos = [self.get_data_info(index) for index in range(len(self))]
        with ThreadPoolExecutor(8) as pool:
            problems = [text for text in pool.map(_problem, infos) if text]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}")
        classes, there = self.metainfo["classes"], {info["gt_label"] for info in infos}
        absent = [name for label, name in enumerate(classes) if label not in there]
        objects = sum(bool(len(info["true_boxes"]) or info["true_masks"]) for info in infos)
        line = f"{count_of(len(infos), 'image')}, {objects} with boxes or masks"
        return f"{line}; none of {', '.join(absent[:6])}{', ...' if len(absent) > 6 else ''}" if absent else line


def _problem(info: dict[str, Any]) -> str | None:
    try:
        width, height, turned = image_size(Path(info["img_path"]))
        for mask in (*info["true_masks"], info["ignore_mask"]):
            if mask is not None:
                image_size(Path(mask))
    except DataError as error:
        return str(error)
    width, height = (height, width) if turned else (width, height)
    for x0, y0, x1, y1 in info["true_boxes"]:
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height or x1 > width + 1 or y1 > height + 1:
            return f"{info['img_path']}: the box {x0:g} {y0:g} {x1:g} {y1:g} exceeds its {width} x {height} pixels"
    return None


@TRANSFORMS.register_module()
class TenCrop(BaseTransform):
    """Center crop for localization, and ten crops (corners, center and their flips) for classification.

    This is the test protocol of SAT and earlier work: images are resized to 256x256, the map is computed on the center
    224x224, and the class has the highest mean softmax over the crops. The models of
    `visionattn.heads.localization.mmlab` compute that mean.

    Args:
        size: side length of the crops, in pixels.

    Raises:
        ConfigError: if ``size`` is less than 1.
        DataError: if an image is smaller than the crops.
    """

    def __init__(self, size: int = 224) -> None:
        if size < 1:
            raise ConfigError(f"TenCrop: `size` must be at least 1, got {size}")
        self.size = size

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Set ``img`` to the center crop, and ``crops`` to all ten, ``[10, 3, size, size]``."""
        image = results["img"]
        height, width = image.shape[:2]
        if min(height, width) < self.size:
            raise DataError(
                f"{results.get('img_path')}: must be at least {self.size} x {self.size}, got {width} x {height}"
            )
        crops = ten_crop(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), self.size)
        results["crops"] = torch.stack(crops)
        results["img"] = crops[4].permute(1, 2, 0).numpy()
        results["img_shape"] = (self.size, self.size)
        results["cropped_from"] = (height, width)
        return results


@TRANSFORMS.register_module()
class PackLocalizationInputs(BaseTransform):
    """Pack the image as a tensor, and the label and meta information as a data sample.

    Args:
        meta_keys: keys of the pipeline's results to keep as meta information, if present.
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
