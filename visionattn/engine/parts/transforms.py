"""Steps of data pipelines that mmdet lacks."""

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
    """Scale jitter and a random crop: what ``RandomResize`` and ``RandomCrop`` give, with the crop taken first.

    An image with hundreds of instances has hundreds of masks, and resizing them whole in order to keep a crop
    takes longer than all other steps; here only what stays is resized.

    Args:
        scale: (long, short), in pixels: at the factor 1 an image is scaled to fit into it, its aspect kept, as by
            ``Resize`` with the same scale.
        ratio_range: least and greatest factor on that; drawn log-uniformly, so that halving is as likely as
            doubling.
        crop_size: (height, width) of the crop, after scaling. Smaller images stay smaller.

    Boxes are taken anew from the cropped masks where there are masks. A crop without objects gives None, and the
    dataset then draws another image.

    Raises:
        ConfigError: sizes or factors that are not positive, or a range that falls.
    """

    def __init__(
        self,
        scale: Sequence[int],
        crop_size: Sequence[int],
        ratio_range: Sequence[float] = (0.5, 2.0),
    ) -> None:
        for name, pair in (("scale", scale), ("crop_size", crop_size), ("ratio_range", ratio_range)):
            if len(pair) != 2 or min(pair) <= 0:
                raise ConfigError(f"RandomScaleCrop {name}={pair}: must be two numbers above 0")
        if ratio_range[0] > ratio_range[1]:
            raise ConfigError(f"RandomScaleCrop ratio_range={ratio_range}: must rise")
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
        """Crop and scale ``img``, ``gt_bboxes``, ``gt_masks`` and what else belongs to them."""
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
    """Swap rows and columns of the image, its boxes and masks.

    With ``RandomFlip`` in three directions it gives all eight views of an image without an up or a left side, such
    as those of microscopes and satellites.

    Args:
        prob: how often, 0 to 1.

    Raises:
        ConfigError: another probability.
    """

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ConfigError(f"RandomTranspose prob={prob}: must be 0 to 1")
        self.prob = prob

    @cache_randomness
    def _chosen(self) -> bool:
        return bool(np.random.rand() < self.prob)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Transpose ``img``, ``gt_bboxes``, ``gt_masks`` and ``gt_seg_map``, as far as they are there."""
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
