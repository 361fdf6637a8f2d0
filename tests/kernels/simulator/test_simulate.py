"""The model counts what the definition's mask has: every tile of every small case, and the table of known figures."""

import doctest
import itertools
import random

import numpy as np
import pytest

from visionattn.kernels.simulator import simulate as module
from visionattn.kernels.simulator.simulate import FULL, PARTIAL, axis_tiles, simulate, tile_map

# shape, window, stride, query tile, key tile: dense tiles, visited tiles, bound, bound with dynamic tiles, FLOP bound
KNOWN = [
    (32768, 2048, 1, 128, 128, 65536, 4336, 15.11, None, 16, False),
    (32768, 2048, 256, 128, 128, 65536, 4096, 16.0, None, 16, True),
    (32768, 2048, 2048, 128, 128, 65536, 4096, 16.0, None, 16, True),
    (32768, 2048, 1, 256, 128, 32768, 2288, 14.32, None, 16, False),
    ((256, 256), 80, 1, (16, 8), (16, 8), 262144, 34884, 7.515, None, 10.24, False),
    ((256, 256), 80, 16, (16, 8), (16, 8), 262144, 25600, 10.24, None, 10.24, True),
    ((256, 256), 80, 1, (16, 16), (16, 8), 131072, 18564, 7.061, None, 10.24, False),
    ((256, 256), 80, 16, (16, 16), (16, 8), 131072, 12800, 10.24, None, 10.24, True),
    ((30, 48, 80), (18, 24, 24), 1, (2, 8, 8), (2, 8, 8), 810000, 148896, 5.440, 6.872, 11.11, False),
    ((30, 48, 80), (18, 24, 24), (16, 8, 8), (2, 8, 8), (2, 8, 8), 810000, 72900, 11.11, None, 11.11, True),
    ((30, 48, 80), (18, 24, 24), 1, (4, 8, 8), (2, 8, 8), 432000, 82368, 5.245, 6.625, 11.11, False),
    ((30, 48, 80), (18, 24, 24), (16, 8, 8), (4, 8, 8), (2, 8, 8), 432000, 38880, 11.11, None, 11.11, True),
]


@pytest.mark.parametrize("row", KNOWN)
def test_known_figures(row):
    shape, window, stride, q_tile, kv_tile, dense, visited, bound, dynamic_bound, flop_bound, block_sparse = row
    case = simulate(shape, window, stride, q_tile=q_tile, kv_tile=kv_tile)
    assert (case.dense_tiles, case.visited_tiles) == (dense, visited)
    assert case.speedup_bound == pytest.approx(bound, abs=0.005)
    assert case.flop_bound == pytest.approx(flop_bound, abs=0.005)
    assert case.fully_block_sparse is block_sparse
    if dynamic_bound is not None:
        dynamic = simulate(shape, window, stride, q_tile=q_tile, kv_tile=kv_tile, dynamic=True)
        assert dynamic.speedup_bound == pytest.approx(dynamic_bound, abs=0.0005)


