"""Modules that compute the final outputs of a model, for export."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FinalOutputs", "gather_rows", "resize_maps", "scale_boxes"]


class FinalOutputs(nn.Module):
    """Base class of the modules that map images to final outputs, such as boxes in pixels or maps of classes.

    `Job.exported` returns one. It is traced with `torch.export` for any batch and image size, so ``forward`` must not
    depend on values of tensors; `visionattn.kernels.selection` has the operators for that.

    Args:
        model: the model, in eval mode.
        names: the name of each output.
        thresholds: default values of the thresholds by name, passed to ``forward`` in this order.
        about: entries for the metadata of the file, JSON values only: what is needed to decode the outputs.
        stand_in: attributes of the model that its `Job` reads, as nested dicts, for `Predictor.from_onnx`.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        thresholds: Mapping[str, float] | None = None,
        about: Mapping[str, Any] | None = None,
        stand_in: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.names, self.thresholds = model, tuple(names), dict(thresholds or {})
        self.about, self.stand_in = dict(about or {}), dict(stand_in or {})

    def forward(
        self, image: Tensor, size: Sequence[int], original: Sequence[int], *thresholds: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the outputs.

        Args:
            image: normalized images, zero-padded at the bottom and right, ``[B, 3, h, w]``.
            size: (height, width) of the images without padding.
            original: (height, width) that the outputs refer to: the same object as `size`, unless the program resizes
                the images; then their size before that.
            *thresholds: scalar tensors.
        """
        raise NotImplementedError


def resize_maps(maps: Tensor, size: Sequence[int], original: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize maps ``[B, C, h, w]`` from one size to another; see `FinalOutputs.forward`."""
    if original is size:
        return maps
    return F.interpolate(maps, size=tuple(original), mode="bilinear", align_corners=align_corners)


def scale_boxes(boxes: Tensor, size: Sequence[int], original: Sequence[int]) -> Tensor:
    """Scale boxes ``[..., 4]`` from an image of one size to one of another; see `FinalOutputs.forward`."""
    if original is size:
        return boxes
    x, y = (boxes[..., axis::2] * original[1 - axis] / size[1 - axis] for axis in (0, 1))
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values[b, index[b, k]]`` for values ``[B, N, ...]`` and indices ``[B, K]``."""
    extra = values.shape[2:]
    return values.gather(1, index.reshape(*index.shape, *[1] * len(extra)).expand(*index.shape, *extra))
