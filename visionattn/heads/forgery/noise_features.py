"""Noise features at a stride of 4: fixed statistics for a quick start, a network on residuals at full resolution."""

import torch
from torch import Tensor, nn

from visionattn.heads.forgery.noise_statistics import NoiseStatistics
from visionattn.heads.forgery.residuals import HighPassResidual

__all__ = ["NoiseFeatures"]


class _ConvNormAct(nn.Sequential):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_chans),
            nn.ReLU(inplace=True),
        )


class _Residual(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _ConvNormAct(dim, dim), nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class NoiseFeatures(nn.Module):
    """The fixed maps of `NoiseStatistics` beside a small residual network on `HighPassResidual`'s maps.

    The statistics tell noise, sharpness and compression of 8-pixel windows from the first iteration on; the network
    sees single pixels, so it learns what windows average away: seams of pasted parts, traces of resampling.

    Args:
        learned: channels that the network gives; it works with a quarter of them at full resolution and half of them
            at half.
        blocks: residual blocks at half resolution and at a quarter.

    Shapes: ``[B, 3, H, W]``, normalised with ImageNet's mean and deviation, to ``[B, 48 + learned, ceil(H / 8) * 2,
    ceil(W / 8) * 2]``: a stride of 4.

    Raises:
        ValueError: ``learned`` is not a positive multiple of 4.
    """

    stride = 4

    def __init__(self, learned: int = 64, blocks: int = 1) -> None:
        super().__init__()
        if learned <= 0 or learned % 4:
            raise ValueError(f"learned={learned} must be a positive multiple of 4")
        self.statistics = NoiseStatistics(0)
        self.residual = HighPassResidual(0)
        self.out_chans = self.statistics.out_chans + learned
        half, quarter = learned // 2, learned // 4
        self.network = nn.Sequential(
            _ConvNormAct(self.residual.out_chans, quarter),
            _ConvNormAct(quarter, half, 2),
            *[_Residual(half) for _ in range(blocks)],
            _ConvNormAct(half, learned, 2),
            *[_Residual(learned) for _ in range(blocks)],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Statistics first, then what is learned."""
        rest = [-side % 8 for side in x.shape[2:]]
        if any(rest):
            x = nn.functional.pad(x, (0, rest[1], 0, rest[0]), mode="replicate")
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            residual = self.residual(x.float())
        return torch.cat([self.statistics(x), self.network(residual)], 1)
