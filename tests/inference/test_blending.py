import numpy as np
import pytest

from visionattn.inference.blending import LogitCanvas, mean_of_views, tile_weight
from visionattn.inference.tiling import tile_grid


@pytest.mark.parametrize("overlap", [0, 1, 7, 16, 63])
def test_weights_cover_every_pixel_and_leave_cut_borders_to_the_neighbor(overlap):
    size = (150, 201)
    tiles = tile_grid(*size, 64, overlap)
    total = np.zeros(size)
    for x0, y0, x1, y1 in tiles:
        weight = tile_weight((x0, y0, x1, y1), size, overlap)
        total[y0:y1, x0:x1] += weight
        margin = overlap // 4
        if x0 > 0 and margin:
            assert (weight[:, :margin] == 0).all()
        if y1 < size[0] and margin:
            assert (weight[-margin:] == 0).all()
    assert (total > 0).all()


def test_two_weights_add_up_to_one():
    first, second = tile_weight((0, 0, 40, 8), (8, 60), 20), tile_weight((20, 0, 60, 8), (8, 60), 20)
    np.testing.assert_allclose(first[:, 20:] + second[:, :20], 1, atol=1e-6)
    assert (first[:, :20] == 1).all()
    assert (np.diff(first[0]) <= 0).all()


def test_canvas_changes_linearly_from_tile_to_tile():
    canvas = LogitCanvas((8, 60), 20)
    canvas.add((0, 0, 40, 8), np.zeros((2, 8, 40), np.float32))
    canvas.add((20, 0, 60, 8), np.ones((2, 8, 40), np.float32))
    row = canvas.result()[0, 3]
    assert (row[:25] == 0).all()
    assert (row[35:] == 1).all()
    np.testing.assert_allclose(np.diff(row[25:35]), 0.1, atol=1e-6)


def test_a_canvas_with_a_hole_is_an_error():
    canvas = LogitCanvas((8, 60), 0)
    with pytest.raises(ValueError, match="do not cover"):
        canvas.result()
    canvas.add((0, 0, 59, 8), np.zeros((2, 8, 59), np.float32))
    with pytest.raises(ValueError, match="do not cover"):
        canvas.result()


def test_views_count_by_probability_not_by_logit():
    sure, unsure = np.array([9.0, 0.0]), np.array([0.0, 1.0])
    views = [sure, unsure, unsure]
    classes = mean_of_views([v.reshape(2, 1, 1).astype(np.float32) for v in views])
    probability = np.mean([np.exp(v[0]) / np.exp(v).sum() for v in views])
    assert classes[0, 0] == (0 if probability > 0.5 else 1)
    assert mean_of_views([np.array([[[1e4]], [[-1e4]]], np.float32)]).tolist() == [[0]]
