"""The largest connected region of a map, as an operator for `torch.export` and ONNX."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["largest_region_box"]

torch.library.define("visionattn::largest_region_box", "(Tensor maps, Tensor threshold) -> Tensor")


def largest_region_box(maps: Tensor, threshold: Tensor) -> Tensor:
    """Return the bounding box of the largest 8-connected region above a threshold, float32 ``[B, 4]``.

    Boxes are x1, y1, x2, y2; the right and bottom are one pixel past the region. Among regions of equal size, the first
    in row-major order is used. If no pixel exceeds the threshold, the box is the whole map.

    Args:
        maps: ``[B, H, W]``.
        threshold: scalar tensor.
    """
    return torch.ops.visionattn.largest_region_box(maps, threshold)


@torch.library.impl("visionattn::largest_region_box", "CompositeExplicitAutograd")
def _largest_region_box(maps, threshold):
    batch, height, width = maps.shape
    above = (maps > threshold).double()
    # every pixel gets the number of the first pixel of its region, counted from the end, so that the maximum spreads
    names = torch.arange(height * width, 0, -1, dtype=torch.float64, device=maps.device).reshape(height, width) * above
    while True:
        spread = F.max_pool2d(names[:, None], 3, 1, 1)[:, 0] * above
        if torch.equal(spread, names):
            break
        names = spread
    flat = names.flatten(1).long()
    sizes = torch.zeros(batch, height * width + 1, dtype=torch.int64, device=maps.device)
    sizes.scatter_add_(1, flat, (flat > 0).long())
    best = height * width - sizes.flip(1).argmax(1)  # the first of equal sizes has the largest number
    inside = (flat == best[:, None]) & (sizes.amax(1) > 0)[:, None]
    inside = (inside | (sizes.amax(1) == 0)[:, None]).reshape(batch, height, width)
    sides = []
    for axis, length in ((1, width), (2, height)):
        line = inside.any(axis)
        position = torch.arange(length, device=maps.device)
        sides.append((torch.where(line, position, length).amin(1), torch.where(line, position + 1, 0).amax(1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], 1).to(torch.float32)


@torch.library.register_fake("visionattn::largest_region_box")
def _(maps, threshold):
    return maps.new_empty(maps.shape[0], 4, dtype=torch.float32)
