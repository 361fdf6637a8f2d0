"""Noise residuals of images by fixed high-pass filters of the spatial rich model (Fridrich and Kodovsky, TIFS 2012)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["HighPassResidual"]

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
