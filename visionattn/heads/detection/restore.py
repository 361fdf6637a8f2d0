"""Convert the outputs of an exported detector to those of the model: boxes and masks in the original image."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.inference.export.masks import paste_masks
from visionattn.inference.export.queries import mask_boxes, mask_scores, resize_masks
from visionattn.inference.onnx.model import Geometry, RawOutput

__all__ = ["restore_instances"]


def restore_instances(outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
    """Return ``pred_instances`` with boxes, scores, labels and masks of the image.

    Args:
        outputs: see `visionattn.heads.detection.export.BoxOutputs`, without the batch axis.
        about: its ``about``.
        geometry: sizes of the image.
    """
    count = int(outputs["count"])
    found = {name: torch.from_numpy(np.array(values[:count])) for name, values in outputs.items() if values.ndim}
    (height, width), (rows, columns) = geometry.image, geometry.resized
    factor = torch.tensor([width / columns, height / rows] * 2)
    result = RawOutput(bboxes=found["boxes"] * factor, scores=found["scores"], labels=found["labels"])
    if "masks" in found:
        result["masks"] = _MASKS[about["masks"]](found, result, about, geometry)
    return RawOutput(pred_instances=result)


def _from_boxes(
    found: Mapping[str, Tensor], result: RawOutput, about: Mapping[str, Any], geometry: Geometry
) -> np.ndarray:
    """Paste masks that are relative to their boxes."""
    height, width = geometry.image
    masks = np.zeros((len(result.scores), height, width), bool)
    for mask, probabilities, box in zip(masks, found["masks"], result.bboxes, strict=True):
        x0, y0 = (int(max(0, value - 1)) for value in box[:2].floor().tolist())
        x1, y1 = int(min(width, box[2].ceil() + 1)), int(min(height, box[3].ceil() + 1))
        if x0 < x1 and y0 < y1:
            part = paste_masks(probabilities, box, (y1 - y0, x1 - x0), torch.tensor([x0, y0]))
            mask[y0:y1, x0:x1] = (part >= about["mask_threshold"]).numpy()
    return masks


def _from_pixels(
    found: Mapping[str, Tensor], result: RawOutput, about: Mapping[str, Any], geometry: Geometry
) -> np.ndarray:
    """Resize masks of the whole input."""
    rows, columns = geometry.resized
    masks = found["masks"][:, None, :rows, :columns].float()
    if len(masks) and geometry.image != geometry.resized:
        masks = F.interpolate(masks, geometry.image, mode="bilinear", align_corners=False)
    return (masks[:, 0] >= 0.5).numpy()


def _from_queries(
    found: Mapping[str, Tensor], result: RawOutput, about: Mapping[str, Any], geometry: Geometry
) -> np.ndarray:
    """Resize masks of queries as the model does; their boxes and scores follow from the masks of the image."""
    rows, columns = geometry.resized
    logits = torch.logit(found["masks"], eps=1e-12)[None].nan_to_num(neginf=-30.0, posinf=30.0)
    logits = resize_masks(logits, geometry.padded)[..., :rows, :columns]
    if geometry.image != geometry.resized:
        logits = F.interpolate(logits, geometry.image, mode="bilinear", align_corners=False)
    masks = logits[0] > 0
    result["bboxes"] = mask_boxes(masks)
    result["scores"] = found["class_scores"] * mask_scores(logits[0])
    return masks.numpy()


_MASKS = {"boxes": _from_boxes, "pasted": _from_pixels, "queries": _from_queries}
