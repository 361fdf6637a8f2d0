"""How localization is trained on folders with one subfolder of images per class: class activation maps."""

import numpy as np

from visionattn.data.recipes import DataSummary, Recipe, Request, rounded

__all__ = ["localization_recipe"]

SIDE = 224
SMALLEST = 96


def localization_recipe(data: DataSummary, request: Request) -> Recipe:
    """Return how a class activation map model is trained on image labels.

    Raises:
        ConfigError: the backbone lacks a level.
    """
    longest = float(np.median(data.sizes.max(axis=1)))
    side = rounded(request.size or np.clip(longest, SMALLEST, SIDE))
    why = "as asked" if request.size else f"{longest:.0f} px in the data"
    (_, index), _ = request.backbone.at((8, 16))  # plain transformers accept only one size
    options = {
        "scale": (side, side),
        "model.backbone.model_name": request.backbone.name,
        "model.backbone.out_indices": [index],
    }
    return Recipe(
        "cam_dinat-pico_folders_custom", options, 32 if request.gpu else 16, (1e-3, 16), "Top1", 1.0,
        ("digits", "nuclei"), [("image size", f"{side} x {side}", why)],
    )  # fmt: skip
