"""``visionattn.Albu``: an albumentations pipeline as a transform in mmdet and mmseg configs.

```python
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="visionattn.Albu", transforms=[
        dict(type="Affine", rotate=(-20, 20), scale=(0.8, 1.2), p=0.8),
        dict(type="OneOf", p=0.5, transforms=[
            dict(type="RandomBrightnessContrast", p=1.0),
            dict(type="HueSaturationValue", p=1.0)]),
        dict(type="RandomCrop", height=512, width=512, pad_if_needed=True),
    ]),
    dict(type="PackDetInputs"),
]
```

There are no arguments ``bbox_params`` and ``keymap``: all annotations of a sample are transformed together. Unlike
mmdet's ``Albu``, it passes RGB images to albumentations, keeps the range of float images, and transforms label maps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform

from visionattn.data.augment import Augmented, Augmenter
from visionattn.engine.registry import TRANSFORMS
from visionattn.errors import ConfigError, DataError

__all__ = ["Albu"]

MAPS = ("gt_seg_map", "gt_edge_map", "gt_depth_map")
UNMOVED = ("proposals", "gt_keypoints", "gt_panoptic_seg", "gt_lanes", "gt_bboxes_3d")
"""Annotations with image coordinates that are not transformed."""
CHANNEL_ORDERS = ("bgr", "rgb")


@TRANSFORMS.register_module()
class Albu(BaseTransform):
    """Apply albumentations transforms to an image and its annotations.

    Boxes (``gt_bboxes``), instance masks (``gt_masks``), label maps (``gt_seg_map`` and the ``seg_fields`` of mmseg)
    and every other ``gt_*`` array with one entry per box (labels, ignore flags, ids) stay consistent: objects outside
    of the image are removed from all of them, and objects across its border are clipped. Samples without objects or
    annotations are supported. Annotations are unchanged if no geometric transform is applied; otherwise polygons
    become bitmaps, since a distorted polygon cannot be represented exactly.

    Random numbers come from NumPy's global generator, which mmengine seeds in each data worker.

    ``img_shape`` and ``pad_shape`` are set to the size of the new image. ``homography_matrix`` is multiplied by the
    matrix of the transform, or NaN if the transform has none. Reflections update ``flip`` and ``flip_direction``, and
    scaling multiplies ``scale_factor``. Rotations and distortions remove the ``flip`` keys.

    Args:
        transforms: a list of ``dict(type=<class of albumentations>, ...)``; ``Compose``, ``Sequential``, ``OneOf``,
            ``SomeOf`` and ``RandomOrder`` have nested lists.
        min_area: objects with fewer remaining pixels, in the mask or else in the box, are removed.
        min_visibility: objects are removed if the fraction of the box that remains in the image after any of the
            transforms is below this value in [0, 1].
        boxes_from_masks: recompute boxes from the masks, if there are any, after a geometric transform.
        keep_empty: keep images that lose all their objects. If False, the dataset loads another image instead.
        channel_order: ``"bgr"``, as loaded by OpenMMLab, or ``"rgb"``. albumentations receives RGB in either case.
        ignore_index: label of the pixels that a transform adds to a label map.

    Raises:
        ConfigError: a transform or an argument is invalid; ``visionattn check`` reports this as well.
        DataError: the image is neither uint8 nor float in [0, 255], which is rounded.
    """

    def __init__(
        self,
        transforms: Sequence[Mapping[str, Any]],
        min_area: float = 1.0,
        min_visibility: float = 0.0,
        boxes_from_masks: bool = True,
        keep_empty: bool = True,
        channel_order: str = "bgr",
        ignore_index: int = 255,
    ) -> None:
        if channel_order not in CHANNEL_ORDERS:
            raise ConfigError(f"`channel_order` must be 'bgr' or 'rgb', got {channel_order!r}")
        self.transforms = [dict(item) if isinstance(item, Mapping) else item for item in transforms]
        self.keep_empty, self.channel_order = keep_empty, channel_order
        self.augmenter = Augmenter(
            self.transforms,
            min_area=min_area,
            min_visibility=min_visibility,
            boxes_from_masks=boxes_from_masks,
            ignore_index=ignore_index,
        )

    def transform(self, results: dict) -> dict | None:
        """Transform one sample. Return None if it lost all objects and ``keep_empty`` is False."""
        size = results["img"].shape[:2]
        boxes, masks = _boxes(results), _masks(results)
        count = len(masks) if masks is not None else len(boxes)
        if self.augmenter.geometric:
            for key in UNMOVED:
                if key in results:
                    raise ConfigError(f"visionattn.Albu does not transform {key!r}; remove the geometric transforms")
        given = boxes if "gt_bboxes" in results else np.tile(np.float32([0, 0, size[1], size[0]]), (count, 1))
        maps = [key for key in dict.fromkeys((*MAPS, *results.get("seg_fields", ()))) if key in results]
        image = _to_uint8(results)
        swap = image.ndim == 3 and image.shape[2] == 3 and self.channel_order == "bgr"
        done = self.augmenter(
            np.ascontiguousarray(image[..., ::-1]) if swap else image,
            given,
            masks if self.augmenter.geometric else None,
            [results[key] for key in maps],
        )
        if done.image.dtype != np.uint8 or done.image.shape[2:] != image.shape[2:]:
            raise ConfigError(
                "visionattn.Albu: the transforms must return a uint8 image with the same channels, got "
                f"{done.image.dtype} {done.image.shape}"
            )
        out = np.ascontiguousarray(done.image[..., ::-1]) if swap else done.image
        results["img"] = out.astype(results["img"].dtype, copy=False)
        results["img_shape"] = out.shape[:2]
        if not done.moved:
            return results
        if "pad_shape" in results:
            results["pad_shape"] = out.shape[:2]
        results.update(zip(maps, done.maps, strict=True))
        _put_objects(results, done, count)
        _put_geometry(results, done.homography)
        return results if self.keep_empty or count == 0 or len(done.kept) else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(transforms={self.transforms})"


def _to_uint8(results: Mapping[str, Any]) -> np.ndarray:
    image = results["img"]
    name = results.get("img_path", "the image")
    if image.dtype == np.uint8:
        return image
    if "img_norm_cfg" in results:
        raise DataError(f"{name}: the image is already normalized; put visionattn.Albu before Normalize")
    if image.dtype.kind != "f":
        raise DataError(f"{name}: visionattn.Albu requires uint8 or float pixels in [0, 255], got {image.dtype}")
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name}: the image has NaN or infinite pixels")
    if low >= 0 and high <= 1 and (image != np.rint(image)).any():
        raise DataError(f"{name}: visionattn.Albu requires uint8 or float pixels in [0, 255], got floats in [0, 1]")
    return np.rint(image).clip(0, 255).astype(np.uint8)


def _boxes(results: Mapping[str, Any]) -> np.ndarray:
    boxes = results.get("gt_bboxes")
    if boxes is None:
        return np.zeros((0, 4), np.float32)
    if type(boxes).__name__ not in ("HorizontalBoxes", "Tensor", "ndarray"):
        raise ConfigError(f"visionattn.Albu requires axis-aligned boxes, got {type(boxes).__name__}")
    return np.asarray(getattr(boxes, "tensor", boxes), np.float32).reshape(-1, 4)


def _masks(results: Mapping[str, Any]) -> np.ndarray | None:
    masks = results.get("gt_masks")
    if masks is None:
        return None
    height, width = results["img"].shape[:2]
    return masks.to_ndarray().reshape(-1, height, width)


def _put_objects(results: dict, done: Augmented, count: int) -> None:
    """Keep the entries of the remaining objects in every field with one entry per object."""
    kept = done.kept
    for key, value in results.items():
        if key in ("gt_bboxes", "gt_masks", *MAPS, *results.get("seg_fields", ())) or not key.startswith("gt_"):
            continue
        if isinstance(value, list) and len(value) == count:
            results[key] = [value[i] for i in kept]
        elif isinstance(value, np.ndarray) and value.ndim and len(value) == count:
            results[key] = value[kept]
        elif isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
            results[key] = value[torch.from_numpy(kept)]
    boxes = results.get("gt_bboxes")
    if isinstance(boxes, np.ndarray):
        results["gt_bboxes"] = done.boxes.astype(boxes.dtype)
    elif isinstance(boxes, torch.Tensor):
        results["gt_bboxes"] = torch.from_numpy(done.boxes).to(boxes.dtype)
    elif boxes is not None:
        results["gt_bboxes"] = type(boxes)(torch.from_numpy(done.boxes), dtype=boxes.dtype)
    if "gt_masks" in results:
        from mmdet.structures.mask import BitmapMasks

        results["gt_masks"] = BitmapMasks(done.masks, *done.image.shape[:2])


def _put_geometry(results: dict, matrix: np.ndarray | None) -> None:
    """Update the metadata of the sample: homography, reflection and scale."""
    step = np.full((3, 3), np.nan, np.float32) if matrix is None else matrix.astype(np.float32)
    before = results.get("homography_matrix")
    results["homography_matrix"] = step if before is None else step @ before
    straight = matrix is not None and max(abs(matrix[0, 1]), abs(matrix[1, 0]), *np.abs(matrix[2, :2])) < 1e-6
    if not straight:
        results.pop("flip", None)
        results.pop("flip_direction", None)
        return
    before_flip = results.get("flip_direction") if results.get("flip") else None
    horizontal = (before_flip in ("horizontal", "diagonal")) != (matrix[0, 0] < 0)
    vertical = (before_flip in ("vertical", "diagonal")) != (matrix[1, 1] < 0)
    if "flip" in results or horizontal or vertical:
        names = {(True, True): "diagonal", (True, False): "horizontal", (False, True): "vertical"}
        results["flip"] = horizontal or vertical
        results["flip_direction"] = names.get((horizontal, vertical))
    if "scale_factor" in results:
        scale = results["scale_factor"]
        results["scale_factor"] = (float(scale[0] * abs(matrix[0, 0])), float(scale[1] * abs(matrix[1, 1])))
