"""Noise residuals of a picture by fixed high-pass filters.

The filters are among those of the spatial rich model (Fridrich and Kodovsky, IEEE TIFS 2012).
"""

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
    """``[6, 3, 5, 5]``: four filters of the luma, one of each chroma."""
    second = F.pad(torch.tensor(SECOND_ORDER), (1, 1, 1, 1))
    square = F.pad(torch.tensor(SQUARE_3), (1, 1, 1, 1))
    large = torch.tensor(SQUARE_5) / 12
    ycc = torch.tensor(YCC)
    pairs = ((second, 0), (second.T, 0), (square, 0), (large, 0), (square, 1), (square, 2))
    return torch.stack([ycc[plane][:, None, None] * kernel for kernel, plane in pairs])


class HighPassResidual(nn.Module):
    """What is left of a picture without its content: residuals, how strong they are nearby, and learned maps of both.

    Args:
        out_chans: learned maps given; 0 gives the 12 fixed ones.
        clip: residuals are cut at this many grey levels, so that edges of the scene do not outshine the noise.
        window: side in pixels of the neighborhood in which the strength is taken; odd.

    Shapes: ``[B, 3, H, W]``, normalised with ImageNet's mean and deviation, to ``[B, out_chans or 12, H, W]``.
    """

    stride = 1

    def __init__(self, out_chans: int = 16, clip: float = 8.0, window: int = 7) -> None:
        super().__init__()
        self.clip, self.window = clip, window
        # the mean adds nothing to a high-pass filter; the deviation and 255 bring back grey levels
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
        """The six residuals in grey levels, ``[B, 6, H, W]``; the picture's border is repeated outside of it."""
        return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), self.kernels.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Residuals, their local strength, and what is learned of both."""
        residual = self.residuals(x)
        energy = residual.square()
        for axis in (0, 1):  # one axis after the other: the mean of means over a rectangle
            window = [1, 1]
            window[axis] = self.window
            energy = F.avg_pool2d(energy, window, 1, [side // 2 for side in window], count_include_pad=False)
        strength = 0.5 * torch.log(energy + 0.1)
        return self.learned(torch.cat([residual.clamp(-self.clip, self.clip) / 2, strength], 1))
