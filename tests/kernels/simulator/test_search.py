"""The searches find what trying every combination finds."""

import itertools
import math
import random

import pytest

from visionattn.kernels.simulator.search import search_strides, search_tiles
from visionattn.kernels.simulator.simulate import simulate


def test_smallest_strides_of_the_paper():
    hopper = search_strides(32768, 2048, q_tile=128, kv_tile=128)
    assert hopper.block_sparse == (tuple(range(256, 2049, 256)),)
    assert hopper.smallest == hopper.best == (256,)
    assert search_strides(32768, 2048, q_tile=256, kv_tile=128).smallest == (256,)
    assert search_strides((256, 256), 80, q_tile=16, kv_tile=(16, 8)).smallest == (16, 16)
    assert search_strides((30, 48, 80), (18, 24, 24), q_tile=(4, 8, 8), kv_tile=(2, 8, 8)).smallest == (16, 8, 8)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_every_combination_of_strides(seed, dynamic):
    rng = random.Random(seed)
    shape = tuple(rng.randint(4, 16) for _ in range(2))
    dilation = tuple(rng.choice((1, 1, 2)) for _ in shape)
    window = tuple(min(rng.choice((2, 4, 4, 5, 8)), n // d) for n, d in zip(shape, dilation, strict=True))
    causal = tuple(rng.random() < 0.2 for _ in shape)
    tiles = {"q_tile": rng.choice((1, 2, 4)), "kv_tile": rng.choice((1, 2, 4)), "dynamic": dynamic}
    search = search_strides(shape, window, dilation, causal, **tiles)
    combinations = list(itertools.product(*(range(1, k + 1) for k in window)))
    cases = {stride: simulate(shape, window, stride, dilation, causal, **tiles) for stride in combinations}
    block_sparse = [stride for stride, case in cases.items() if case.fully_block_sparse]
    assert block_sparse == list(itertools.product(*search.block_sparse))
    assert search.smallest == min(block_sparse, default=None)
    best = cases[search.best]
    assert best.visited_tiles == min(case.visited_tiles for case in cases.values())
    assert best.full_tiles == max(c.full_tiles for c in cases.values() if c.visited_tiles == best.visited_tiles)


def test_no_stride_helps_a_window_that_tiles_do_not_divide():
    search = search_strides((64, 64), (12, 16), q_tile=8, kv_tile=8)
    assert search.block_sparse[0] == ()
    assert search.block_sparse[1]
    assert search.smallest is None


def shapes(size: int, rank: int) -> list[tuple[int, ...]]:
    return [tile for tile in itertools.product(range(1, size + 1), repeat=rank) if math.prod(tile) == size]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("shape", "window", "stride", "dilation", "causal"),
    [
        ((20, 36), (7, 7), (1, 1), (1, 1), False),
        ((32, 32), (8, 16), (8, 4), (1, 1), False),
        ((15, 22), (5, 3), (2, 1), (3, 1), (False, True)),
        ((6, 8, 10), (3, 4, 4), (1, 2, 4), (1, 1, 2), False),
    ],
)
def test_every_shape_of_a_tile(shape, window, stride, dilation, causal, dynamic):
    found = search_tiles(shape, window, stride, dilation, causal, q_sizes=(8, 12), kv_sizes=8, dynamic=dynamic)
    sizes = [(math.prod(case.tiling.query), math.prod(case.tiling.key)) for case in found]
    assert sizes == [(8, 8), (12, 8)]
    for case, (q_size, kv_size) in zip(found, sizes, strict=True):
        tried = [
            simulate(shape, window, stride, dilation, causal, q_tile=q, kv_tile=k, dynamic=dynamic)
            for q in shapes(q_size, len(shape))
            for k in shapes(kv_size, len(shape))
        ]
        assert case in tried
        assert case.flat_speedup_bound == max(other.flat_speedup_bound for other in tried)


def test_tiles_of_equal_work_prefer_cubes():
    (case,) = search_tiles((64, 64), (16, 16), 16, q_sizes=64, kv_sizes=64)
    assert case.tiling.query == case.tiling.key == (8, 8)
    assert case.fully_block_sparse


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="`q_sizes` must be at least 1"):
        search_tiles((8, 8), 3, q_sizes=0)
    with pytest.raises(ValueError, match="`window`"):
        search_strides((8, 8), 9, q_tile=4, kv_tile=4)
