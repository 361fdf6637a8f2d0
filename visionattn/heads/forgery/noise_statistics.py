"""Local statistics of noise, sharpness and compression, computed by fixed filters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.heads.forgery.residuals import FILTERS, MEAN, STD, YCC, HighPassResidual

__all__ = ["NoiseStatistics"]

BANDS = 4
ZONES = ((1, 3), (3, 6), (6, 10), (10, 15))
"""Ranges of diagonals of an 8 x 8 block of DCT coefficients, from low to high frequency."""
QUANTITIES = FILTERS + BANDS + len(ZONES) + 2
CONTEXT = 17
DILATIONS = (1, 2, 4)
FLOOR = 0.1


def _dct() -> Tensor:
    """The 64 basis functions of the 8 x 8 DCT as filters, ``[64, 1, 8, 8]``."""
    k, i = torch.arange(8.0)[:, None], torch.arange(8.0)[None, :]
    basis = torch.where(k == 0, math.sqrt(1 / 8), math.sqrt(2 / 8)) * torch.cos(math.pi * (2 * i + 1) * k / 16)
    return torch.einsum("ai,bj->abij", basis, basis).reshape(64, 1, 8, 8)


class NoiseStatistics(nn.Module):
    """Sixteen local statistics: absolute, relative to the neighborhood, and relative to the image mean.

    In windows of 8 pixels: log energy of six high-pass residuals and of four frequency bands. In 8 x 8 DCT blocks
    aligned to the top left corner, as in JPEG: log energy of four frequency zones, the fraction of small coefficients,
    and the strength of block boundaries. Dilated convolutions add learned maps.

    Args:
        learned: number of learned maps; 0 omits the convolutions, so that only the running statistics of the
            normalization adapt to the data.
    """

    stride = 4

    def __init__(self, learned: int = 48) -> None:
        super().__init__()
        self.out_chans = 3 * QUANTITIES + learned
        self.highpass = HighPassResidual(0)
        self.register_buffer("dct", _dct(), persistent=False)
        diagonal = (torch.arange(8)[:, None] + torch.arange(8)[None, :]).flatten()
        zones = torch.stack([((diagonal >= low) & (diagonal < high)).float() for low, high in ZONES])
        self.register_buffer("zones", zones / zones.sum(1, keepdim=True), persistent=False)
        self.register_buffer("high", (diagonal >= 6).float() / (diagonal >= 6).sum(), persistent=False)
        self.register_buffer("luma", torch.tensor(YCC[0]).view(1, 3, 1, 1), persistent=False)
        self.scale = nn.BatchNorm2d(3 * QUANTITIES, affine=False)
        layers: list[nn.Module] = []
        for dilation in DILATIONS if learned else ():
            width = learned if layers else 3 * QUANTITIES
            layers += [
                nn.Conv2d(width, learned, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(learned),
                nn.ReLU(inplace=True),
            ]
        self.learned = nn.Sequential(*layers)

    @torch.no_grad()
    def quantities(self, x: Tensor) -> Tensor:
        """Compute the sixteen statistics, float32 ``[B, 16, ceil(H / 8) * 2, ceil(W / 8) * 2]``."""
        x = x.float()
        rest = [-side % 8 for side in x.shape[2:]]
        if any(rest):
            x = F.pad(x, (0, rest[1], 0, rest[0]), mode="replicate")
        std, mean = (x.new_tensor(v).view(1, 3, 1, 1) for v in (STD, MEAN))
        luma = ((x * std + mean) * self.luma).sum(1, keepdim=True) * 255
        residual = self.highpass.residuals(x)
        parts = [_log_strength(residual), *map(_log_strength, _bands(luma))]
        blocks = F.conv2d(luma, self.dct, stride=8).abs()
        by_zone = torch.log(torch.einsum("bchw,zc->bzhw", blocks, self.zones) + FLOOR)
        small = torch.einsum("bchw,c->bhw", (blocks < 1).float(), self.high)[:, None]
        edges = residual[:, 2:3].abs()
        border = F.avg_pool2d(edges[..., ::8].contiguous(), (8, 1)) + F.avg_pool2d(
            edges[:, :, ::8].contiguous(), (1, 8)
        )
        stands_out = torch.log((border / 2 + FLOOR) / (F.avg_pool2d(edges, 8) + FLOOR))
        coarse = torch.cat([by_zone, small, stands_out], 1)
        return torch.cat([*parts, F.interpolate(coarse, scale_factor=2, mode="nearest")], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute absolute and relative statistics, and the learned maps.

        Args:
            x: ``[B, 3, H, W]``, normalized with the ImageNet mean and standard deviation.

        Returns:
            ``[B, 48 + learned, ceil(H / 8) * 2, ceil(W / 8) * 2]``.
        """
        with torch.autocast(x.device.type, enabled=False):  # differences of gray levels need full precision
            own = self.quantities(x)
        around = F.avg_pool2d(own, (CONTEXT, 1), 1, (CONTEXT // 2, 0), count_include_pad=False)
        around = F.avg_pool2d(around, (1, CONTEXT), 1, (0, CONTEXT // 2), count_include_pad=False)
        fixed = self.scale(torch.cat([own, own - around, own - own.mean((2, 3), keepdim=True)], 1))
        return torch.cat([fixed, self.learned(fixed)], 1) if len(self.learned) else fixed


def _log_strength(values: Tensor) -> Tensor:
    """Log root mean square in overlapping windows of 8 pixels with stride 4."""
    padded = F.pad(values.square(), (2, 2, 2, 2), mode="replicate")
    return 0.5 * torch.log(F.avg_pool2d(padded, 8, 4) + FLOOR)


def _bands(luma: Tensor) -> list[Tensor]:
    """Differences of successively blurred copies, from high to low frequency."""
    bands = []
    for index in range(BANDS):
        blurred = luma
        for _ in range(1 + (index > 0)):
            blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, 1)
        bands.append(luma - blurred)
        luma = blurred
    return bands
