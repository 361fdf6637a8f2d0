"""Final outputs of super-resolution models, for export, and their conversion back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visionattn.errors import ConfigError, DataError
from visionattn.inference.export.outputs import FinalOutputs
from visionattn.inference.onnx.model import Geometry, RawOutput
from visionattn.layers.token_aggregation import TokenAggregationBlock

__all__ = ["EnlargedOutputs", "restore_enlarged"]


class EnlargedOutputs(FinalOutputs):
    """Output of a super-resolution model: ``enlarged``, RGB ``[B, 3, scale * H, scale * W]`` in 0..255, not rounded.

    Rounding decides about the rare token of CATANet that is equally similar to two centers, and so about the limits of
    all groups between them. Program and model then differ by up to a few of 255 in single pixels, and otherwise by
    1e-4 of 255.

    Args:
        model: a `visionattn.heads.super_resolution.mmlab.SuperResolver`.
        resize: whether the program resizes images, which has no meaning here.
    """

    tolerance = 1e-2

    def __init__(self, model: nn.Module, resize: bool = False) -> None:
        if resize:
            raise ConfigError("`resize` is not supported for super-resolution models, which enlarge images themselves")
        for module in model.modules():
            if isinstance(module, TokenAggregationBlock):
                module.exported_with_centers = bool(module.initted)
        super().__init__(model, ("enlarged",), about={"scale": model.scale}, stand_in={"scale": model.scale})

    def forward(self, image: Tensor, size: Sequence[int], original: Sequence[int]) -> tuple[Tensor]:
        """Return the enlarged images."""
        return (255 * self.model.net(image).clamp(0, 1),)


def restore_enlarged(outputs: Mapping[str, np.ndarray], about: Mapping[str, Any], geometry: Geometry) -> RawOutput:
    """Return ``pred_image`` of the original image.

    Raises:
        DataError: the image is larger than a program for a fixed size.
    """
    if geometry.resized != geometry.image:
        height, width = geometry.image
        raise DataError(
            f"an image of {width}x{height} is larger than the size of the exported program; set `tile` to that size, "
            "or export with dynamic size"
        )
    height, width = (int(about["scale"]) * side for side in geometry.image)
    values = np.ascontiguousarray(outputs["enlarged"][:, :height, :width], np.float32)
    return RawOutput(pred_image=torch.from_numpy(values) / 255)
