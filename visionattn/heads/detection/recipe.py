"""How detectors are trained on a folder of data: ATSS for boxes, Mask R-CNN for instance masks."""

from typing import Any

import numpy as np

from visionattn.data.recipes import DataSummary, Recipe, Request, fit_scale, object_sides

__all__ = ["detection_recipe", "instance_recipe"]

SMALL = {"detection": (24, 32), "instance": (16, 24)}
"""Side in pixels to which small objects are resized, on a CPU and on a GPU; the finest levels have strides 8 and 4."""
SMALLEST = (320, 640)
LARGEST = (640, 1333)
"""Limits on the longer side of the images in pixels, on a CPU and on a GPU."""
ENLARGED, FLOOR_ENLARGED = 2, 4
"""Images are enlarged at most by these factors: for small objects, and to reach the lower limit."""
TOO_SMALL = 12
MASK_BYTES = 2e9
"""Memory for the masks of an image in validation, which have its original size, one byte per pixel."""
PIXELS = (8 * 400 * 300, 16 * 640 * 640)
"""Pixels of a batch, on a CPU and on a GPU."""


def detection_recipe(data: DataSummary, request: Request) -> Recipe:
    """Return how ATSS is trained on boxes.

    Raises:
        ConfigError: the backbone lacks a level.
    """
    scale, small, choices = _scale("detection", data, request)
    area = scale[0] * scale[1]
    batch = int(np.clip(round(PIXELS[request.gpu] / area), 2, 16 if request.gpu else 8))
    anchor = int(np.clip(round(small * 1.4 / 8), 3, 8))
    choices.append(("anchors", f"from {8 * anchor} px", "1.4 times the side of small objects"))
    indices, channels = request.backbone.at((8, 16, 32))
    width = _width(channels, request.gpu)
    options: dict[str, Any] = {
        "scale": scale,
        "model.backbone.model_name": request.backbone.name,
        "model.backbone.out_indices": indices,
        "model.neck.in_channels": channels,
        "model.bbox_head.anchor_generator.octave_base_scale": anchor,
    }
    if width != 64:
        for key in ("neck.out_channels", "bbox_head.in_channels", "bbox_head.feat_channels"):
            options[f"model.{key}"] = width
        options["model.bbox_head.stacked_convs"] = 4
    limit, line = _detections(data, 1000)
    options["model.test_cfg.max_per_img"] = limit
    choices.append(line)
    return Recipe(
        "atss_dinat-pico_fpn_coco_custom",
        options,
        batch,
        (1e-3, 8),
        "coco/bbox_mAP",
        1.0,
        ("digits", "blood-cells"),
        choices,
    )


def instance_recipe(data: DataSummary, request: Request) -> Recipe:
    """Return how Mask R-CNN is trained on instance masks.

    Raises:
        ConfigError: the backbone lacks a level.
    """
    scale, small, choices = _scale("instance", data, request)
    crop = min(640 if request.gpu else 320, scale[0])
    anchor = float(np.clip(round(0.75 * small / 4, 1), 2.0, 8.0))
    ratios = [1.0]
    longer = data.boxes.max(axis=1) / data.boxes.min(axis=1).clip(min=1)
    if (share := float((longer > 1.8).mean())) > 0.25:
        ratios = [0.5, 1.0, 2.0]
    shown = f"from {4 * anchor:.0f} px, ratios {' '.join(f'{r:g}' for r in ratios)}"
    choices.append(("anchors", shown, f"three quarters of small objects; {share:.0%} of all are elongated"))
    choices.append(("crops", f"{crop} x {crop}", "of the resized images, for training"))
    indices, channels = request.backbone.at((4, 8, 16, 32))
    width = _width(channels, request.gpu)
    options: dict[str, Any] = {
        "scale": scale,
        "crop_size": (crop, crop),
        "model.backbone.model_name": request.backbone.name,
        "model.backbone.out_indices": indices,
        "model.neck.in_channels": channels,
        "model.rpn_head.anchor_generator.scales": [anchor, round(anchor * 1.43, 1)],
        "model.rpn_head.anchor_generator.ratios": ratios,
    }
    if width != 64:
        parts = ("neck.out_channels", "rpn_head.in_channels", "rpn_head.feat_channels")
        head = ("bbox_roi_extractor.out_channels", "mask_roi_extractor.out_channels", "bbox_head.in_channels")
        masks = ("mask_head.in_channels", "mask_head.conv_out_channels")
        for key in (*parts, *(f"roi_head.{key}" for key in (*head, *masks))):
            options[f"model.{key}"] = width
        options |= {"model.roi_head.bbox_head.fc_out_channels": 1024, "model.roi_head.mask_head.num_convs": 4}
    pixels = float(data.sizes.prod(axis=1).max())
    limit, line = _detections(data, int(np.clip(MASK_BYTES / pixels, 100, 500)))
    options["model.test_cfg.rcnn.max_per_img"] = limit
    choices.append(line)
    batch = 8 if request.gpu else 2
    name = "mask-rcnn_dinat-pico_fpn_coco_custom"
    return Recipe(name, options, batch, (1.2e-3, 2), "coco/segm_mAP", 2.0, ("nuclei", "digits"), choices)


def _scale(job: str, data: DataSummary, request: Request) -> tuple[tuple[int, int], float, list[tuple[str, str, str]]]:
    """Return the size of the images, the side of small objects in them in pixels, and the lines for the user."""
    _, small = object_sides(data)
    longest = float(np.median(data.sizes.max(axis=1)))
    wanted = SMALL[job][request.gpu]
    low = min(SMALLEST[request.gpu], FLOOR_ENLARGED * longest)
    high = min(LARGEST[request.gpu], ENLARGED * longest)
    longer = request.size or float(np.clip(wanted / small, low, max(low, high)))
    scale = fit_scale(data, longer)
    side = small * scale[0]
    if request.size is not None:
        why = f"as asked; small objects have {side:.0f} px"
    else:
        why = f"small objects have {side:.0f} px, {small * longest:.0f} of {longest:.0f} px in the data"
    choices = [("image size", f"{scale[0]} x {scale[1]}", why)]
    if side < TOO_SMALL:
        choices.append(("", "", "they will hardly be found; use a larger --size, or crops of the images"))
    return scale, side, choices


def _width(channels: list[int], gpu: bool) -> int:
    """Return the channels of the neck and the heads: those of the shipped models for small backbones."""
    return 64 if channels[-1] <= 256 else 256 if gpu else 128


def _detections(data: DataSummary, limit: int) -> tuple[int, tuple[str, str, str]]:
    """Return the number of detections per image, twice the objects of the fullest one, and the line for the user."""
    most = int(np.bincount(data.owners).max(initial=0))
    count = min(limit, max(100, 2 * most))
    return count, ("detections", f"at most {count} per image", f"up to {most} objects in the training images")
