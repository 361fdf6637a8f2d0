import numpy as np
import pytest

from visionattn.inference.blending import MapCanvas, probabilities, tile_weight
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


def random_tiles(size, tile, overlap, classes=5):
    rng = np.random.default_rng(0)
    return [
        (t, rng.random((classes, t[3] - t[1], t[2] - t[0]), dtype=np.float32)) for t in tile_grid(*size, tile, overlap)
    ]


@pytest.mark.parametrize(("size", "tile", "overlap"), [((150, 201), 64, 16), ((64, 300), 64, 40), ((300, 20), 50, 0)])
def test_canvas_takes_the_class_of_the_greatest_weighted_sum(size, tile, overlap):
    given = random_tiles(size, tile, overlap)
    total = np.zeros((5, *size))
    canvas = MapCanvas(size, overlap)
    held = 0
    for (x0, y0, x1, y1), values in given:
        total[:, y0:y1, x0:x1] += values * tile_weight((x0, y0, x1, y1), size, overlap)
        canvas.add((x0, y0, x1, y1), values)
        held = max(held, canvas._sum.nbytes)
    result = canvas.result()
    assert result.dtype == np.int64
    top = np.sort(total, axis=0)
    clear = top[-1] - top[-2] > 1e-5  # float32 may round a tie either way
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(result[clear], total.argmax(0)[clear])
    assert held == 5 * min(tile, size[0]) * size[1] * 4  # one row of tiles, not the image


def test_a_canvas_with_a_hole_is_an_error():
    canvas = MapCanvas((8, 60), 0)
    with pytest.raises(ValueError, match="do not cover"):
        canvas.result()
    canvas.add((0, 0, 59, 8), np.zeros((2, 8, 59), np.float32))
    with pytest.raises(ValueError, match="do not cover"):
        canvas.result()
    canvas = MapCanvas((20, 8), 0)
    canvas.add((0, 0, 8, 8), np.zeros((2, 8, 8), np.float32))
    with pytest.raises(ValueError, match="do not cover"):  # rows 8 to 11 are missing
        canvas.add((0, 12, 8, 20), np.zeros((2, 8, 8), np.float32))


def test_a_canvas_takes_tiles_from_above_only():
    canvas = MapCanvas((20, 8), 0)
    canvas.add((0, 0, 8, 8), np.zeros((2, 8, 8), np.float32))
    canvas.add((0, 8, 8, 16), np.zeros((2, 8, 8), np.float32))
    with pytest.raises(ValueError, match="row by row"):
        canvas.add((0, 0, 8, 8), np.zeros((2, 8, 8), np.float32))


def test_probabilities():
    logits = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32) * 5
    before = logits.copy()
    np.testing.assert_allclose(probabilities(logits), np.exp(logits) / np.exp(logits).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(probabilities(np.array([[[1e4]], [[-1e4]]], np.float32)).ravel(), [1, 0])
