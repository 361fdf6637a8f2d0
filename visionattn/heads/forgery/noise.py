"""Noise features for forgery detection.

Fixed high-pass filters of the spatial rich model (Fridrich and Kodovsky, TIFS 2012), local statistics of noise,
sharpness and compression, and a small network on full-resolution residuals.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.kernels.exporting import extend_to_multiple
from visionattn.kernels.transforms import full_precision

__all__ = ["HighPassResidual", "NoiseFeatures", "NoiseStatistics"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
YCC = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))
SECOND_ORDER = ((0, 0, 0), (0.5, -1, 0.5), (0, 0, 0))
SQUARE_3 = ((-0.25, 0.5, -0.25), (0.5, -1, 0.5), (-0.25, 0.5, -0.25))
SQUARE_5 = ((-1, 2, -2, 2, -1), (2, -6, 8, -6, 2), (-2, 8, -12, 8, -2), (2, -6, 8, -6, 2), (-1, 2, -2, 2, -1))
FILTERS = 6


def _kernels() -> Tensor:
    """Filters ``[6, 3, 5, 5]``: four for the luma and one for each chroma channel."""
    second = F.pad(torch.tensor(SECOND_ORDER), (1, 1, 1, 1))
    square = F.pad(torch.tensor(SQUARE_3), (1, 1, 1, 1))
    large = torch.tensor(SQUARE_5) / 12
    ycc = torch.tensor(YCC)
    pairs = ((second, 0), (second.T, 0), (square, 0), (large, 0), (square, 1), (square, 2))
    return torch.stack([ycc[plane][:, None, None] * kernel for kernel, plane in pairs])


class HighPassResidual(nn.Module):
    """High-pass residuals, their local log energy, and learned maps of both.

    Args:
        out_chans: number of learned output maps; 0 returns the 12 fixed maps.
        clip: residuals are clipped to this many gray levels, so that scene edges do not dominate the noise.
        window: odd side length of the window of the local energy, in pixels.
    """

    stride = 1

    def __init__(self, out_chans: int = 16, clip: float = 8.0, window: int = 7) -> None:
        super().__init__()
        self.clip, self.window = clip, window
        # The mean does not affect high-pass filters; std and 255 convert to gray levels.
        kernels = _kernels() * (255 * torch.tensor(STD)).view(1, 3, 1, 1)
        self.register_buffer("kernels", kernels, persistent=False)
        self.out_chans = out_chans or 2 * FILTERS
        self.learned = (
            nn.Sequential(
                nn.Conv2d(2 * FILTERS, out_chans, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_chans),
                nn.ReLU(inplace=True),
                nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_chans),
                nn.ReLU(inplace=True),
            )
            if out_chans
            else nn.Identity()
        )

    def residuals(self, x: Tensor) -> Tensor:
        """Compute the six residuals in gray levels, ``[B, 6, H, W]``, with replicate padding."""
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), self.kernels.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output maps.

        Args:
            x: ``[B, 3, H, W]``, normalized with the ImageNet mean and standard deviation.

        Returns:
            ``[B, out_chans or 12, H, W]``.
        """
        residual = self.residuals(x)
        energy = residual.square()
        for axis in (0, 1):  # separable mean filter
            window = [1, 1]
            window[axis] = self.window
            energy = F.avg_pool2d(energy, window, 1, [side // 2 for side in window], count_include_pad=False)
        strength = 0.5 * torch.log(energy + 0.1)
        return self.learned(torch.cat([residual.clamp(-self.clip, self.clip) / 2, strength], 1))


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
        x = extend_to_multiple(x.float(), 8)
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
        with full_precision(x.device.type):  # differences of gray levels need full precision
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
        x = extend_to_multiple(x, 8)
        with torch.no_grad(), full_precision(x.device.type):
            residual = self.residual(x.float())
        return torch.cat([self.statistics(x), self.network(residual)], 1)
