"""Tiles of an axis: they hold every query once and the keys its window needs."""

import pytest

from visionattn.kernels.neighborhood.geometry import axis_groups, axis_runs, axis_windows
from visionattn.kernels.neighborhood.tiles import choose_tiles


@pytest.mark.parametrize(("length", "dilation"), [(10, 3), (10, 1), (7, 7), (56, 8), (13, 5)])
def test_groups_hold_every_position_once(length, dilation):
    positions = [
        group.first + g + p * dilation
        for group in axis_groups(length, dilation)
        for g in range(group.count)
        for p in range(group.length)
    ]
    assert sorted(positions) == list(range(length))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("n", "kernel", "stride"), [(56, 7, 1), (23, 6, 1), (31, 8, 3), (16, 4, 4), (7, 7, 1)])
@pytest.mark.parametrize("tile", [1, 4, 7, 8, 100])
def test_runs_cover_queries_and_windows(n, kernel, stride, causal, tile):
    windows, seen = axis_windows(n, kernel, stride, causal), []
    for run in axis_runs(n, kernel, stride, causal, min(tile, n)):
        for i in range(run.count):
            first_key = run.key + i * run.step
            assert first_key + run.halo <= n
            for t, (start, end) in enumerate(run.windows):
                query = run.query + i * run.step + t
                seen.append(query)
                assert windows[query] == (first_key + start, first_key + end)
    assert sorted(seen) == list(range(n))


def test_interior_tiles_are_one_run():
    assert [run.count for run in axis_runs(800, 7, 1, False, 8)] == [1, 98, 1]


def test_small_maps_are_one_dense_tile():
    assert choose_tiles((7, 7), (7, 7), (1, 1), (False, False), 8, 32) == (7, 7)


def test_tiles_of_large_maps_stay_small():
    tiles = choose_tiles((200, 336), (7, 7), (1, 1), (False, False), 2, 32)
    assert all(4 <= tile <= 32 for tile in tiles)
