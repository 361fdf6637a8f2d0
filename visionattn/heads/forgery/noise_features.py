"""Noise features of stride 4: fixed noise statistics and a small network on full-resolution residuals."""

import torch
from torch import Tensor, nn

from visionattn.heads.forgery.noise_statistics import NoiseStatistics
from visionattn.heads.forgery.residuals import HighPassResidual

__all__ = ["NoiseFeatures"]


class _ConvNormAct(nn.Sequential):
    """3x3 convolution, batch norm and ReLU."""

    def __init__(self, in_chans: int, out_chans: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out_chans),
            nn.ReLU(inplace=True),
        )


class _Residual(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _ConvNormAct(dim, dim), nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class NoiseFeatures(nn.Module):
    """The fixed maps of `NoiseStatistics` and a small residual network on the maps of `HighPassResidual`.

    The statistics describe noise, sharpness and compression of 8-pixel windows without training. The network operates
    on single pixels and can learn traces that windows average out, such as seams and resampling.

    Args:
        learned: output channels of the network; it has a quarter of them at full and half of them at half resolution.
        blocks: number of residual blocks at half and at quarter resolution.

    Raises:
        ValueError: if ``learned`` is not a positive multiple of 4.
    """

    stride = 4

    def __init__(self, learned: int = 64, blocks: int = 1) -> None:
        super().__init__()
        if learned <= 0 or learned % 4:
            raise ValueError(f"`learned` must be a positive multiple of 4, got {learned}")
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
        """Compute the features.

        Args:
            x: ``[B, 3, H, W]``, normalized with the ImageNet mean and standard deviation.

        Returns:
            ``[B, 48 + learned, ceil(H / 8) * 2, ceil(W / 8) * 2]``, the statistics followed by the learned maps.
        """
        rest = [-side % 8 for side in x.shape[2:]]
        if any(rest):
            x = nn.functional.pad(x, (0, rest[1], 0, rest[0]), mode="replicate")
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            residual = self.residual(x.float())
        return torch.cat([self.statistics(x), self.network(residual)], 1)
