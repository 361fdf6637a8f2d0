"""Salient relevance maps: the regions of a relevance map that stand out, in place of single pixels.

Li et al., "Beyond saliency: understanding convolutional neural networks from saliency prediction on layer-wise
relevance propagation" (arXiv 1712.08268), with the context-aware saliency of Goferman, Zelnik-Manor and Tal (CVPR
2010).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["salient_relevance"]

SIDE = 250
"""Longer side in pixels of the map at scale 1."""
SCALES = (1.0, 0.8, 0.5, 0.3)
PATCH, STEP = 7, 3
NEIGHBORS = 64
POSITION_WEIGHT = 3.0
FOCUS = 0.8
CHUNK = 1024


def salient_relevance(heat: Tensor, scales: Sequence[float] = SCALES) -> Tensor:
    """Return the saliency of each position of a relevance map.

    A patch is salient if even the patches most similar to it differ: with d = d_value / (1 + 3 d_position), the mean
    over the 64 most similar patches, at the same scale and at half and a quarter of it, gives 1 - exp(-mean). The mean
    over the scales is scaled to [0, 1] and weighted with 1 minus the distance to the nearest focus, a position with
    more than 0.8. Distances between positions are relative to the longer side, those between patches to the largest
    possible one.

    Args:
        heat: ``[H, W]`` in [0, 1], such as the mean over the channels of `relevance_heatmap`.
        scales: relative to a longer side of 250 pixels.

    Returns:
        ``[H, W]`` in [0, 1]; zeros for a constant map.

    Raises:
        ValueError: `heat` has another shape, or values that are not in [0, 1].
    """
    if heat.dim() != 2 or min(heat.shape) < 1:
        raise ValueError(f"`heat` must be [H, W], got shape {list(heat.shape)}")
    if not (heat.min() >= 0 and heat.max() <= 1):
        raise ValueError(f"`heat` must be in [0, 1], got {float(heat.min())} to {float(heat.max())}")
    if heat.min() == heat.max():
        return torch.zeros_like(heat)
    heat = heat - heat.mean()  # which makes the differences of similar patches more exact
    factor = SIDE / max(heat.shape)
    total = torch.zeros_like(heat)
    for scale in scales:
        patches, positions, grid = _patches(heat, factor * scale)
        others = [_patches(heat, factor * scale * part)[:2] for part in (1.0, 0.5, 0.25)]
        found = _uniqueness(patches, positions, *(torch.cat(parts) for parts in zip(*others, strict=True)))
        total += _resized(found.view(grid), tuple(heat.shape))
    low, high = total.min(), total.max()
    saliency = (total - low) / (high - low).clamp(min=1e-6)
    return saliency * (1 - _distance_to_foci(saliency))


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values[None, None], size, mode="bilinear", align_corners=False, antialias=True)[0, 0]


def _patches(heat: Tensor, factor: float) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return patches ``[N, 49]`` of a resized map, their centers in [0, 1] of its longer side, and their grid."""
    height, width = (max(PATCH, round(side * factor)) for side in heat.shape)
    resized = _resized(heat, (height, width))
    found = resized.unfold(0, PATCH, STEP).unfold(1, PATCH, STEP)
    rows, columns = found.shape[:2]
    y = (torch.arange(rows, device=heat.device) * STEP + PATCH / 2) / max(height, width)
    x = (torch.arange(columns, device=heat.device) * STEP + PATCH / 2) / max(height, width)
    return found.flatten(2).flatten(0, 1), torch.cartesian_prod(y, x), (rows, columns)


def _uniqueness(patches: Tensor, positions: Tensor, others: Tensor, places: Tensor) -> Tensor:
    """Return 1 - exp(-mean of the distances to the most similar patches), ``[N]``."""
    count = min(NEIGHBORS, len(others))
    found = []
    for start in range(0, len(patches), CHUNK):
        rows = slice(start, start + CHUNK)
        value = torch.cdist(patches[rows], others) / PATCH  # the largest distance of values in [0, 1] is 7
        distance = value / (1 + POSITION_WEIGHT * torch.cdist(positions[rows], places))
        found.append(1 - torch.exp(-distance.topk(count, largest=False).values.mean(1)))
    return torch.cat(found)


def _distance_to_foci(saliency: Tensor) -> Tensor:
    """Return the distance of each position to the nearest focus, relative to the longer side, ``[H, W]``."""
    import cv2

    others = (saliency <= FOCUS).to(torch.uint8).cpu().numpy()
    distance = cv2.distanceTransform(others, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(distance).to(saliency) / max(saliency.shape)
