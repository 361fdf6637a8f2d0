"""Forgeries as albumentations transforms for use in a ``Compose``; they mark the forged pixels in the mask."""

from collections.abc import Callable
from typing import Any

import numpy as np

from visionattn.errors import require
from visionattn.heads.forgery.create.synthesis import Donor, ForgerySynthesis

albumentations = require("albumentations")

__all__ = ["ForgeryTransform", "RandomCopyMove", "RandomInpainting"]

MIN_SIZE, MAX_SIZE = 0.05, 0.8
"""Range of the height and width of a window as fractions of those of the image, as in IMDLBenCo."""


class _Window(albumentations.DualTransform):
    """Base class: edit a window of the image and mark it in the mask with the value 255 or 1, as used by the mask."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Sample the window."""
        height, width = params["shape"][:2]
        rng = self.random_generator
        h, w = (int(rng.integers(max(1, int(MIN_SIZE * s)), max(2, int(MAX_SIZE * s)))) for s in (height, width))
        spots = [(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))) for _ in range(2)]
        mask = data.get("mask")
        top = 255 if mask is not None and mask.max(initial=0) > 1 else 1
        return {"size": (h, w), "source": spots[0], "target": spots[1], "chance": float(rng.random()), "value": top}

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        """Mark the window in the mask."""
        (h, w), (y, x) = params["size"], params["target"]
        mask = mask.copy()
        mask[y : y + h, x : x + w] = params["value"]
        return mask


class RandomCopyMove(_Window):
    """Copy one window of the image to another position."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Copy the window."""
        (h, w), (sy, sx), (ty, tx) = params["size"], params["source"], params["target"]
        out = img.copy()
        out[ty : ty + h, tx : tx + w] = img[sy : sy + h, sx : sx + w]
        return out


class RandomInpainting(_Window):
    """Inpaint a window with the method of Telea or the Navier-Stokes method."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Inpaint the window."""
        cv2 = require("cv2")
        (h, w), (y, x) = params["size"], params["target"]
        hole = np.zeros(img.shape[:2], np.uint8)
        hole[y : y + h, x : x + w] = 1
        return cv2.inpaint(img, hole, 3, cv2.INPAINT_TELEA if params["chance"] > 0.5 else cv2.INPAINT_NS)


class ForgeryTransform(albumentations.DualTransform):
    """`ForgerySynthesis` as an albumentations transform; pixels already marked in the mask stay marked.

    Args:
        donor: see `ForgerySynthesis`.
        p: probability of a forgery.
        **arguments: further arguments of `ForgerySynthesis`, except ``probability``.
    """

    def __init__(self, donor: Callable[[np.random.Generator], Donor] | None = None, p: float = 0.5, **arguments: Any):
        super().__init__(p=p)
        self.synthesis = ForgerySynthesis(probability=1.0, donor=donor, **arguments)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Create the forgery once for image and mask."""
        return {"forgery": self.synthesis(np.ascontiguousarray(data["image"]), self.random_generator, forge=True)}

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Return the forged image."""
        return params["forgery"].image

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        """Add the forged pixels to the mask."""
        top = 255 if mask.max(initial=0) > 1 else 1
        return np.where(params["forgery"].mask > 0, top, mask).astype(mask.dtype)
