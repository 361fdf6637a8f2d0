"""Transforms that are missing in mmdet: crop before resizing, and transposition."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmcv.transforms.utils import cache_randomness

from visionattn.engine.registry import TRANSFORMS
from visionattn.errors import ConfigError, require

__all__ = ["RandomScaleCrop", "RandomTranspose"]


@TRANSFORMS.register_module()
class RandomScaleCrop(BaseTransform):
    """Scale jitter and random crop, equivalent to ``RandomResize`` and ``RandomCrop`` but cropping first.

    Images with hundreds of instances have hundreds of masks, and resizing all of them before the crop takes longer
    than the rest of the pipeline. Here only the crop is resized.

    Args:
        scale: (long, short) side in pixels. With the factor 1, images are resized to fit into it with their aspect
            ratio preserved, as with the ``scale`` of ``Resize``.
        crop_size: (height, width) of the crop after resizing. Smaller images are not padded.
        ratio_range: smallest and largest scale factor. The factor is drawn log-uniformly.

    Boxes are recomputed from the cropped masks if there are masks. The result is None for a crop without objects, in
    which case the dataset loads another image.

    Raises:
        ConfigError: a size or factor is not positive, or the range is not ascending.
    """

    def __init__(
        self,
        scale: Sequence[int],
        crop_size: Sequence[int],
        ratio_range: Sequence[float] = (0.5, 2.0),
    ) -> None:
        for name, pair in (("scale", scale), ("crop_size", crop_size), ("ratio_range", ratio_range)):
            if len(pair) != 2 or min(pair) <= 0:
                raise ConfigError(f"`{name}` must be two positive numbers, got {pair}")
        if ratio_range[0] > ratio_range[1]:
            raise ConfigError(f"`ratio_range` must be ascending, got {ratio_range}")
        self.scale = tuple(scale)
        self.crop_size = tuple(crop_size)
        self.ratio_range = tuple(ratio_range)
        steps = require("mmdet.datasets.transforms")
        self._crop = steps.RandomCrop(crop_size=(1, 1), recompute_bbox=True)
        self._resize = steps.Resize(scale=(1, 1), keep_ratio=False)

    @cache_randomness
    def _ratio(self) -> float:
        low, high = np.log(self.ratio_range)
        return float(np.exp(np.random.uniform(low, high)))

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Crop and resize ``img``, ``gt_bboxes``, ``gt_masks`` and their other annotations."""
        height, width = results["img"].shape[:2]
        fit = min(max(self.scale) / max(height, width), min(self.scale) / min(height, width))
        factor = fit * self._ratio()
        sides = [(side, size, round(size / factor)) for side, size in zip((height, width), self.crop_size, strict=True)]
        window = tuple(max(1, min(side, cut)) for side, _, cut in sides)
        results = self._crop._crop_data(results, window, allow_negative_crop=False)
        if results is None:
            return None
        target = [size if cut <= side else max(1, round(side * factor)) for side, size, cut in sides]
        self._resize.scale = (target[1], target[0])
        return self._resize(results)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(scale={self.scale}, crop_size={self.crop_size}, ratio_range={self.ratio_range})"


@TRANSFORMS.register_module()
class RandomTranspose(BaseTransform):
    """Transpose the image, its boxes and its masks with a given probability.

    Together with ``RandomFlip`` in three directions, it generates all eight rotations and reflections by multiples of
    90 degrees, for images without a preferred orientation such as those of microscopes and satellites.

    Args:
        prob: probability in [0, 1].

    Raises:
        ConfigError: the probability is not in [0, 1].
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ConfigError(f"`prob` must be in [0, 1], got {prob}")
        self.prob = prob

    @cache_randomness
    def _chosen(self) -> bool:
        return bool(np.random.rand() < self.prob)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Transpose ``img`` and, if present, ``gt_bboxes``, ``gt_masks`` and ``gt_seg_map``."""
        if not self._chosen():
            return results
        results["img"] = np.ascontiguousarray(results["img"].swapaxes(0, 1))
        results["img_shape"] = results["img"].shape[:2]
        if "gt_bboxes" in results:
            boxes = results["gt_bboxes"]
            results["gt_bboxes"] = type(boxes)(boxes.tensor[:, [1, 0, 3, 2]])
        if "gt_masks" in results:
            masks = results["gt_masks"]
            if isinstance(masks.masks, np.ndarray):
                turned: Any = np.ascontiguousarray(masks.masks.swapaxes(1, 2))
            else:
                turned = [[part.reshape(-1, 2)[:, ::-1].reshape(-1) for part in parts] for parts in masks.masks]
            results["gt_masks"] = type(masks)(turned, masks.width, masks.height)
        if results.get("gt_seg_map") is not None:
            results["gt_seg_map"] = np.ascontiguousarray(results["gt_seg_map"].swapaxes(0, 1))
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(prob={self.prob})"
