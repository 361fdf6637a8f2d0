"""Forgery datasets in the format that IMDLBenCo (Ma et al., NeurIPS 2024) passes to models: one dict per image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from visionattn.errors import DataError, require
from visionattn.heads.forgery.create.donors import read_photo
from visionattn.heads.forgery.sets import ForgeryItem, read_truth

__all__ = ["ForgeryImages", "edge_mask", "train_augmentations"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ForgeryImages(Dataset):
    """Images of a forgery dataset, padded or resized, and normalized with the ImageNet mean and standard deviation.

    An item has ``image`` float32 ``[3, H, W]`` (RGB), ``mask`` float32 ``[1, H, W]``, ``label`` (1 if the mask is not
    empty after the transform), ``origin_shape`` and ``shape`` (height, width; ``shape`` excludes padding), ``name``,
    and optionally ``edge_mask`` and ``shape_mask`` ``[1, H, W]`` (1 inside the image, 0 on padding).

    Args:
        items: items from `visionattn.heads.forgery.sets`.
        size: output height and width.
        fit: ``"resize"``, or ``"pad"``, which pads with zeros on the right and bottom before the normalization and
            crops larger images.
        edge_width: odd width of an additional ``edge_mask``, see `edge_mask`; None for none.
        transform: albumentations transform of image and mask.

    Raises:
        ValueError: if ``fit`` is unknown.
        DataError: if an image cannot be read, or its mask has another size.
    """

    def __init__(
        self,
        items: Sequence[ForgeryItem],
        size: tuple[int, int] = (512, 512),
        fit: str = "resize",
        edge_width: int | None = None,
        transform: Any = None,
    ) -> None:
        if fit not in ("resize", "pad"):
            raise ValueError(f"`fit` must be 'resize' or 'pad', got {fit!r}")
        self.items, self.size, self.fit = list(items), tuple(size), fit
        self.edge_width, self.transform = edge_width, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        image = np.ascontiguousarray(read_photo(item.image)[:, :, ::-1])
        mask = np.zeros(image.shape[:2], np.uint8) if item.mask is None else read_truth(item.mask)
        if mask.shape != image.shape[:2]:
            raise DataError(f"{item.mask}: must have the image size {image.shape[1::-1]}, got {mask.shape[::-1]}")
        origin = image.shape[:2]
        if self.transform is not None:
            changed = self.transform(image=image, mask=mask)
            image, mask = changed["image"], changed["mask"]
        planes = {"mask": mask}
        if self.edge_width is not None:
            planes["edge_mask"] = edge_mask(mask, self.edge_width)
        result: dict[str, Any] = {"label": int(mask.any())}
        if self.fit == "pad":
            shape = image.shape[:2]
            planes["shape_mask"] = np.ones(shape, np.uint8)
            image = self._pad(image)
            planes = {name: self._pad(plane) for name, plane in planes.items()}
            shape = tuple(min(a, b) for a, b in zip(shape, self.size, strict=True))
        else:
            shape = self.size
            cv2 = require("cv2")
            size = self.size[::-1]
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
            planes = {n: cv2.resize(p, size, interpolation=cv2.INTER_NEAREST) for n, p in planes.items()}
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float() / 255
        result["image"] = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        result |= {name: torch.from_numpy(plane).float()[None] for name, plane in planes.items()}
        result["origin_shape"], result["shape"] = torch.tensor(origin), torch.tensor(shape)
        result["name"] = item.image.name
        return result

    def _pad(self, plane: np.ndarray) -> np.ndarray:
        plane = plane[: self.size[0], : self.size[1]]
        missing = [(0, want - have) for want, have in zip(self.size, plane.shape[:2], strict=True)]
        return np.pad(plane, missing + [(0, 0)] * (plane.ndim - 2))


def edge_mask(mask: np.ndarray, width: int) -> np.ndarray:
    """Mark the pixels near the border of a mask.

    These are covered both by the mask and by its complement when each is dilated by a cross of ``width`` pixels.

    Args:
        mask: ``[H, W]``, nonzero where forged.
        width: width of the cross; odd, and smaller than both sides of the mask.

    Returns:
        uint8 ``[H, W]``.

    Raises:
        ValueError: if ``width`` is even or too large.
    """
    if width < 1 or width % 2 == 0 or width >= min(mask.shape):
        raise ValueError(f"`width` must be odd and smaller than both sides of the mask {mask.shape}, got {width}")
    inside = torch.from_numpy(np.asarray(mask) != 0).float()[None, None]
    both = _cross(inside, width) * _cross(1 - inside, width)
    return both[0, 0].numpy().astype(np.uint8)


def _cross(mask: Tensor, width: int) -> Tensor:
    """Dilate by a cross of the given width."""
    reach = width // 2
    row = F.max_pool2d(mask, (1, width), 1, (0, reach))
    return torch.maximum(row, F.max_pool2d(mask, (width, 1), 1, (reach, 0)))


def train_augmentations() -> Any:
    """Training augmentations of IMDLBenCo and NFA-ViT for image and mask (albumentations).

    Scaling, copy-move, inpainting, flips, brightness and contrast, JPEG compression, rotation by 90 degrees, blur.
    """
    a = require("albumentations")
    from visionattn.heads.forgery.augment import RandomCopyMove, RandomInpainting

    return a.Compose([
        a.RandomScale(scale_limit=0.2, p=1),
        RandomCopyMove(p=0.1),
        RandomInpainting(p=0.1),
        a.HorizontalFlip(p=0.5),
        a.VerticalFlip(p=0.5),
        a.RandomBrightnessContrast(brightness_limit=(-0.1, 0.1), contrast_limit=0.1, p=1),
        a.ImageCompression(quality_range=(70, 100), p=0.2),
        a.RandomRotate90(p=0.5),
        a.GaussianBlur(blur_limit=(3, 7), p=0.2),
    ])  # fmt: skip
