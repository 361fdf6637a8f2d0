"""Attention over distance: mean distance, shares of the rings around a query, and shares of relative positions."""

import torch
from torch import Tensor

from visionattn.inference.explain.attention import AttentionCall

__all__ = ["mean_distance", "offset_shares", "ring_shares", "spread_places"]


def spread_places(grid: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """Return ``side * side`` (row, column) positions, spaced evenly on a map; small maps repeat positions."""
    rows, columns = grid
    return [(int((i + 0.5) * rows / side), int((j + 0.5) * columns / side)) for i in range(side) for j in range(side)]


def mean_distance(call: AttentionCall, image_size: tuple[int, int], queries: int = 16) -> Tensor:
    """Return the mean attention distance of each head (ViT, arXiv 2010.11929, appendix D.7).

    Args:
        call: an attention call.
        image_size: (height, width) of the input image in pixels.
        queries: approximate number of queries to average over, spaced evenly on the map.

    Returns:
        Distances in pixels of the input image, ``[heads]``.
    """
    places = spread_places(call.grid, max(1, round(queries**0.5)))
    weights = call.maps(places).float().cpu()
    y, x = _offsets(call.grid, places)
    pixels = torch.tensor(image_size) / torch.tensor(call.grid)
    far = ((y * pixels[0]) ** 2 + (x * pixels[1]) ** 2).sqrt()[:, None]
    return ((weights * far).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1e-9)).mean(0)


def ring_shares(weights: Tensor, places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return the distribution of attention over the rings around the queries.

    Ring k holds the patches at a Chebyshev distance of k from the query: ring 0 is the query itself, ring 1 its eight
    neighbors. Weights of other tokens, such as the class token, are left out, so that the shares sum to 1.

    Args:
        weights: ``[queries, heads, rows, columns]``, see `AttentionCall.maps`.
        places: (row, column) of each query.

    Returns:
        The share of each ring, ``[heads, rings]`` with max(rows, columns) rings, and the mean share of a patch of the
        ring (0 for rings that no query has).
    """
    grid = tuple(weights.shape[2:])
    y, x = _offsets(grid, places)
    ring = torch.maximum(y.abs(), x.abs()).long()
    rings = torch.arange(max(grid))
    shares = _normalized(weights)
    inside = (ring[:, None] == rings[:, None, None]).flatten(2).to(shares)  # [queries, rings, patches]
    share = torch.einsum("qhp,qrp->hr", shares.flatten(2), inside)
    return share / len(places), share / inside.sum((0, 2)).clamp(min=1)


def offset_shares(weights: Tensor, places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return the distribution of attention over the positions of the keys relative to their queries.

    Args:
        weights: ``[queries, heads, rows, columns]``.
        places: (row, column) of each query.

    Returns:
        The share of each position, ``[heads, 2 * rows - 1, 2 * columns - 1]`` with the query in the center, which sums
        to 1 for each head; and the mean share of a patch at the position (0 if no query has it), of the same shape.
    """
    rows, columns = weights.shape[2:]
    total = torch.zeros(weights.shape[1], 2 * rows - 1, 2 * columns - 1)
    count = torch.zeros(2 * rows - 1, 2 * columns - 1)
    for shares, (row, column) in zip(_normalized(weights), places, strict=True):
        part = (..., slice(rows - 1 - row, 2 * rows - 1 - row), slice(columns - 1 - column, 2 * columns - 1 - column))
        total[part] += shares
        count[part] += 1
    return total / len(places), total / count.clamp(min=1)


def _offsets(grid: tuple[int, int], places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Return the vertical and horizontal distance of each patch from each query, ``[queries, rows, columns]``."""
    row, column = (torch.tensor([place[axis] for place in places]).view(-1, 1, 1) for axis in (0, 1))
    y = (torch.arange(grid[0]).view(1, -1, 1) - row).expand(-1, -1, grid[1]).float()
    x = (torch.arange(grid[1]).view(1, 1, -1) - column).expand(-1, grid[0], -1).float()
    return y, x


def _normalized(weights: Tensor) -> Tensor:
    weights = weights.float().cpu()
    return weights / weights.sum((2, 3), keepdim=True).clamp(min=1e-9)
