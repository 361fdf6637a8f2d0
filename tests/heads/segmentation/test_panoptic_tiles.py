"""Panoptic maps of tiles, made one."""

import numpy as np
import pytest

from visionattn.heads.segmentation.panoptic_tiles import merge_panoptic_tiles
from visionattn.inference.results import InstanceMasks, Prediction

CLASSES = ("cat", "dog", "grass")
THINGS = 2
TILES = [(0, 0, 12, 4), (8, 0, 20, 4)]  # 4 columns in common, the middle of them between 9 and 10
SIZE = (4, 20)


def tile(*segments: tuple[int, int, int], score: float = 1.0, size: tuple[int, int] = (4, 12)) -> Prediction:
    """Segments (label, first column, last column + 1) that are as high as the tile."""
    masks, semantic = np.zeros((len(segments), *size), bool), np.full(size, len(CLASSES))
    for mask, (label, x0, x1) in zip(masks, segments, strict=True):
        mask[:, x0:x1] = True
        semantic[mask] = label
    return Prediction(
        size, CLASSES, boxes=np.zeros((len(segments), 4), np.float32),
        scores=np.full(len(segments), score, np.float32), labels=np.array([s[0] for s in segments], np.int64),
        masks=InstanceMasks.from_dense(masks), semantic=semantic, seconds=0.5,
    )  # fmt: skip


def columns(merged: Prediction) -> list[tuple[str, list[int]]]:
    """Each segment's class and the columns it fills."""
    found = [(n, np.flatnonzero(m[0]).tolist()) for n, m in zip(merged.names, merged.masks, strict=True)]
    return sorted(found)


def merge(*predictions: Prediction, tiles=TILES, size=SIZE) -> Prediction:
    merged = merge_panoptic_tiles(predictions, tiles, size, THINGS)
    total = np.asarray(merged.masks).sum(0)
    assert total.max(initial=0) <= 1  # a pixel is in one segment at most
    return merged


def test_thing_across_the_border_is_one_though_larger_than_the_overlap():
    merged = merge(tile((0, 2, 12)), tile((0, 0, 9), score=0.5))
    assert columns(merged) == [("cat", list(range(2, 17)))]
    np.testing.assert_array_equal(merged.boxes, [[2, 0, 17, 4]])
    assert merged.scores == 1
    assert merged.seconds == 1
    assert (merged.semantic[:, 2:17] == 0).all()
    assert (merged.semantic[:, :2] == 3).all()


def test_two_things_of_a_class_stay_two():
    """In the overlap, columns 8 to 11, one has 8 and 9, the other 10 and 11: they meet, and do not match."""
    merged = merge(tile((0, 2, 10)), tile((0, 2, 9)))
    assert columns(merged) == [("cat", list(range(2, 10))), ("cat", list(range(10, 17)))]


def test_things_of_two_classes_do_not_match():
    merged = merge(tile((0, 2, 12)), tile((1, 0, 9)))
    assert columns(merged) == [("cat", list(range(2, 10))), ("dog", list(range(10, 17)))]


def test_stuff_of_a_class_is_one_segment_wherever_it_lies():
    merged = merge(tile((2, 0, 3), (0, 4, 8)), tile((2, 8, 12)))
    assert columns(merged) == [("cat", [4, 5, 6, 7]), ("grass", [0, 1, 2, 16, 17, 18, 19])]


def test_each_pixel_goes_by_the_deeper_tile():
    merged = merge(tile((0, 8, 12)), tile())
    assert columns(merged) == [("cat", [8, 9])]
    merged = merge(tile(), tile((0, 0, 2)))  # columns 8 and 9, which are the first tile's
    assert columns(merged) == []
    assert (merged.semantic == 3).all()
    assert (merged.panoptic.segments == 0).all()


def test_a_third_tile_does_not_join_what_one_tile_told_apart():
    """The second and third tile see one thing where the first sees two."""
    tiles = [(0, 0, 12, 4), (0, 0, 6, 4), (4, 0, 12, 4)]
    parts = tile((0, 0, 5), (0, 5, 12)), tile((0, 0, 6), size=(4, 6)), tile((0, 0, 8), size=(4, 8))
    merged = merge(*parts, tiles=tiles, size=(4, 12))
    assert len(merged) == 2


def test_what_is_refused():
    with pytest.raises(ValueError, match="masks and a semantic map"):
        merge_panoptic_tiles([Prediction((4, 12), CLASSES)], TILES[:1], (4, 12), THINGS)
    with pytest.raises(ValueError, match="do not cover"):
        merge_panoptic_tiles([tile()], TILES[:1], SIZE, THINGS)
