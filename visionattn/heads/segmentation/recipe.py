"""How semantic segmentation is trained on a folder of images and index masks: Semantic FPN."""

from typing import Any

import numpy as np

from visionattn.data.recipes import DataSummary, Recipe, Request, fit_scale, rounded

__all__ = ["semantic_recipe"]

LARGEST = (384, 1024)
"""Limit on the longer side of the images in pixels, on a CPU and on a GPU."""
SMALLEST = 128
CROP = 0.8
"""Side of the crops for training, relative to the images."""
LARGEST_WEIGHT = 10.0


def semantic_recipe(data: DataSummary, request: Request) -> Recipe:
    """Return how Semantic FPN is trained on index masks.

    Raises:
        ConfigError: the backbone lacks a level.
    """
    longest = float(np.median(data.sizes.max(axis=1)))
    limit = LARGEST[request.gpu]
    scale = fit_scale(data, request.size or max(SMALLEST, min(longest, limit)))
    crop = (rounded(CROP * scale[1]), rounded(CROP * scale[0]))
    why = "as asked" if request.size else f"{longest:.0f} px in the data, at most {limit} on this device"
    choices = [
        ("image size", f"{scale[0]} x {scale[1]}", why),
        ("crops", f"{crop[1]} x {crop[0]}", "of the resized images, for training"),
    ]
    indices, channels = request.backbone.at((4, 8, 16, 32))
    options: dict[str, Any] = {
        "scale": scale,
        "crop_size": crop,
        "model.backbone.model_name": request.backbone.name,
        "model.backbone.out_indices": indices,
        "model.neck.in_channels": channels,
    }
    if request.backbone.name != "dinat_pico":
        options["model.backbone"] = {
            "type": "visionattn.Backbone",
            "model_name": request.backbone.name,
            "out_indices": indices,
        }  # fmt: skip  the dilations of the config are those of dinat_pico
    if data.pixels is not None and len(data.classes) > 1:
        weights = class_weights(data.pixels)
        options["model.decode_head.loss_decode.class_weight"] = weights
        choices.append(("class weights", f"{min(weights):.2g} to {max(weights):.2g}", "rare classes count more"))
    return Recipe(
        "semantic-fpn_dinat-pico_masks_custom", options, 16 if request.gpu else 4, (1e-3, 4), "mIoU", 1.0,
        ("nuclei", "digits"), choices,
    )  # fmt: skip


def class_weights(pixels: np.ndarray) -> list[float]:
    """Return inverse square roots of the class frequencies with a mean over pixels of 1; 1 for absent classes.

    Args:
        pixels: number of pixels of each class.
    """
    shares = pixels / max(1, pixels.sum())
    weights = np.where(shares > 0, 1 / np.sqrt(shares, where=shares > 0, out=np.ones_like(shares)), 1.0)
    weights = np.where(shares > 0, weights / max(1e-12, float((shares * weights).sum())), 1.0)
    return [round(float(w), 3) for w in weights.clip(max=LARGEST_WEIGHT)]
