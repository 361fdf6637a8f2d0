"""Final outputs of weakly supervised localization, for export, and their conversion back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.errors import ConfigError
from visionattn.heads.localization.metrics_sat import box_of_largest_region, normalize_map
from visionattn.inference.export.outputs import FinalOutputs, resize_maps
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.kernels.exporting import crop_pixels
from visionattn.kernels.regions import largest_region_box

__all__ = ["LocalizationOutputs", "restore_localization"]


class LocalizationOutputs(FinalOutputs):
    """Outputs of a localization model.

    Outputs: ``logits [B, C]`` and ``scores [B, C]`` (softmax) of the classes; ``label [B]`` and ``box [B, 4]`` (x1, y1,
    x2, y2) of the best class; ``heatmap [B, H, W]`` in [0, 1] for this class, and ``map [B, h, w]``, the same at the
    resolution of the model and not normalized.

    Args:
        model: a model with class activation maps or a spatial-aware token.
        resize: the program resizes the images.
    """

    def __init__(self, model: nn.Module, resize: bool = False) -> None:
        if getattr(model, "method", "cam") != "cam":
            raise ConfigError(
                f"{type(model).__name__} cannot be exported: method {model.method!r} needs gradients, which exported "
                "programs do not compute; 'cam' can be exported"
            )
        names = ("logits", "scores", "label", "box", "heatmap", "map")
        threshold = float(model.box_threshold)
        about = {"box_threshold": threshold, "resize": resize}
        super().__init__(model, names, {"box_threshold": threshold}, about)

    def forward(
        self, image: Tensor, size: Sequence[int], original: Sequence[int], box_threshold: Tensor
    ) -> tuple[Tensor, ...]:
        """Return logits, scores, labels, boxes, heat maps and raw maps."""
        output = self.model._tensor(image)
        label = output.logits.argmax(1)
        if hasattr(self.model, "head"):  # class activation maps
            maps = output.class_maps.gather(1, label[:, None, None, None].expand(-1, 1, *output.class_maps.shape[2:]))
            maps = maps[:, 0] - self.model.head.classifier.bias[label][:, None, None]
        else:
            maps = output.maps[:, 0]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        heat = (maps - low) / (high - low + 1e-5)
        rows, columns = maps.shape[1:]
        strides = [(side + count - 1) // count for side, count in zip(image.shape[2:], (rows, columns), strict=True)]
        covered = (rows * strides[0], columns * strides[1])
        heat = F.interpolate(heat[:, None], size=covered, mode="bilinear", align_corners=False)
        heat = resize_maps(crop_pixels(heat, size), size, original)[:, 0]
        box = largest_region_box(heat, box_threshold)
        return output.logits, output.logits.softmax(1), label, box, heat, maps


def restore_localization(outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
    """Return ``pred_scores``, ``pred_map`` and ``pred_instances`` of the original image."""
    scores = np.asarray(outputs["scores"], np.float32)
    label = int(outputs["label"])
    if about.get("resize"):
        found = RawOutput(bboxes=outputs["box"][None], scores=scores[label][None], labels=np.array([label]))
        return RawOutput(pred_scores=scores, pred_map=torch.from_numpy(outputs["heatmap"]), pred_instances=found)
    rows, columns = outputs["map"].shape
    strides = [-(-side // count) for side, count in zip(geometry.padded, (rows, columns), strict=True)]
    covered = (rows * strides[0], columns * strides[1])
    shown = torch.from_numpy(np.ascontiguousarray(outputs["map"], np.float32))
    if covered != geometry.resized:
        fine = F.interpolate(shown[None, None], size=covered, mode="bilinear", align_corners=False)
        shown = fine[0, 0, : geometry.resized[0], : geometry.resized[1]]
    heat = normalize_map(shown.numpy(), geometry.image)
    box = box_of_largest_region(heat, float(about["box_threshold"])).astype(np.float32)
    found = RawOutput(bboxes=box[None], scores=scores[label][None], labels=np.array([label]))
    return RawOutput(pred_scores=scores, pred_map=shown, pred_instances=found)
