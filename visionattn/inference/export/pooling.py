"""Adaptive average pooling of maps of any size, for export."""

import torch
from torch import Tensor, nn

__all__ = ["replace_pooling"]


def replace_pooling(model: nn.Module) -> None:
    """Replace the ``nn.AdaptiveAvgPool2d`` with several bins: exporters support them for constant sizes only."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.AdaptiveAvgPool2d and child.output_size not in (1, (1, 1)):
                size = child.output_size
                setattr(module, name, AdaptivePooling((size, size) if isinstance(size, int) else size))


class AdaptivePooling(nn.Module):
    """Average pooling to a number of bins for each axis, by a product with two matrices.

    Args:
        bins: (rows, columns) of the result.
    """

    def __init__(self, bins: tuple[int, int]) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, C, rows, columns]`` for ``[B, C, H, W]``."""
        rows, columns = (_weights(n, side, x) for n, side in zip(self.bins, x.shape[2:], strict=True))
        return rows @ x @ columns.transpose(0, 1)


def _weights(bins: int, length: int, like: Tensor) -> Tensor:
    """Return the weight of each position in each bin, ``[bins, length]``; bins overlap if they do not divide it."""
    index = torch.arange(bins, device=like.device)[:, None]
    start, end = index * length // bins, ((index + 1) * length + bins - 1) // bins
    position = torch.arange(length, device=like.device)[None]
    inside = ((position >= start) & (position < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)
