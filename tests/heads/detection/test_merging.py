import numpy as np
import pytest

from visionattn.heads.detection.merging import flip_prediction, merge_by_nms, merge_tiles
from visionattn.inference.results import InstanceMasks, Prediction

TILES = [(0, 0, 100, 100), (60, 0, 160, 100)]  # 40 pixels in common
SIZE = (100, 160)


def found(boxes, scores, labels=None, size=(100, 100), **options) -> Prediction:
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    return Prediction(
        size, ("a", "b"), boxes=boxes, scores=np.array(scores, dtype=np.float32), labels=labels, **options
    )


def test_object_in_both_tiles_is_one():
    merged = merge_tiles([found([[70, 20, 90, 40]], [0.8]), found([[10, 20, 30, 40]], [0.9])], TILES, SIZE)
    np.testing.assert_array_equal(merged.boxes, [[70, 20, 90, 40]])
    assert merged.scores == np.float32(0.9)
    assert merged.image_size == SIZE


def test_fragment_goes_for_the_whole_though_it_scored_higher():
    """Object 85..110, cut by the first tile at 100."""
    merged = merge_tiles([found([[85, 20, 100, 40]], [0.95]), found([[25, 20, 50, 40]], [0.5])], TILES, SIZE)
    np.testing.assert_array_equal(merged.boxes, [[85, 20, 110, 40]])


def test_fragment_without_a_whole_goes_where_another_tile_sees_it_whole():
    """The second tile, which sees what lies beyond the first one's border, finds nothing there, or another class."""
    fragment = found([[85, 20, 100, 40]], [0.95], [0])
    assert len(merge_tiles([fragment, found([], [])], TILES, SIZE)) == 0
    merged = merge_tiles([fragment, found([[25, 20, 50, 40]], [0.5], [1])], TILES, SIZE)
    np.testing.assert_array_equal(merged.boxes, [[85, 20, 110, 40]])


def test_fragment_that_no_other_tile_sees_whole_stays():
    """It starts at 50, and the second tile at 60; then one that both borders cut."""
    assert len(merge_tiles([found([[50, 20, 100, 40]], [0.95]), found([], [])], TILES, SIZE)) == 1
    assert len(merge_tiles([found([[60, 20, 100, 40]], [0.95]), found([], [])], TILES, SIZE)) == 1


def test_small_object_inside_a_large_one_stays():
    """It touches no border, so nothing shows that it is a fragment."""
    merged = merge_tiles(
        [found([[70, 20, 80, 30]], [0.9]), found([[5, 5, 80, 80], [10, 20, 20, 30]], [0.8, 0.7])], TILES, SIZE
    )
    assert sorted(map(tuple, merged.boxes.tolist())) == [(65, 5, 140, 85 - 5), (70, 20, 80, 30)]


def test_box_at_the_border_is_no_fragment_of_one_that_ends_before_it():
    """Object A 57..100 touches the border; B, 65..96, covers most of it but ends before: two objects."""
    merged = merge_tiles([found([[57, 20, 100, 40]], [0.9]), found([[5, 20, 36, 60]], [0.8])], TILES, SIZE)
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


def piece(box, size=(100, 100)):
    dense = np.zeros((1, *size), dtype=bool)
    x0, y0, x1, y1 = box
    dense[0, y0:y1, x0:x1] = True
    return InstanceMasks.from_dense(dense)


@pytest.mark.parametrize("with_masks", [False, True])
def test_an_object_larger_than_the_overlap_is_put_together(with_masks):
    """20..150 of 160 pixels, in tiles that end at 100 and start at 60."""
    left, right = [20, 30, 100, 60], [0, 31, 90, 60]
    options = [{"masks": piece(box)} if with_masks else {} for box in (left, right)]
    merged = merge_tiles([found([left], [0.8], **options[0]), found([right], [0.9], **options[1])], TILES, SIZE)
    np.testing.assert_array_equal(merged.boxes, [[20, 30, 150, 60]])
    assert merged.scores == np.float32(0.9)
    if with_masks:
        expected = np.zeros((1, *SIZE), dtype=bool)
        expected[0, 30:60, 20:100] = True
        expected[0, 31:60, 60:150] = True
        np.testing.assert_array_equal(np.asarray(merged.masks), expected)


@pytest.mark.parametrize("with_masks", [False, True])
def test_an_object_over_four_tiles_is_put_together(with_masks):
    size, tiles = (160, 160), [(0, 0, 100, 100), (60, 0, 160, 100), (0, 60, 100, 160), (60, 60, 160, 160)]
    boxes = [[10, 20, 100, 100], [0, 20, 95, 100], [10, 0, 100, 80], [0, 0, 95, 80]]
    parts = [found([b], [0.5], **({"masks": piece(b)} if with_masks else {})) for b in boxes]
    merged = merge_tiles(parts, tiles, size)
    np.testing.assert_array_equal(merged.boxes, [[10, 20, 155, 140]])
    if with_masks:
        assert np.asarray(merged.masks).sum() == 145 * 120


def test_objects_one_above_the_other_are_not_put_together():
    """Both cross what the tiles share, but not at the same height."""
    merged = merge_tiles([found([[20, 10, 100, 40]], [0.8]), found([[0, 35, 90, 70]], [0.9])], TILES, SIZE)
    assert len(merged) == 2


def test_masks_that_do_not_meet_are_not_put_together():
    """Two diagonal objects whose boxes are alike."""
    rows, columns = np.mgrid[:100, :100]
    low, high = (columns > rows)[None], (columns < rows - 5)[None]
    boxes = [[0, 0, 100, 100]]
    merged = merge_tiles(
        [
            found(boxes, [0.8], masks=InstanceMasks.from_dense(low)),
            found(boxes, [0.8], masks=InstanceMasks.from_dense(high)),
        ],
        TILES,
        SIZE,
    )
    assert len(merged) == 2


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
    with pytest.raises(ValueError, match="`predictions` must not be empty"):
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
