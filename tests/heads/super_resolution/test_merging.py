"""Flips and transposes, and blending of tiles."""

import numpy as np
import pytest

from visionattn.heads.super_resolution.imresize import to_uint8
from visionattn.heads.super_resolution.merging import EIGHT, BlendedImage
from visionattn.inference.tiling import tile_grid


def test_views_are_undone():
    image = np.random.default_rng(0).random((5, 7, 3))
    seen = {view.apply(image).tobytes() for view in EIGHT}
    assert len(seen) == 8
    for view in EIGHT:
        assert (view.undo(view.apply(image)) == image).all()
    assert (EIGHT[0].apply(image) == image).all()


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("views", [EIGHT[:1], EIGHT])
def test_tiles_of_an_image_give_the_image(scale, views):
    """Also in the order of the Predictor: one view of several tiles, then the next view of them."""
    image = 255 * np.random.default_rng(0).random((41, 53, 3)).astype(np.float32)
    large = image.repeat(scale, 0).repeat(scale, 1)
    blended = BlendedImage(image.shape[:2], 8, scale, views)
    tiles = tile_grid(41, 53, 20, 8)
    assert len(tiles) > 9
    for start in range(0, len(tiles), 3):
        for view in views:
            for x0, y0, x1, y1 in tiles[start : start + 3]:
                part = large[scale * y0 : scale * y1, scale * x0 : scale * x1]
                blended.add((x0, y0, x1, y1), view, view.apply(part))
    assert np.abs(blended.result().astype(int) - to_uint8(large).astype(int)).max() <= 1  # sums are rounded
    assert (blended.result() == to_uint8(large)).mean() > 0.99


def test_views_are_averaged_and_seams_are_ramps():
    blended = BlendedImage((8, 40), 8, 1, EIGHT[:2])
    for tile, value in (((0, 0, 24, 8), 100.0), ((16, 0, 40, 8), 200.0)):
        for view, change in zip(EIGHT[:2], (-20, 20), strict=True):
            blended.add(tile, view, np.full((8, 24, 3), value + change, np.float32))
    row = blended.result()[0, :, 0].astype(int)
    assert (row[:18] == 100).all()
    assert (row[22:] == 200).all()
    assert (np.diff(row[17:23]) > 0).all()  # over the middle half of the overlap
    assert np.diff(row).max() <= 30


def test_errors():
    blended = BlendedImage((20, 20), 4, 2, EIGHT[:1])
    with pytest.raises(ValueError, match="the tiles do not cover the image"):
        blended.result()
    blended = BlendedImage((20, 20), 4, 2, EIGHT[:1])
    blended.add((0, 0, 20, 12), EIGHT[0], np.zeros((24, 40, 3), np.float32))
    blended.add((0, 8, 20, 20), EIGHT[0], np.zeros((24, 40, 3), np.float32))
    with pytest.raises(ValueError, match="tiles must come row by row, but row 0 comes after row 16"):
        blended.add((0, 0, 20, 12), EIGHT[0], np.zeros((24, 40, 3), np.float32))
