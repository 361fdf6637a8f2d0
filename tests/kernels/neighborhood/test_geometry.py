"""Cuts of an axis: every query once, every window inside its halo, no more patterns than there are."""

import numpy as np
import pytest

from visionattn.kernels.neighborhood.geometry import axis_groups, axis_tiles, axis_windows
from visionattn.kernels.neighborhood.tiles import choose_tile, dense_is_better


def test_groups_hold_every_position_once():
    for length in range(1, 30):
        for dilation in range(1, length + 1):
            groups = axis_groups(length, dilation)
            assert sum(group.count for group in groups) == dilation
            assert sum(group.count * group.length for group in groups) == length


CASES = [
    (20, 7, 1, 1, False, 4),
    (23, 7, 1, 1, False, 8),
    (23, 4, 3, 1, False, 6),
    (16, 5, 1, 1, True, 4),
    (30, 3, 1, 7, False, 2),
    (31, 5, 2, 4, True, 3),
    (29, 7, 1, 4, False, 8),
    (7, 7, 1, 1, False, 3),
]


@pytest.mark.parametrize(("length", "kernel", "stride", "dilation", "causal", "tile"), CASES)
def test_tiles_cover_queries_and_their_windows(length, kernel, stride, dilation, causal, tile):
    cut = axis_tiles(length, kernel, stride, dilation, causal, tile)
    queries, keys = cut.positions(cut.query, cut.tile), cut.positions(cut.key, cut.halo)
    assert sorted(queries[cut.filled]) == list(range(length))
    for i in range(cut.count):
        windows = axis_windows(cut.length[i], kernel, stride, causal)
        shift, bounds = cut.patterns[cut.pattern_ids[i], 0], cut.patterns[cut.pattern_ids[i], 1:].reshape(-1, 2)
        assert shift == cut.key[i] - cut.query[i]
        for t in np.flatnonzero(cut.filled[i]):
            start, end = windows[cut.query[i] + t]
            attended = cut.group[i] + dilation * np.arange(start, end)
            np.testing.assert_array_equal(keys[i, bounds[t, 0] : bounds[t, 1]], attended)
    assert cut.patterns.shape == np.unique(cut.patterns, axis=0).shape


def test_interior_tiles_share_one_look():
    cut = axis_tiles(800, 7, 1, 1, False, 8)
    assert (cut.count, cut.halo, len(cut.patterns)) == (100, 14, 3)
    assert len(axis_tiles(56, 7, 1, 8, False, 7).patterns) == 1  # eight groups of seven: dense, and all alike


def test_cost_rule():
    once = ((1, 1), (False, False))
    assert choose_tile((7, 7), (7, 7), (1, 1), *once, 8, 32, False)[0] == (7, 7)
    assert choose_tile((56, 56), (7, 7), (1, 1), (8, 8), (False, False), 8, 32, True)[0] == (7, 7)
    tile, _ = choose_tile((200, 336), (7, 7), (1, 1), *once, 2, 32, False)
    assert all(2 <= t <= 16 for t in tile)


def test_only_small_maps_are_dense():
    rest = ((7, 7), (1, 1), (False, False))
    assert dense_is_better((7, 7), *rest, 1, 16, 32, False)
    assert dense_is_better((14, 14), *rest, 1, 2, 32, False)
    assert not dense_is_better((14, 14), *rest, 8, 2, 32, False)
    assert not dense_is_better((56, 56), *rest, 1, 2, 32, False)
    assert not dense_is_better((7, 7), *rest, 0, 2, 32, False)
