"""Final outputs of forgery detection, for export, and their conversion back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.inference.export.outputs import FinalOutputs, resize_maps
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.kernels.exporting import crop_pixels

__all__ = ["ForgeryOutputs", "restore_forgery"]


class ForgeryOutputs(FinalOutputs):
    """Outputs of a `visionattn.heads.forgery.mmlab.ForgeryModel`.

    Outputs: ``probability [B, H, W]`` that a pixel is forged, ``mask [B, H, W]`` (uint8, 1 is forged), and ``score
    [B]``, the probability that the image is forged.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        threshold = float(model.threshold)
        about = {"score_from_mask": bool(model.score_from_mask)}
        names = ("probability", "mask", "score")
        super().__init__(model, names, {"mask_threshold": threshold}, about, {"threshold": threshold})

    def forward(
        self, image: Tensor, size: Sequence[int], original: Sequence[int], mask_threshold: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities, masks and scores."""
        output = self.model.net(image)
        logits = crop_pixels(output.mask_logits.float(), size)
        probability = resize_maps(logits, size, original)[:, 0].sigmoid()
        score = probability.flatten(1).amax(1) if self.model.score_from_mask else output.label
        return probability, (probability > mask_threshold).to(torch.uint8), score


def restore_forgery(outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
    """Return ``forgery_prob``, ``forgery_score`` and ``seg_logits`` of the original image."""
    rows, columns = geometry.resized
    probability = torch.from_numpy(np.ascontiguousarray(outputs["probability"]))[None, None, :rows, :columns]
    logits = torch.logit(probability, eps=1e-7)
    if geometry.image != geometry.resized:
        logits = F.interpolate(logits, geometry.image, mode="bilinear", align_corners=False)
        probability = logits.sigmoid()
    score = probability.amax() if about.get("score_from_mask") else torch.tensor(float(outputs["score"]))
    return RawOutput(
        forgery_prob=RawOutput(data=probability[0]),
        forgery_score=score,
        seg_logits=RawOutput(data=torch.cat([torch.zeros_like(logits[0]), logits[0]])),
    )
