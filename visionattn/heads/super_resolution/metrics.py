"""PSNR and SSIM of enlarged images.

Two protocols: ``raw`` compares the unclipped output of the network, as the published code of CATANet and BasicSR do;
otherwise the output is first clipped and rounded to 8 bits, which is the usual protocol of the literature.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["MAX_PSNR", "psnr", "ssim", "to_luma"]

MAX_PSNR = 80.0
"""PSNR of equal images under the protocol ``raw``, in dB."""
LUMA = (65.481, 128.553, 24.966)


def to_luma(image: Tensor) -> Tensor:
    """Return Y of BT.601 in [16/255, 235/255] for RGB in [0, 1]: ``[3, H, W]`` to ``[1, H, W]``."""
    weight = image.new_tensor(LUMA).view(3, 1, 1)
    return ((image * weight).sum(0, keepdim=True) + 16) / 255


def psnr(image: Tensor, truth: Tensor, border: int = 0, luma: bool = True, raw: bool = False) -> float:
    """Return the peak signal-to-noise ratio in dB.

    Args:
        image: RGB in [0, 1], ``[3, H, W]``; values outside are possible.
        truth: the same size.
        border: pixels that are cut off at each border, usually the scale of the enlargement.
        luma: compare Y, see `to_luma`, in place of RGB.
        raw: the protocol, see above. With it, the mean square error is increased by 1e-8, so that equal images have
            80 dB; without it, infinity.

    Raises:
        ValueError: the sizes differ, or the border leaves no pixel.
    """
    image, truth = _prepared(image, truth, border, luma, raw)
    error = float((image - truth).square().mean())
    if raw:
        return -10 * math.log10(error + 1e-8)
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(image: Tensor, truth: Tensor, border: int = 0, luma: bool = True, raw: bool = False) -> float:
    """Return the structural similarity (Wang et al., 2004), the mean over channels; arguments as for `psnr`.

    Gaussian window of 11x11 with sigma 1.5, without padding.

    Raises:
        ValueError: see `psnr`; or fewer than 11x11 pixels are left.
    """
    image, truth = (255 * x[:, None] for x in _prepared(image, truth, border, luma, raw))
    if min(image.shape[2:]) < 11:
        raise ValueError(f"SSIM needs at least 11 x 11 pixels, got {image.shape[2]} x {image.shape[3]}")
    mean_x, mean_y = _blur(image), _blur(truth)
    var_x, var_y = _blur(image**2) - mean_x**2, _blur(truth**2) - mean_y**2
    covariance = _blur(image * truth) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ratio = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((ratio / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _prepared(image: Tensor, truth: Tensor, border: int, luma: bool, raw: bool) -> tuple[Tensor, Tensor]:
    if image.shape != truth.shape or image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"both images must be [3, H, W] of one size, got {list(image.shape)} and {list(truth.shape)}")
    if min(image.shape[1:]) <= 2 * border:
        raise ValueError(f"`border` {border} leaves no pixel of {image.shape[1]} x {image.shape[2]}")
    pair = []
    for x in (image, truth):
        x = x.detach().cpu().double()
        x = x if raw else (255 * x).clamp(0, 255).round() / 255
        x = x[:, border : x.shape[1] - border, border : x.shape[2] - border]
        pair.append(to_luma(x) if luma else x)
    return pair[0], pair[1]


def _blur(x: Tensor) -> Tensor:
    place = np.arange(11) - 5
    window = np.exp(-(place**2) / (2 * 1.5**2))
    kernel = torch.from_numpy(window / window.sum()).to(x)
    return F.conv2d(F.conv2d(x, kernel.view(1, 1, 11, 1)), kernel.view(1, 1, 1, 11))
