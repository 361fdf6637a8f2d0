"""``visionattn.Albu``: an albumentations pipeline as one transform of mmdet and mmseg configs.

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

It takes no ``bbox_params`` and no ``keymap``: what the sample has is changed together. mmdet's own ``Albu`` shows
albumentations BGR images as if they were RGB, makes float images black, and leaves out maps of labels.
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
"""What lies at places of the image and is not moved here."""
CHANNEL_ORDERS = ("bgr", "rgb")


@TRANSFORMS.register_module()
class Albu(BaseTransform):
    """Change the image with albumentations, and with it everything that is drawn on it.

    Boxes (``gt_bboxes``), instance masks (``gt_masks``), maps (``gt_seg_map`` and those of mmseg's ``seg_fields``)
    and every other array named ``gt_*`` with one entry for each box (labels, ignore flags, ids) stay consistent:
    what leaves the image is dropped from all of them, what crosses its border is cut. Samples without objects, and
    without annotations at all, are fine. If no geometric transform is drawn, annotations stay as they are, to the
    bit; otherwise polygons become bitmaps, as a distorted polygon has no exact polygon.

    Random numbers follow from NumPy's global generator, which mmengine's workers and this package's runs seed.

    ``img_shape`` and ``pad_shape`` become those of the new image. ``homography_matrix`` is multiplied by the change;
    it becomes NaN where the change has no matrix. Mirrored images flip ``flip`` and ``flip_direction`` and rescaled
    ones multiply ``scale_factor``; after a rotation or a distortion there are no ``flip`` keys.

    Args:
        transforms: a list of ``dict(type=<class of albumentations>, ...)``; ``Compose``, ``Sequential``, ``OneOf``,
            ``SomeOf`` and ``RandomOrder`` have such lists in theirs.
        min_area: objects that keep fewer pixels than this, of the mask or else of the box, are dropped.
        min_visibility: objects of whose box less than this share, 0 to 1, stays in the image in one of the
            transforms are dropped.
        boxes_from_masks: after a geometric transform draw the boxes anew around the masks, where there are masks.
        keep_empty: False skips an image that loses all its objects: the dataset then takes another one.
        channel_order: of the image, ``"bgr"`` as OpenMMLab loads it, or ``"rgb"``; albumentations sees RGB.
        ignore_index: label of pixels that a transform brings into a map.

    Raises:
        ConfigError: a transform or an argument is wrong; all of that comes out of ``visionattn check`` too.
        DataError: the image is not uint8, or float of 0 to 255 (which is rounded).
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
            raise ConfigError(f"channel_order={channel_order!r}: must be 'bgr' or 'rgb'")
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
        """Change one sample; None where it lost all objects and ``keep_empty`` is False."""
        size = results["img"].shape[:2]
        boxes, masks = _boxes(results), _masks(results)
        count = len(masks) if masks is not None else len(boxes)
        if self.augmenter.geometric:
            for key in UNMOVED:
                if key in results:
                    raise ConfigError(f"visionattn.Albu does not move {key!r}; leave out its geometric transforms")
        given = boxes if "gt_bboxes" in results else np.tile(np.float32([0, 0, size[1], size[0]]), (count, 1))
        maps = [key for key in dict.fromkeys((*MAPS, *results.get("seg_fields", ()))) if key in results]
        image = _to_uint8(results)
        colour = image.ndim == 3 and image.shape[2] == 3 and self.channel_order == "bgr"
        done = self.augmenter(
            np.ascontiguousarray(image[..., ::-1]) if colour else image,
            given,
            masks if self.augmenter.geometric else None,
            [results[key] for key in maps],
        )
        if done.image.dtype != np.uint8 or done.image.shape[2:] != image.shape[2:]:
            raise ConfigError(
                f"visionattn.Albu: the transforms turn the image into {done.image.dtype} {done.image.shape}"
            )
        out = np.ascontiguousarray(done.image[..., ::-1]) if colour else done.image
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
        raise DataError(f"{name}: is normalized already; put visionattn.Albu before Normalize")
    if image.dtype.kind != "f":
        raise DataError(f"{name}: has {image.dtype} pixels; visionattn.Albu takes uint8, or float of 0 to 255")
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name}: has pixels that are not finite")
    if low >= 0 and high <= 1 and (image != np.rint(image)).any():
        raise DataError(f"{name}: has float pixels of 0 to 1; visionattn.Albu takes uint8, or float of 0 to 255")
    return np.rint(image).clip(0, 255).astype(np.uint8)


def _boxes(results: Mapping[str, Any]) -> np.ndarray:
    boxes = results.get("gt_bboxes")
    if boxes is None:
        return np.zeros((0, 4), np.float32)
    if type(boxes).__name__ not in ("HorizontalBoxes", "Tensor", "ndarray"):
        raise ConfigError(f"visionattn.Albu takes upright boxes, not {type(boxes).__name__}")
    return np.asarray(getattr(boxes, "tensor", boxes), np.float32).reshape(-1, 4)


def _masks(results: Mapping[str, Any]) -> np.ndarray | None:
    masks = results.get("gt_masks")
    if masks is None:
        return None
    height, width = results["img"].shape[:2]
    return masks.to_ndarray().reshape(-1, height, width)


def _put_objects(results: dict, done: Augmented, count: int) -> None:
    """The objects that are left, in every field that has one entry for each."""
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
    """What later code is told of the change: homography, mirroring, scale."""
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
