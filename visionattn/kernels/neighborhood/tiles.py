"""Tile shapes of the PyTorch backend, selected by an estimate of the time.

Constants are in nanoseconds on two AVX-512 cores, fitted to timings of complete calls; only their ratios matter.
"""

import itertools
from functools import lru_cache
from math import prod

from visionattn.kernels.neighborhood.geometry import axis_tiles

__all__ = ["choose_tile", "dense_is_better"]

TILE_SCORES = 1 << 20  # maximum per tile
TILE = 250.0  # per tile: its share of the overhead of the batched products
SCORE = 0.55  # per query-key pair: mask, exponential, normalization
MULTIPLY = 0.011  # per multiply-add of the products
ROW = 0.15  # per gathered number
CALL = 100_000.0  # per call of the tiled path: overhead of its operators
DENSE = 1.2  # per score of dense attention over the whole map, relative to the tiled path
DENSE_CALL = 40_000.0
FUSED = 1.3  # per score of PyTorch's fused attention, relative to the tiled path
FUSED_CALL = 15_000.0
FUSED_QUERIES = 192  # with fewer queries PyTorch's fused attention uses smaller blocks
SHORT = 1.7
BIAS = 1.0  # per entry of the bias of a pattern
CANDIDATES = {1: (8, 16, 32, 64, 128, 256), 2: (2, 3, 4, 5, 6, 7, 8, 10, 12, 14), 3: (1, 2, 3, 4, 6, 8)}


def _candidates(length: int, stride: int, dilation: int, rank: int) -> list[int]:
    """Tile lengths to consider: multiples of the stride, and ones that divide a dilation group almost evenly."""
    n = -(-length // dilation)
    tiles = {n}
    for tile in CANDIDATES[rank]:
        even = -(-n // -(-n // min(tile, n)))
        tiles |= {min(-(-t // stride) * stride, n) for t in (tile, even)}
    return sorted(tiles)


@lru_cache(maxsize=1024)
def choose_tile(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    causal: tuple[bool, ...],
    copies: int,
    dim: int,
    bias: bool,
) -> tuple[tuple[int, ...], float]:
    """Select the queries per tile on each axis; a tile as long as an axis makes the attention dense along it.

    Args:
        copies: batch times heads.
        dim: head dimension.
        bias: whether each pattern and head has a separate bias.

    Returns:
        The tile and its estimated time.
    """
    axes = []
    for axis in zip(shape, kernel, stride, dilation, causal, strict=True):
        axes.append([axis_tiles(*axis, tile) for tile in _candidates(axis[0], axis[2], axis[3], len(shape))])
    best, best_cost = None, float("inf")
    for cuts in itertools.product(*axes):
        queries, keys, count = prod(c.tile for c in cuts), prod(c.halo for c in cuts), prod(c.count for c in cuts)
        if best is not None and queries * keys > TILE_SCORES:
            continue
        cost = TILE + queries * keys * (SCORE + 2 * dim * MULTIPLY) + 2 * (queries + keys) * dim * ROW
        cost *= count * copies
        cost += queries * keys * prod(len(c.patterns) for c in cuts) * (copies * BIAS if bias else 0.1 * BIAS)
        if cost < best_cost:
            best, best_cost = tuple(c.tile for c in cuts), cost
    return best, best_cost + CALL


@lru_cache(maxsize=1024)
def dense_is_better(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
    batch: int,
    heads: int,
    dim: int,
    bias: bool,
) -> bool:
    """Return True if dense attention over the whole map is estimated to be faster than tiles. No dilation."""
    scores = prod(shape) ** 2
    if not batch or scores > TILE_SCORES:
        return False
    once = (1,) * len(shape)
    _, tiled = choose_tile(shape, kernel, stride, once, causal, batch * heads, dim, bias)
    cost = scores * batch * heads * (SCORE + 2 * dim * MULTIPLY)
    if batch == 1:
        cost = cost * DENSE + DENSE_CALL
    else:
        cost = (cost * FUSED + FUSED_CALL) * (SHORT if prod(shape) < FUSED_QUERIES else 1.0)
    return cost + (scores * heads * BIAS if bias else 0.0) < tiled
