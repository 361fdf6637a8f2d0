"""Dataset and pipeline transforms of super-resolution for mmengine. Arrays are BGR, as everywhere in OpenMMLab."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from torch import Tensor

from visionattn.engine.config.checks import loader_check
from visionattn.engine.registry import DATASETS, TRANSFORMS
from visionattn.errors import ConfigError, DataError
from visionattn.heads.super_resolution.imresize import downscale
from visionattn.heads.super_resolution.merging import EIGHT
from visionattn.heads.super_resolution.sets import find_pairs
from visionattn.io.console import count_of
from visionattn.io.images import image_size, read_image

__all__ = ["LoadHighResolution", "LoadPatchPair", "PackSRInputs", "RandomSymmetry", "SuperResolutionDataset"]

MARGIN = 4
"""Pixels of the low-resolution image around a patch that its bicubic kernel can reach."""


@DATASETS.register_module()
class SuperResolutionDataset(BaseDataset):
    """Pairs of images, or high-resolution images only, see `visionattn.heads.super_resolution.sets`.

    Args:
        scale: factor between the images.
        data_prefix: ``gt``, the folder of high-resolution images, and ``img``, that of low-resolution images. Without
            ``img``, these are computed by bicubic downscaling as in MATLAB.
        **arguments: passed to mmengine's ``BaseDataset``, such as ``data_root`` and ``pipeline``.

    Raises:
        DataError: a folder is missing or empty, or an image has no partner.
    """

    def __init__(self, scale: int, **arguments: Any) -> None:
        self.scale = scale
        super().__init__(**arguments)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Create one record per image."""
        pairs = find_pairs(self.data_prefix.get("gt") or self.data_root, self.data_prefix.get("img"), self.scale)
        return [
            {"img_path": str(pair.low or pair.high), "gt_path": str(pair.high), "scale": self.scale} for pair in pairs
        ]

    def check(self, steps: Sequence[Mapping[str, Any]] = ()) -> str:
        """Open the images, compare their sizes, and return their number.

        Raises:
            DataError: a file is missing or damaged, or a pair does not have the factor `scale`; for training, also if
                an image is smaller than the patches.
        """
        patch = next((step["patch_size"] for step in steps if "patch_size" in step), 1)
        infos = [self.get_data_info(index) for index in range(len(self))]
        with ThreadPoolExecutor(8) as pool:
            problems = [text for text in pool.map(lambda info: _problem(info, patch), infos) if text]
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise DataError(f"{problems[0]}{more}")
        computed = sum(info["img_path"] == info["gt_path"] for info in infos)
        return count_of(len(infos), "image") + ("; low-resolution images are computed" if computed else "")


def _upright_size(path: str) -> tuple[int, int]:
    width, height, turned = image_size(Path(path))
    return (width, height) if turned else (height, width)


