"""Regions of an image that occur twice in it, from the correlation of its patches; nothing is learned.

Copied and moved regions are found by comparing all patches of an image with all others, as in Fridrich, Soukal and
Lukas, "Detection of copy-move forgery in digital images" (DFRWS 2003): DCT coefficients describe the patches, and
neighboring patches with the same offset to their matches are a copy.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.heads.forgery.noise import MEAN, STD, YCC
from visionattn.kernels.exporting import extend_to_multiple
from visionattn.kernels.transforms import full_precision

__all__ = ["SelfMatch"]

PATCH = 16
STRIDE = 4
ORDER = 5
"""Coefficients of luma that describe a patch: both frequencies are below this, and their sum is at most this."""
CHROMA = 1.5
"""Weight of the two lowest frequencies of each chroma channel."""
FLAT = 20.0
"""Added to the norm of the coefficients, in gray levels, so that nearly flat patches have low similarities."""
NEAR = 6
"""Cells: matches are at least this far away in one direction, since neighboring patches overlap and are alike."""
WINDOW = 7
BLOCKS = 16


def _basis() -> tuple[Tensor, Tensor]:
    """DCT basis functions as filters: of luma ``[18, 1, 16, 16]`` and of a chroma channel ``[2, 1, 16, 16]``."""
    k, i = torch.arange(float(ORDER))[:, None], torch.arange(float(PATCH))[None, :]
    scale = torch.where(k == 0, math.sqrt(1 / PATCH), math.sqrt(2 / PATCH))
    basis = scale * torch.cos(math.pi * (2 * i + 1) * k / (2 * PATCH))
    filters = torch.einsum("ai,bj->abij", basis, basis)
    pairs = [(a, b) for a in range(ORDER) for b in range(ORDER) if 0 < a + b <= ORDER]
    luma = torch.stack([filters[a, b] for a, b in pairs])[:, None]
    return luma, CHROMA * torch.stack([filters[0, 1], filters[1, 0]])[:, None]


class SelfMatch(nn.Module):
    """For each cell of 4 x 4 pixels, how well and how consistently the patch around it occurs elsewhere.

    Copies that were rotated, mirrored or resized are not found. Repeated structures of a scene, such as windows, are
    found as well.

    Args:
        limit: largest number of cells. Larger images are reduced to it before the comparison, since its time is
            quadratic in the number of cells. Exported programs do not reduce images.
    """

    stride = STRIDE
    out_chans = 3

    def __init__(self, limit: int = 16384) -> None:
        super().__init__()
        self.limit = limit
        luma, chroma = _basis()
        self.register_buffer("luma", luma, persistent=False)
        self.register_buffer("chroma", chroma, persistent=False)
        self.register_buffer("ycc", torch.tensor(YCC).view(3, 3, 1, 1), persistent=False)

    def describe(self, x: Tensor) -> Tensor:
        """Describe the patches, ``[B, C, ceil(H / 8) * 2, ceil(W / 8) * 2]``, by DCT coefficients in gray levels."""
        std, mean = (x.new_tensor(v).view(1, 3, 1, 1) for v in (STD, MEAN))
        border = [(PATCH - STRIDE) // 2] * 4
        planes = F.pad(F.conv2d((x * std + mean) * 255, self.ycc), border, mode="replicate")
        parts = [(planes[:, :1], self.luma), (planes[:, 1:2], self.chroma), (planes[:, 2:], self.chroma)]
        return torch.cat([F.conv2d(plane, basis, stride=STRIDE) for plane, basis in parts], 1)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Compare all patches.

        Args:
            x: ``[B, 3, H, W]``, normalized with the ImageNet mean and standard deviation.

        Returns:
            ``[B, 3, ceil(H / 8) * 2, ceil(W / 8) * 2]``: the cosine similarity of the best match; the fraction of the
            cells in a window of 7 x 7 with the same offset to their best match, up to one cell; and the contrast of
            the patch, ``norm / (norm + 20)``.
        """
        with full_precision(x.device.type):
            x = extend_to_multiple(x.float(), 8)
            size = (x.shape[2] // STRIDE, x.shape[3] // STRIDE)
            if not torch.compiler.is_exporting() and size[0] * size[1] > self.limit:
                factor = math.sqrt(self.limit / (size[0] * size[1]))
                smaller = [max(8, int(side * factor) * STRIDE // 8 * 8) for side in size]
                x = F.interpolate(x, smaller, mode="bilinear", antialias=True)
            found = self._match(self.describe(x))
        return found if found.shape[2:] == size else F.interpolate(found, size, mode="bilinear", align_corners=False)

    @staticmethod
    def _near(size: int, device: torch.device) -> Tensor:
        """Pairs of rows or columns that are too near to be compared, bool ``[size, size]``."""
        position = torch.arange(size, device=device)
        return (position[:, None] - position).abs() < NEAR

    def _match(self, patches: Tensor) -> Tensor:
        batch, _, height, width = patches.shape
        norm = patches.square().sum(1, keepdim=True).sqrt()
        cells = (patches / (norm + FLAT)).flatten(2).transpose(1, 2)  # [B, N, C]
        row = torch.arange(height, device=cells.device)[:, None].expand(height, width).flatten()
        column = torch.arange(width, device=cells.device).expand(height, width).flatten()
        close_rows, close_columns = (self._near(size, cells.device) for size in (height, width))
        best, offsets = [], []
        # all rows are compared in blocks, since the matrix of all similarities can take gigabytes
        step = (height * width + BLOCKS - 1) // BLOCKS
        padded = F.pad(cells, (0, 0, 0, step * BLOCKS - height * width)).unflatten(1, (BLOCKS, step))
        places = F.pad(torch.stack([row, column]), (0, step * BLOCKS - height * width)).unflatten(1, (BLOCKS, step))
        for block in range(BLOCKS):
            here = places[:, block]
            near = (close_rows[here[0], :, None] & close_columns[here[1], None, :]).flatten(1)
            similarity = padded[:, block] @ cells.transpose(1, 2)
            value, match = similarity.masked_fill(near, -1.0).max(-1)  # [B, step]
            best.append(value)
            offsets.append(torch.stack([row[match] - here[0], column[match] - here[1]], 1))
        value = torch.cat(best, 1)[:, : height * width].view(batch, 1, height, width)
        offset = torch.cat(offsets, 2)[..., : height * width].view(batch, 2, height, width).to(cells.dtype)
        around = F.pad(offset, [WINDOW // 2] * 4, value=1e6)
        around = F.unfold(around, WINDOW).view(batch, 2, WINDOW**2, height, width)
        same = ((around - offset[:, :, None]).abs() <= 1).all(1)
        return torch.cat([value, same.to(cells.dtype).mean(1, keepdim=True), norm / (norm + FLAT)], 1)
