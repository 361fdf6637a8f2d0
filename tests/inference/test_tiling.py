from itertools import pairwise

import numpy as np
import pytest

from visionattn.inference.tiling import tile_grid


@pytest.mark.parametrize("overlap", [0, 1, 16, 60])
@pytest.mark.parametrize("size", [(64, 64), (65, 64), (63, 200), (1000, 777), (10, 10), (128, 129)])
def test_grid_covers_every_pixel_with_the_overlap(size, overlap):
    height, width = size
    tiles = tile_grid(height, width, 64, overlap)
    covered = np.zeros(size, int)
    for x0, y0, x1, y1 in tiles:
        assert (x1 - x0, y1 - y0) == (min(64, width), min(64, height))
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        covered[y0:y1, x0:x1] += 1
    assert covered.min() >= 1
    assert len(set(tiles)) == len(tiles)
    columns = sorted({(x0, x1) for x0, _, x1, _ in tiles})
    for (_, end), (start, _) in pairwise(columns):
        assert end - start >= overlap


def test_grid_has_no_more_tiles_than_needed():
    assert len(tile_grid(64, 64, 64, 16)) == 1
    assert len(tile_grid(64, 112, 64, 16)) == 2
    assert len(tile_grid(64, 113, 64, 16)) == 3


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [((3000, 4000), 1024, 256), ((777, 5001), 300, 75), ((999, 512), 512, 500)]
)
def test_large_tiles_start_on_the_grid_of_the_model(size, tile, overlap):
    tiles = tile_grid(*size, tile, overlap)
    starts = [sorted({t[axis] for t in tiles}) for axis in (1, 0)]
    for axis, (first, length) in enumerate(zip(starts, size, strict=True)):
        ends = sorted({t[3 - axis] for t in tiles})
        assert first[0] == 0
        assert ends[-1] == length
        assert all(end - start >= overlap for end, start in zip(ends, first[1:], strict=False))
        if tile - overlap >= 32:
            assert all(start % 32 == 0 for start in first)
    for x0, y0, x1, y1 in tiles:
        assert min(tile, size[1]) - 31 <= x1 - x0 <= tile
        assert min(tile, size[0]) - 31 <= y1 - y0 <= tile


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (64, 64), (64, -1)])
def test_grid_refuses(tile, overlap):
    with pytest.raises(ValueError, match=r"tile|overlap"):
        tile_grid(100, 100, tile, overlap)
