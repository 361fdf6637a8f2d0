"""Search for strides that need no masks and for the best tile shapes, with the model of `simulator.simulate`.

The axes of a map are independent, so each choice is counted once per axis.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from visionattn.kernels.simulator.simulate import (
    AxisCounts,
    Simulation,
    Tiling,
    axis_counts,
    integers,
    make_pattern,
    simulate,
)

__all__ = ["StrideSearch", "search_strides", "search_tiles"]


@dataclass(frozen=True)
class StrideSearch:
    """Result of a search over strides for one pattern and tiling.

    Attributes:
        block_sparse: per axis, all strides for which the axis needs no mask, in ascending order; may be empty.
        best: per axis, the stride that visits the fewest key tiles; ties are broken by the most full tiles, then by the
            smallest stride.
    """

    block_sparse: tuple[tuple[int, ...], ...]
    best: tuple[int, ...]

    @property
    def smallest(self) -> tuple[int, ...] | None:
        """The smallest stride per axis that makes the case fully block-sparse, or None if there is none."""
        return tuple(axis[0] for axis in self.block_sparse) if all(self.block_sparse) else None


def search_strides(
    shape: int | Sequence[int],
    window: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    *,
    q_tile: int | Sequence[int],
    kv_tile: int | Sequence[int],
    dynamic: bool = False,
) -> StrideSearch:
    """Search all strides on every axis for those that make the case fully block-sparse or visit the fewest tiles.

    Axes are independent, so any combination of ``block_sparse`` strides is fully block-sparse. Arguments and errors are
    those of `simulate`.
    """
    base = simulate(shape, window, 1, dilation, causal, q_tile=q_tile, kv_tile=kv_tile, dynamic=dynamic)
    found, best = [], []
    for (length, k, _, d, c), tq, tk in zip(base.pattern.axes, base.tiling.query, base.tiling.key, strict=True):
        strides, ranks = [], []
        for s in range(1, k + 1):
            counts = axis_counts(length, k, s, d, c, tq, tk, base.tiling.dynamic)
            ranks.append((counts.visited, -counts.full, s))
            if counts.visited == counts.full:
                strides.append(s)
        found.append(tuple(strides))
        best.append(min(ranks)[-1])
    return StrideSearch(tuple(found), tuple(best))


def _factorizations(size: int, rank: int) -> Iterator[tuple[int, ...]]:
    if rank == 1:
        yield (size,)
        return
    for first in range(1, size + 1):
        if size % first == 0:
            yield from ((first, *rest) for rest in _factorizations(size // first, rank - 1))


def search_tiles(
    shape: int | Sequence[int],
    window: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    *,
    q_sizes: int | Sequence[int] = (64, 128, 256),
    kv_sizes: int | Sequence[int] = (64, 128),
    dynamic: bool = False,
) -> tuple[Simulation, ...]:
    """Search the tile shapes with the highest bound on the speed-up, for each pair of tile sizes of a kernel.

    Args:
        q_sizes: sizes of a query tile to try, each the product over the axes.
        kv_sizes: sizes of a key tile to try.

    Other arguments and errors are those of `simulate`.

    Returns:
        One result per pair of sizes, ``q_sizes`` outermost: the shapes that visit the fewest tiles, which have the
        highest bound relative to dense attention on the flattened map. Ties are broken by the most full tiles, then by
        the shape closest to a cube. Results of different sizes are not comparable: smaller tiles match a pattern more
        closely, larger ones run closer to the peak of the hardware.
    """
    pattern = make_pattern(shape, window, stride, dilation, causal)
    rank = len(pattern.shape)
    known: dict[tuple[int, int, int], AxisCounts] = {}

    def counts(axis: int, tq: int, tk: int) -> AxisCounts:
        if (axis, tq, tk) not in known:
            known[axis, tq, tk] = axis_counts(*pattern.axes[axis], tq, tk, dynamic)
        return known[axis, tq, tk]

    def order(case: Simulation) -> tuple:
        cube = (max(case.tiling.query) / min(case.tiling.query), max(case.tiling.key) / min(case.tiling.key))
        return case.visited_tiles, -case.full_tiles, sum(cube), case.tiling.query, case.tiling.key

    results = []
    for q_size, kv_size in product(integers("q_sizes", q_sizes), integers("kv_sizes", kv_sizes)):
        shapes = product(_factorizations(q_size, rank), _factorizations(kv_size, rank))
        cases = (
            Simulation(
                pattern,
                Tiling(query, key, bool(dynamic)),
                tuple(counts(axis, query[axis], key[axis]) for axis in range(rank)),
            )
            for query, key in shapes
        )
        results.append(min(cases, key=order))
    return tuple(results)
