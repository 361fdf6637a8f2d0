"""Forgeries as albumentations transforms, to be put among others in a ``Compose``; the mask marks what they forge."""

from collections.abc import Callable
from typing import Any

import numpy as np

from visionattn.errors import require
from visionattn.heads.forgery.synthesis import Donor, ForgerySynthesis

albumentations = require("albumentations")

__all__ = ["ForgeryTransform", "RandomCopyMove", "RandomInpainting"]

SMALLEST, LARGEST = 0.05, 0.8
"""Sides of a window by those of the picture, as in IMDLBenCo."""


class _Window(albumentations.DualTransform):
    """Changes a window of the image and marks it in the mask by the mask's largest value, 255 or 1."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the window."""
        height, width = params["shape"][:2]
        rng = self.random_generator
        h, w = (int(rng.integers(max(1, int(SMALLEST * s)), max(2, int(LARGEST * s)))) for s in (height, width))
        spots = [(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))) for _ in range(2)]
        mask = data.get("mask")
        top = 255 if mask is not None and mask.max(initial=0) > 1 else 1
        return {"size": (h, w), "source": spots[0], "target": spots[1], "chance": float(rng.random()), "value": top}

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        """Mark the window."""
        (h, w), (y, x) = params["size"], params["target"]
        mask = mask.copy()
        mask[y : y + h, x : x + w] = params["value"]
        return mask


class RandomCopyMove(_Window):
    """Copies one window of the image to another place."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Copy."""
        (h, w), (sy, sx), (ty, tx) = params["size"], params["source"], params["target"]
        out = img.copy()
        out[ty : ty + h, tx : tx + w] = img[sy : sy + h, sx : sx + w]
        return out


class RandomInpainting(_Window):
    """Fills a window from around it, by Telea's method or that of Navier and Stokes."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Inpaint."""
        cv2 = require("cv2")
        (h, w), (y, x) = params["size"], params["target"]
        hole = np.zeros(img.shape[:2], np.uint8)
        hole[y : y + h, x : x + w] = 1
        return cv2.inpaint(img, hole, 3, cv2.INPAINT_TELEA if params["chance"] > 0.5 else cv2.INPAINT_NS)


class ForgeryTransform(albumentations.DualTransform):
    """`ForgerySynthesis` in albumentations' form; what the mask marked before stays marked.

    Args:
        donor: see `ForgerySynthesis`.
        p: how often a forgery is made.
        **arguments: of `ForgerySynthesis`, but ``probability``.
    """

    def __init__(self, donor: Callable[[np.random.Generator], Donor] | None = None, p: float = 0.5, **arguments: Any):
        super().__init__(p=p)
        self.synthesis = ForgerySynthesis(probability=1.0, donor=donor, **arguments)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Make the forgery once, for image and mask."""
        return {"forgery": self.synthesis(np.ascontiguousarray(data["image"]), self.random_generator, forge=True)}

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """The forged image."""
        return params["forgery"].image

    def apply_to_mask(self, mask: np.ndarray, **params: Any) -> np.ndarray:
        """The mask with the forgery added."""
        top = 255 if mask.max(initial=0) > 1 else 1
        return np.where(params["forgery"].mask > 0, top, mask).astype(mask.dtype)
