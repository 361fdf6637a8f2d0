"""How the portable backend cuts a map: the tile shape with the least estimated time.

Constants are nanoseconds on two AVX-512 cores, fitted to timings of single tiles; only their ratios matter.
"""

import itertools
from functools import lru_cache
from math import prod

from visionattn.kernels.neighborhood.geometry import AxisPlan, axis_plan, axis_runs

__all__ = ["MASK_ENTRIES", "choose_strips", "choose_tiles"]

MASK_ENTRIES = 1 << 21  # of a mask that holds every tile separately
TILE_ENTRIES = 1 << 20  # of one tile's scores
CALL = 45_000.0  # one attention call: its views and the copies of its results
FIXED = 90_000.0  # padding, strips and their copies, whatever the size
TILE = 700.0  # one tile inside a call
SCORE = 0.6  # one query-key pair: exponential, mask
MULTIPLY = 0.009  # one multiply-add of the products
COPY = 0.15  # one element copied
BACKWARD = 4.0  # products, exponentials and passes over the scores of backward, relative to forward
BACKWARD_CALL = 250_000.0
CANDIDATES = {1: (8, 16, 32, 64, 128, 256), 2: (2, 3, 4, 5, 6, 7, 8, 10, 14, 16), 3: (2, 4, 6, 8)}


def _candidates(lengths: tuple[int, ...], stride: tuple[int, ...]):
    """Tile shapes to consider: multiples of the stride, and ones that divide the axis almost evenly."""
    axes = []
    for n, s in zip(lengths, stride, strict=True):
        tiles = set()
        for tile in CANDIDATES[len(lengths)]:
            even = -(-n // -(-n // min(tile, n)))
            tiles |= {min(-(-t // s) * s, n) for t in (tile, even)}
        axes.append(sorted(tiles | {n}))
    return itertools.product(*axes)


@lru_cache(maxsize=1024)
def choose_strips(
    lengths: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
    copies: int,
    heads: int,
    dim: int,
    bias: bool,
) -> tuple[AxisPlan, ...]:
    """The cut of each axis for the forward pass; a tile as long as the axis makes the attention dense there.

    Args:
        lengths: positions of each axis inside one dilation group.
        copies: how many such maps there are for each head: batch times dilation groups.
        heads: query heads; with a bias they are separate calls.
        dim: head dimension.
    """
    best, best_cost = None, float("inf")
    for tiles in _candidates(lengths, stride):
        plans = tuple(axis_plan(*axis) for axis in zip(lengths, kernel, stride, causal, tiles, strict=True))
        queries, keys = prod(p.tile for p in plans), prod(p.halo for p in plans)
        count = copies * heads * prod(p.count for p in plans)
        cost = count * (TILE + queries * keys * (SCORE + 2 * dim * MULTIPLY)) + CALL
        cost += 2 * copies * heads * prod(lengths) * dim * COPY
        if any(p.count > 1 for p in plans):
            padded = prod(p.keys for p in plans)
            strips = plans[0].keys * prod(p.count * p.halo for p in plans[1:])
            cost += FIXED + 2 * copies * heads * dim * COPY * (padded + strips)
            if bias:
                cost += CALL * (heads * prod(len(p.alike) for p in plans) - 1)
            elif count * queries * keys > MASK_ENTRIES:
                cost += CALL * (prod(len(p.alike) for p in plans) - 1)
        if best is None or (cost < best_cost and queries * keys <= TILE_ENTRIES):
            best, best_cost = plans, cost
    return best


@lru_cache(maxsize=1024)
def choose_tiles(
    lengths: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
    copies: int,
    dim: int,
) -> tuple[int, ...]:
    """The tile shape for the backward pass; ``copies`` counts batch, heads and dilation groups."""
    best, best_cost = None, float("inf")
    for tiles in _candidates(lengths, stride):
        axes = [axis_runs(*axis) for axis in zip(lengths, kernel, stride, causal, tiles, strict=True)]
        cost, pairs = 0.0, 0
        for runs in itertools.product(*axes):
            queries, keys = prod(run.tile for run in runs), prod(run.halo for run in runs)
            pairs = max(pairs, queries * keys)
            count = copies * prod(run.count for run in runs)
            cost += BACKWARD_CALL + count * (
                queries * keys * BACKWARD * (SCORE + 2 * dim * MULTIPLY) + (3 * queries + 8 * keys) * dim * COPY
            )
        if best is None or (cost < best_cost and pairs <= TILE_ENTRIES):
            best, best_cost = tiles, cost
    return best