def draw(rng: random.Random, longest: tuple[int, ...] = (26, 9, 5)) -> dict:
    """Arguments of a random small case."""
    rank = rng.choice((1, 1, 2, 2, 3))
    case = {"shape": [], "window": [], "stride": [], "dilation": [], "causal": [], "q_tile": [], "kv_tile": []}
    for _ in range(rank):
        length = rng.randint(2, longest[rank - 1])
        dilation = rng.choice((1, 1, rng.randint(1, length)))
        window = rng.randint(1, length // dilation)
        case["shape"].append(length)
        case["dilation"].append(dilation)
        case["window"].append(window)
        case["stride"].append(rng.choice((1, window, rng.randint(1, window))))
        case["causal"].append(rng.random() < 0.3)
        case["q_tile"].append(rng.choice((1, 2, 3, 4, 8)))
        case["kv_tile"].append(rng.choice((1, 2, 3, 4, 8)))
    return {name: tuple(values) for name, values in case.items()}


def attended(length: int, window: int, stride: int, dilation: int, causal: bool) -> list[set[int]]:
    """The positions that each position of an axis attends to."""
    table = []
    for position in range(length):
        group = range(position % dilation, length, dilation)  # positions congruent to it
        place = group.index(position)
        block = place // stride * stride
        if causal:
            leader = min(block + stride, len(group)) - 1
            inside = group[max(0, leader - window + 1) : place + 1]
        else:
            leader = min(block + stride // 2, len(group) - 1)
            start = min(max(leader - window // 2, 0), len(group) - window)
            inside = group[start : start + window]
        table.append(set(inside))
    return table


def brute_force(case: dict, dynamic: bool) -> tuple[dict, int]:
    """State of each (query tile, key tile) pair, by the mask of all positions; and the pairs that it holds.

    A tile is named by (dilation group, index) for each axis.
    """
    shape, dilation = case["shape"], case["dilation"]
    names = ("shape", "window", "stride", "dilation", "causal")
    mask = np.ones((1, 1), bool)
    for axis in zip(*(case[name] for name in names), strict=True):
        mask = np.kron(mask, [[key in row for key in range(axis[0])] for row in attended(*axis)])
    places = [
        tuple((x % d, x // d) for x, d in zip(position, dilation, strict=True))
        for position in itertools.product(*map(range, shape))
    ]

    def tile_of(place: tuple, tile: tuple, origin: tuple) -> tuple:
        return tuple((g, (p - o) // t) for (g, p), t, o in zip(place, tile, origin, strict=True))

    queries: dict = {}
    for row, place in enumerate(places):
        queries.setdefault(tile_of(place, case["q_tile"], (0,) * len(shape)), []).append(row)
    states = {}
    for query_tile, rows in queries.items():
        needed = np.flatnonzero(mask[rows].any(axis=0))
        origin = tuple(
            min(places[column][axis][1] for column in needed) if dynamic else 0 for axis in range(len(shape))
        )
        keys: dict = {}
        for column, place in enumerate(places):
            keys.setdefault(tile_of(place, case["kv_tile"], origin), []).append(column)
        for key_tile, columns in keys.items():
            part = mask[np.ix_(rows, columns)]
            if part.any():
                whole = part.all() and len(columns) == np.prod(case["kv_tile"])
                states[query_tile, key_tile] = FULL if whole else PARTIAL
    return states, int(mask.sum())


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("seed", range(120))
def test_counts_match_the_mask(seed, dynamic):
    case = draw(random.Random(seed))
    states, pairs = brute_force(case, dynamic)
    result = simulate(**case, dynamic=dynamic)
    found = list(states.values())
    assert result.visited_tiles == len(found)
    assert result.full_tiles == found.count(FULL)
    assert result.partial_tiles == found.count(PARTIAL)
    assert result.attended_pairs == pairs
    assert result.fully_block_sparse is (PARTIAL not in found)
    assert result.query_tiles == len({query_tile for query_tile, _ in states})


@pytest.mark.parametrize("seed", range(40))
def test_map_matches_the_mask(seed):
    case = draw(random.Random(1000 + seed))
    states, _ = brute_force(case, dynamic=False)

    def tiles(sizes: tuple[int, ...]) -> list[tuple]:
        axes = []
        for length, d, size in zip(case["shape"], case["dilation"], sizes, strict=True):
            groups = [(g, len(range(g, length, d))) for g in range(d)]
            axes.append([(g, i) for g, n in groups for i in range(-(-n // size))])
        return list(itertools.product(*axes))

    expected = [[states.get((q, k), 0) for k in tiles(case["kv_tile"])] for q in tiles(case["q_tile"])]
    found = tile_map(simulate(**case))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_axis_tiles_match_the_definition(seed, dynamic):
    case = draw(random.Random(2000 + seed))
    result = simulate(**case, dynamic=dynamic)
    for axis, (length, window, stride, dilation, causal) in enumerate(result.pattern.axes):
        keys = [{j // dilation for j in row} for row in attended(length, window, stride, dilation, causal)]
        tiles = axis_tiles(result, axis)
        for i, (group, first) in enumerate(zip(tiles.group, tiles.query, strict=True)):
            rows = [keys[x] for x in range(group + first * dilation, length, dilation)][: case["q_tile"][axis]]
            assert set(range(tiles.start[i], tiles.end[i])) == set.union(*rows)
            assert set(range(tiles.shared_start[i], tiles.shared_end[i])) == set.intersection(*rows)
            assert tiles.origin[i] == (tiles.start[i] if dynamic else 0)
            assert tiles.offset[i] == sum(len(range(g, length, dilation)) for g in range(group))


def test_whole_map_as_window_is_dense_attention():
    case = simulate((32, 16), (32, 16), q_tile=(8, 4), kv_tile=(4, 8))
    assert case.speedup_bound == case.flop_bound == case.density == case.achievable_speedup() == 1
    assert case.visited_tiles == case.dense_tiles == case.full_tiles


def test_dilation_does_not_change_dense_attention():
    plain = simulate(60, 5, q_tile=8, kv_tile=8)
    dilated = simulate(60, 5, dilation=7, q_tile=8, kv_tile=8)
    assert dilated.dense_tiles == plain.dense_tiles == 64
    assert dilated.query_tiles == 11  # four groups of nine queries in two tiles each, three groups of eight in one


def test_ragged_tiles_waste_positions_of_the_map():
    case = simulate((9, 9), (9, 9), q_tile=(8, 8), kv_tile=(8, 8))
    assert (case.dense_tiles, case.flat_dense_tiles, case.visited_tiles, case.full_tiles) == (16, 4, 16, 4)
    assert case.speedup_bound == 1
    assert case.flat_speedup_bound == 0.25


def test_achievable_speedup_charges_masked_tiles():
    case = simulate(32768, 2048, q_tile=128, kv_tile=128)
    assert case.partial_tiles == 480  # two at the ends of each window, but for those that end at the border
    assert case.achievable_speedup(0) == case.speedup_bound
    assert case.achievable_speedup(1) == 65536 / (4336 + 480)
    assert case.achievable_speedup(1, mask_all=True) == 65536 / (2 * 4336)
    strided = simulate(32768, 2048, 256, q_tile=128, kv_tile=128)
    assert strided.achievable_speedup(1, mask_all=True) == strided.speedup_bound == 16


def test_counts_do_not_overflow():
    case = simulate((4096, 4096, 4096), 1024, 512, q_tile=(8, 8, 8), kv_tile=(4, 4, 4))
    assert case.attended_pairs == 4096**3 * 1024**3  # above the range of 64-bit integers
    assert case.dense_tiles == (512 * 1024) ** 3
    assert case.fully_block_sparse
    assert case.speedup_bound == case.flop_bound == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": ()}, r"`shape` must have 1, 2 or 3 axes, got \(\)"),
        ({"shape": (8, 8, 8, 8)}, "`shape` must have 1, 2 or 3 axes"),
        ({"shape": (0, 8)}, r"`shape` must be at least 1 on every axis, got \(0, 8\)"),
        ({"shape": (8.0, 8)}, "`shape` must contain only integers"),
        (
            {"window": (3, 3, 3)},
            r"`window` must have one entry or one for each of the 2 axes .* got \(3, 3, 3\)",
        ),
        ({"window": 9}, r"`window` must be at most the length of axis 0, 8, got window=\(9, 9\)"),
        ({"dilation": (1, 5)}, "`window` times dilation 5 must be at most the length of axis 1, 12"),
        ({"dilation": 0}, "`dilation` must be at least 1 on every axis, got 0"),
        ({"stride": (1, 4)}, r"`stride` must be at most `window` \(3, 3\) on axis 1, got \(1, 4\)"),
        ({"causal": 1}, "`causal` must contain only booleans, got 1"),
        ({"causal": (True, False, True)}, "`causal` must have one entry or one for each of the 2 axes"),
        ({"q_tile": "64"}, "`q_tile` must contain only integers, got '64'"),
        ({"kv_tile": (4, True)}, "`kv_tile` must contain only integers"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"shape": (8, 12), "window": 3, "q_tile": 4, "kv_tile": 4} | change
    with pytest.raises(ValueError, match=message) as caught:
        simulate(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overhead", [-0.1, float("nan"), float("inf")])
def test_mask_overhead_must_be_a_cost(overhead):
    with pytest.raises(ValueError, match="`mask_overhead`"):
        simulate(8, 3, q_tile=4, kv_tile=4).achievable_speedup(overhead)


def test_dynamic_tiles_have_no_map():
    with pytest.raises(ValueError, match="`dynamic` must be False"):
        tile_map(simulate(8, 3, q_tile=4, kv_tile=4, dynamic=True))


def test_example_in_the_documentation():
    assert doctest.testmod(module).failed == 0
