"""The choice of the portable backend's query tile, by a cost rule."""

import itertools
from functools import lru_cache
from math import prod

from visionattn.kernels.neighborhood.geometry import axis_runs

__all__ = ["choose_tiles"]

# Costs in nanoseconds on one AVX-512 core pair (measured by benchmarks/na_cpu.py --fit); only their ratios matter.
CALL = 60_000.0  # one group of alike tiles: its views, copies and kernel call
SCORE = 0.5  # one query-key pair: exponential and mask
MULTIPLY = 0.012  # one multiply-add of the two products
COPY = 0.3  # one element of a query, key, value or output tile
TILES = (4, 5, 6, 7, 8, 10, 12, 14, 16, 32, 64, 128)
MAX_SCORES = 1 << 20  # entries of one tile's scores, and so of its cached mask


@lru_cache(maxsize=1024)
def choose_tiles(
    lengths: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    causal: tuple[bool, ...],
    copies: int,
    width: int,
) -> tuple[int, ...]:
    """The tile shape with the least estimated time; a tile as long as the axis makes the attention dense there.

    Args:
        lengths: positions of each axis inside one dilation group.
        copies: how many such maps there are: batch times heads times dilation groups.
        width: head dimension.
    """
    candidates = []
    for n, s in zip(lengths, stride, strict=True):
        multiples = {min(-(-tile // s) * s, n) for tile in TILES if tile < n} | {n}
        even = {min(-(-(-(-n // -(-n // tile))) // s) * s, n) for tile in multiples}  # no short last tile
        candidates.append(sorted(multiples | even))
    best, best_cost = None, float("inf")
    for tiles in itertools.product(*candidates):
        axes = [
            axis_runs(*axis) for axis in zip(lengths, kernel, stride, causal, tiles, strict=True)
        ]
        cost, scores = 0.0, 0
        for runs in itertools.product(*axes):
            queries, keys = prod(run.tile for run in runs), prod(run.halo for run in runs)
            scores = max(scores, queries * keys)
            count = copies * prod(run.count for run in runs)
            cost += CALL + count * (
                queries * keys * (SCORE + 2 * width * MULTIPLY) + 2 * (queries + keys) * width * COPY
            )
        if cost < best_cost and (scores <= MAX_SCORES or best is None):
            best, best_cost = tiles, cost
    return best
