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
from visionattn.kernels.exporting import any_symbolic, extend_to_multiple
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
TOP = 20
STEEPNESS, PIXEL_LEVEL, IMAGE_LEVEL = 20.0, 0.5, 0.8
"""Chosen by results on synthetic forgeries and half of CASIA v1, see docs/forgery.md."""
BLOCKS = 16
"""Blocks of the comparison in compiled and exported programs; otherwise, a block has `BLOCK_SIZE` similarities."""
BLOCK_SIZE = 2**19


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
            quadratic in the number of cells.
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

    def copies(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tell which pixels belong to a region that occurs twice, and whether the image has one, by a fixed rule.

        The logit of a pixel rises with the fraction of the cells around it that have the same offset to their matches;
        regions are enlarged by 8 pixels, since only patches that are entirely inside have matches. The logit of the
        image depends on the mean of the 20 highest fractions, which exceeds 0.8 in few authentic photographs, and no
        pixel has a higher logit than the image.

        Args:
            x: see `forward`.

        Returns:
            Logits of the pixels ``[B, 1, H, W]`` and of the images ``[B]``.
        """
        fraction = self(x)[:, 1:2]
        highest = F.pad(fraction.flatten(1), (0, TOP)).topk(TOP).values
        image = STEEPNESS * (highest.mean(1) - IMAGE_LEVEL)
        smooth = F.avg_pool2d(fraction, 5, 1, 2, count_include_pad=False)
        pixels = STEEPNESS * (F.max_pool2d(smooth, 5, 1, 2) - PIXEL_LEVEL)
        pixels = torch.minimum(pixels, image[:, None, None, None])
        pixels = F.interpolate(pixels, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        return pixels[..., : x.shape[2], : x.shape[3]], image

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
            size = [side // STRIDE for side in x.shape[2:]]
            flexible = any_symbolic(size)
            if flexible or size[0] * size[1] > self.limit:
                factor = torch.sym_max(1.0, (size[0] * size[1] / self.limit) ** 0.5)
                # a little is added, since programs may compute this in single precision
                smaller = [torch.sym_max(8, torch.sym_int(side / factor + 0.01) * STRIDE // 8 * 8) for side in size]
                x = F.interpolate(x, smaller, mode="bilinear", antialias=True)
            found = self._match(self.describe(x))
        if flexible or list(found.shape[2:]) != size:
            found = F.interpolate(found, size, mode="bilinear", align_corners=False)
        return found

    def _match(self, patches: Tensor) -> Tensor:
        batch, _, height, width = patches.shape
        norm = patches.square().sum(1, keepdim=True).sqrt()
        cells = (patches / (norm + FLAT)).flatten(2).transpose(1, 2)  # [B, N, C]
        row = torch.arange(height, device=cells.device)[:, None].expand(height, width).flatten()
        column = torch.arange(width, device=cells.device).expand(height, width).flatten()
        if torch.compiler.is_compiling():
            # This adds 0. Without it, the positions are constants, and optimizers of exported files would store the
            # 121 near positions of each cell, which takes more space than the weights.
            row = row + (norm[0, 0, 0, 0] < 0)
        distance = torch.arange(1 - NEAR, NEAR, device=cells.device)
        best, offsets = [], []
        # in blocks, since the matrix of all similarities can take gigabytes; small ones stay in the caches of CPUs
        blocks = BLOCKS if torch.compiler.is_compiling() else max(1, (height * width) ** 2 // BLOCK_SIZE)
        step = (height * width + blocks - 1) // blocks
        padded = F.pad(cells, (0, 0, 0, step * blocks - height * width)).unflatten(1, (blocks, step))
        places = F.pad(torch.stack([row, column]), (0, step * blocks - height * width)).unflatten(1, (blocks, step))
        for block in range(blocks):
            here = places[:, block]
            near_rows = (here[0, :, None] + distance).clamp(0, height - 1)
            near_columns = (here[1, :, None] + distance).clamp(0, width - 1)
            near = (near_rows[:, :, None] * width + near_columns[:, None]).flatten(1).expand(batch, -1, -1)
            similarity = padded[:, block] @ cells.transpose(1, 2)
            value, match = similarity.scatter_(2, near, -1.0).max(-1)  # [B, step]
            best.append(value)
            offsets.append(torch.stack([row[match] - here[0], column[match] - here[1]], 1))
        value = torch.cat(best, 1)[:, : height * width].view(batch, 1, height, width)
        offset = torch.cat(offsets, 2)[..., : height * width].view(batch, 2, height, width).to(cells.dtype)
        around = F.pad(offset, [WINDOW // 2] * 4, value=1e6)
        around = F.unfold(around, WINDOW).view(batch, 2, WINDOW**2, height, width)
        same = ((around - offset[:, :, None]).abs() <= 1).all(1)
        return torch.cat([value, same.to(cells.dtype).mean(1, keepdim=True), norm / (norm + FLAT)], 1)