def _problem(info: Mapping[str, Any], patch: int) -> str | None:
    scale = info["scale"]
    try:
        high = _upright_size(info["gt_path"])
        if info["img_path"] == info["gt_path"]:
            low = (high[0] // scale, high[1] // scale)
        else:
            low = _upright_size(info["img_path"])
            if any(not scale * small <= large < scale * (small + 1) for small, large in zip(low, high, strict=True)):
                sizes = f"{low[1]}x{low[0]} is not 1/{scale} of {high[1]}x{high[0]}"
                return f"{info['img_path']}: {sizes} of {info['gt_path']}"
    except DataError as error:
        return str(error)
    if min(low) < patch:
        return f"{info['gt_path']}: 1/{scale} of it, {low[1]}x{low[0]}, is smaller than the patches of {patch} pixels"
    return None


def _cropped(high: np.ndarray, size: Sequence[int], path: str) -> np.ndarray:
    """Return the upper left part of a high-resolution image of a size."""
    if high.shape[0] < size[0] or high.shape[1] < size[1]:
        raise DataError(f"{path}: must have at least {size[1]} x {size[0]} pixels, got {high.shape[1]}x{high.shape[0]}")
    return high[: size[0], : size[1]]


@TRANSFORMS.register_module()
class LoadHighResolution(BaseTransform):
    """Load the high-resolution image, after ``LoadImageFromFile``; prediction skips it.

    If the loaded image is the high-resolution one, the low-resolution image is computed from it.
    """

    reads_annotations = True  # prediction skips it

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Set ``img`` and ``gt_image``, whose size is a multiple of that of ``img``."""
        image, scale, path = results["img"], results["scale"], results["gt_path"]
        if path == results["img_path"]:
            results["gt_image"] = image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]
            results["img"] = downscale(results["gt_image"], scale)
        else:
            results["gt_image"] = _cropped(read_image(path), [scale * side for side in image.shape[:2]], path)
        results["img_shape"] = results["ori_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class LoadPatchPair(BaseTransform):
    """Load a pair of images and crop a random patch from both, for training.

    Only the part around the patch is downscaled where there is no low-resolution image; the result is the same as for
    the whole image.

    Args:
        patch_size: side of the low-resolution patch in pixels.
        cache_mb: decoded images are kept in memory up to this size in MiB, in each process that loads data.

    Raises:
        ConfigError: an argument is out of range.
        DataError: an image is smaller than the patch.
    """

    def __init__(self, patch_size: int = 64, cache_mb: float = 0) -> None:
        if patch_size < 1:
            raise ConfigError(f"LoadPatchPair: `patch_size` must be at least 1, got {patch_size}")
        if cache_mb < 0:
            raise ConfigError(f"LoadPatchPair: `cache_mb` must be at least 0, got {cache_mb}")
        self.patch_size, self._left = patch_size, cache_mb * 2**20
        self._cache: dict[str, np.ndarray] = {}

    def _read(self, path: str) -> np.ndarray:
        image = self._cache.get(path)
        if image is None:
            image = read_image(path)
            if image.nbytes <= self._left:
                self._left -= image.nbytes
                self._cache[path] = image
        return image

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Set ``img`` and ``gt_image``."""
        scale, side = results["scale"], self.patch_size
        high = self._read(results["gt_path"])
        low = None if results["img_path"] == results["gt_path"] else self._read(results["img_path"])
        size = low.shape[:2] if low is not None else (high.shape[0] // scale, high.shape[1] // scale)
        if min(size) < side:
            raise DataError(f"{results['img_path']}: {size[1]}x{size[0]} is smaller than the patch of {side} pixels")
        high = _cropped(high, [scale * length for length in size], results["gt_path"])
        y, x = (int(np.random.randint(length - side + 1)) for length in size)
        results["gt_image"] = high[scale * y : scale * (y + side), scale * x : scale * (x + side)]
        if low is not None:
            results["img"] = low[y : y + side, x : x + side]
        else:
            top, left = max(0, y - MARGIN), max(0, x - MARGIN)
            around = high[scale * top : scale * (y + side + MARGIN), scale * left : scale * (x + side + MARGIN)]
            results["img"] = downscale(around, scale)[y - top : y - top + side, x - left : x - left + side]
        results["img_shape"] = results["ori_shape"] = (side, side)
        return results


@TRANSFORMS.register_module()
class RandomSymmetry(BaseTransform):
    """Mirror and transpose both images of a pair, each of the eight possibilities with equal probability."""

    reads_annotations = True  # prediction skips it

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change ``img`` and ``gt_image``."""
        chosen = EIGHT[np.random.randint(len(EIGHT))]
        for key in ("img", "gt_image"):
            results[key] = chosen.apply(results[key])
        results["img_shape"] = results["img"].shape[:2]
        return results


@TRANSFORMS.register_module()
class PackSRInputs(BaseTransform):
    """Pack ``img`` as BGR tensor, and ``gt_image``, if present, as RGB uint8 tensor ``gt_image`` of a data sample.

    Args:
        meta_keys: keys of the pipeline's results to keep as meta information, if present.
    """

    def __init__(
        self, meta_keys: Sequence[str] = ("img_id", "img_path", "gt_path", "ori_shape", "img_shape", "scale")
    ) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``inputs`` and ``data_samples``."""
        sample = BaseDataElement(metainfo={key: results[key] for key in self.meta_keys if key in results})
        if "gt_image" in results:
            sample.set_field(_tensor(results["gt_image"][..., ::-1]), "gt_image")
        return {"inputs": _tensor(results["img"]), "data_samples": sample}


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


@loader_check
def batch_problems(loader: Mapping[str, Any], path: str) -> Iterator[str]:
    """Check that whole images are tested one by one: in a batch they would be padded to one size."""
    dataset = loader.get("dataset")
    while isinstance(dataset, Mapping) and isinstance(dataset.get("dataset"), Mapping):
        dataset = dataset["dataset"]
    kind = str(dataset.get("type")) if isinstance(dataset, Mapping) else ""
    if kind.endswith("SuperResolutionDataset") and not path.startswith("train") and loader.get("batch_size", 1) != 1:
        yield f"{path}.batch_size must be 1 for whole images of different sizes, got {loader['batch_size']}"
