from itertools import pairwise

import numpy as np
import pytest

from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.inference.tiling import flip_prediction, merge_by_nms, merge_tiles, tile_grid

TILES = [(0, 0, 100, 100), (60, 0, 160, 100)]  # 40 pixels in common
SIZE = (100, 160)


def found(boxes, scores, labels=None, size=(100, 100), **options) -> Prediction:
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    return Prediction(
        size, ("a", "b"), boxes=boxes, scores=np.array(scores, dtype=np.float32), labels=labels, **options
    )


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


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (64, 64), (64, -1)])
def test_grid_refuses(tile, overlap):
    with pytest.raises(ValueError, match=r"tile|overlap"):
        tile_grid(100, 100, tile, overlap)


def test_object_in_both_tiles_is_one():
    merged = merge_tiles([found([[70, 20, 90, 40]], [0.8]), found([[10, 20, 30, 40]], [0.9])], TILES, SIZE)
    np.testing.assert_array_equal(merged.boxes, [[70, 20, 90, 40]])
    assert merged.scores == np.float32(0.9)
    assert merged.image_size == SIZE


def test_fragment_goes_for_the_whole_though_it_scored_higher():
    """Object 85..110, cut by the first tile at 100."""
    merged = merge_tiles([found([[85, 20, 100, 40]], [0.95]), found([[25, 20, 50, 40]], [0.5])], TILES, SIZE)
    np.testing.assert_array_equal(merged.boxes, [[85, 20, 110, 40]])


def test_fragment_without_a_whole_stays():
    merged = merge_tiles([found([[85, 20, 100, 40]], [0.95]), found([], [])], TILES, SIZE)
    assert len(merged) == 1


def test_fragment_of_another_class_stays():
    merged = merge_tiles([found([[85, 20, 100, 40]], [0.95], [0]), found([[25, 20, 50, 40]], [0.5], [1])], TILES, SIZE)
    assert len(merged) == 2


def test_small_object_inside_a_large_one_stays():
    """It touches no border, so nothing shows that it is a fragment."""
    merged = merge_tiles(
        [found([[70, 20, 80, 30]], [0.9]), found([[5, 5, 80, 80], [10, 20, 20, 30]], [0.8, 0.7])], TILES, SIZE
    )
    assert sorted(map(tuple, merged.boxes.tolist())) == [(65, 5, 140, 85 - 5), (70, 20, 80, 30)]


def test_box_at_the_border_is_no_fragment_of_one_that_ends_before_it():
    """Object A 84..100 touches the border; B covers most of it but ends at 96: two objects."""
    merged = merge_tiles([found([[84, 20, 100, 40]], [0.9]), found([[5, 20, 36, 60]], [0.8])], TILES, SIZE)
    assert len(merged) == 2


def test_border_of_the_image_cuts_nothing():
    merged = merge_tiles([found([[0, 0, 30, 30]], [0.5]), found([], [])], TILES, SIZE)
    assert len(merged) == 1


def test_masks_move_along():
    dense = np.zeros((1, 100, 100), dtype=bool)
    dense[0, 20:40, 25:50] = True
    empty = InstanceMasks.from_dense(np.zeros((0, 100, 100), dtype=bool))
    merged = merge_tiles(
        [found([], [], masks=empty), found([[25, 20, 50, 40]], [0.5], masks=InstanceMasks.from_dense(dense))],
        TILES,
        SIZE,
    )
    expected = np.zeros((1, *SIZE), dtype=bool)
    expected[0, 20:40, 85:110] = True
    np.testing.assert_array_equal(np.asarray(merged.masks), expected)


def test_tiles_with_nothing():
    merged = merge_tiles([found([], []), found([], [])], TILES, SIZE)
    assert len(merged) == 0
    assert merged.image_size == SIZE


def test_nms_is_within_a_class_and_best_first():
    merged = merge_by_nms(
        [
            found([[0, 0, 50, 50], [60, 60, 90, 90]], [0.5, 0.6], [0, 0]),
            found([[1, 1, 50, 50], [0, 0, 50, 50]], [0.7, 0.4], [0, 1]),
        ]
    )
    assert [(round(float(s), 1), int(label)) for s, label in zip(merged.scores, merged.labels, strict=True)] == [
        (0.7, 0),
        (0.6, 0),
        (0.4, 1),
    ]
    with pytest.raises(ValueError, match="one image"):
        merge_by_nms([found([], []), found([], [], size=(5, 5))])


def test_flip_twice_is_the_same():
    dense = np.zeros((1, 100, 100), dtype=bool)
    dense[0, 3:9, 10:30] = True
    one = found([[10, 3, 30, 9]], [0.5], masks=InstanceMasks.from_dense(dense))
    flipped = flip_prediction(one)
    np.testing.assert_array_equal(flipped.boxes, [[70, 3, 90, 9]])
    np.testing.assert_array_equal(np.asarray(flipped.masks), dense[:, :, ::-1])
    again = flip_prediction(flipped)
    np.testing.assert_array_equal(again.boxes, one.boxes)
    np.testing.assert_array_equal(np.asarray(again.masks), dense)
