"""Boxes, masks and whole drawings."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from fixtures.drawn import CLASSES, made

from visionattn.errors import ConfigError
from visionattn.inference.draw import class_color, draw_prediction
from visionattn.inference.drawing.shapes import paint_masks
from visionattn.inference.results import InstanceMasks, Prediction


def grid_of_masks(labels=None):
    """400 touching boxes of 16 pixels, with a mask of 10 in the middle of each."""
    corners = np.array([[x, y] for y in range(0, 320, 16) for x in range(0, 320, 16)])
    masks = InstanceMasks([np.pad(np.ones((10, 10), bool), 3)] * 400, corners.tolist(), (320, 320))
    return made((320, 320), np.concatenate([corners, corners + 16], axis=1), labels, masks=masks)


def test_crowd_of_masks_has_no_boxes_and_neighbours_differ_in_colour():
    drawn = draw_prediction(np.full((320, 320, 3), 128, np.uint8), grid_of_masks())
    clear = np.zeros((320, 320), bool)
    clear[60:260] = True  # no legend, which is in a corner
    rim = clear & (np.add.outer(np.arange(320) % 16 == 0, np.arange(320) % 16 == 0))
    assert (drawn[rim] == 128).all(), "no boxes"
    centers = drawn[72:260:16, 8::16].astype(int)
    assert (np.abs(centers[:, 1:] - centers[:, :-1]).max(axis=2) > 10).all()
    assert (np.abs(centers[1:] - centers[:-1]).max(axis=2) > 10).all()


def test_crowd_of_several_classes_keeps_their_colours():
    drawn = draw_prediction(np.full((320, 320, 3), 128, np.uint8), grid_of_masks([0, 1] * 200))
    centers = drawn[72:260:16, 8::16].reshape(-1, 3)
    assert len(np.unique(centers, axis=0)) == 2


def test_box_line_has_the_colour_of_its_class():
    image = np.full((400, 400, 3), 128, np.uint8)
    drawn = draw_prediction(image, made((400, 400), [[100, 100, 300, 300]], [1]))
    assert tuple(drawn[200, 100]) == class_color(1)
    assert tuple(drawn[300, 200]) == class_color(1)
    assert (drawn[150:250, 150:250] == 128).all()


def test_masks_are_blended_and_outlined():
    image = np.full((400, 400, 3), 128, np.uint8)
    dense = np.zeros((1, 400, 400), dtype=bool)
    dense[0, 120:280, 120:280] = True
    drawn = draw_prediction(image, made((400, 400), [[100, 100, 300, 300]], masks=InstanceMasks.from_dense(dense)))
    inside = drawn[200, 200].astype(float)
    np.testing.assert_allclose(inside, 0.6 * 128 + 0.4 * np.array(class_color(0)), atol=1)
    np.testing.assert_allclose(drawn[200, 120].astype(float), class_color(0), atol=20)  # antialiased
    assert (drawn[110, 110] == 128).all()


def test_edges_of_masks_are_soft():
    """Across a slanted edge, the opacity falls from that of the area over intermediate values to 0, for all rows."""
    image = np.full((200, 200, 3), 128, np.uint8)
    rows, columns = np.mgrid[:200, :200]
    dense = (columns < 100 + rows / 7)[None] & (columns > 20) & (rows > 20) & (rows < 180)
    masks = InstanceMasks.from_dense(dense)
    out = image.copy()
    paint_masks(out, masks, [0], [(0, 0, 0)], [(0, 0, 0)], 0.5, 0.0)
    for row in range(60, 140):
        opacity = 1 - out[row, :, 0] / 128
        assert abs(opacity[columns[row] < 97 + row / 7][60:] - 0.5).max() < 0.01
        assert opacity[columns[row] > 103 + row / 7].max() == 0
        edge = opacity[100 + row // 7 - 4 : 100 + row // 7 + 6]
        assert (np.diff(edge) <= 0.01).all(), "it falls monotonically"
        # the mask has columns 21 to 99 + row / 7, rounded up
        assert abs(opacity.sum() / 0.5 - (100 + row / 7 - 20.5)) < 0.6
    assert len(np.unique(out[60:140, 95:130, 0])) > 4, "there are many intermediate values"


def test_outline_of_an_overlapped_mask_remains_visible():
    dense = np.zeros((2, 200, 200), bool)
    dense[0, 40:140, 40:140] = dense[1, 90:180, 90:180] = True
    found = made((200, 200), [[40, 40, 140, 140], [90, 90, 180, 180]], [0, 1], masks=InstanceMasks.from_dense(dense))
    image = np.full((200, 200, 3), 30, np.uint8)
    drawn = draw_prediction(image, found).astype(int)
    for index, (row, column) in enumerate([(110, 139), (120, 90)]):  # each is an edge inside the other mask
        color, inside = np.array(class_color(index)), drawn[120, 115]
        assert abs(drawn[row, column] - color).max() < 0.6 * abs(inside - color).max()


def test_objects_of_a_class_side_by_side_differ_in_any_order():
    """By score, first and fourth are neighbors."""
    boxes = [[x, 50, x + 60, 150] for x in (10, 140, 210, 75)]
    dense = np.zeros((4, 200, 300), bool)
    for mask, (x0, y0, x1, y1) in zip(dense, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    found = made((200, 300), boxes, masks=InstanceMasks.from_dense(dense))
    drawn = draw_prediction(np.full((200, 300, 3), 128, np.uint8), found).astype(int)
    order = [drawn[120, x + 30] for x in (10, 75, 140, 210)]
    assert all(abs(a - b).max() > 15 for a, b in pairwise(order))


def test_touching_objects_of_a_class_have_shades_of_its_colour():
    dense = np.zeros((3, 200, 300), dtype=bool)
    for index in range(3):
        dense[index, 50:150, 100 * index : 100 * index + 100] = True
    boxes = [[100 * i, 50, 100 * i + 100, 150] for i in range(3)]
    drawn = draw_prediction(
        np.full((200, 300, 3), 128, np.uint8), made((200, 300), boxes, masks=InstanceMasks.from_dense(dense))
    )
    fills = drawn[100, [50, 150, 250]].astype(int)
    assert all(np.abs(a - b).max() > 15 for a, b in combinations(fills, 2))


def test_a_crowd_of_masks_has_no_boxes():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 24, (200, 2)) * 25 + 2
    boxes = np.concatenate([low, low + 20], axis=1)
    dense = np.zeros((200, 640, 640), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(dense, boxes, strict=True):
        mask[y0 + 6 : y1 - 6, x0 + 6 : x1 - 6] = True  # away from the box's line
    image = np.full((640, 640, 3), 128, np.uint8)
    drawn = draw_prediction(image, made((640, 640), boxes, masks=InstanceMasks.from_dense(dense)))
    x, y = boxes[abs(boxes[:, 1] - 300) < 240, :2].T  # corners of boxes, not those below the legend
    assert (drawn[y, x] == 128).all()
    assert (draw_prediction(image, made((640, 640), boxes))[y, x] != 128).any(axis=1).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (7, 9)])
def test_tiny_pictures(size):
    dense = np.ones((1, *size), dtype=bool)
    image = np.zeros((*size, 3), np.uint8)
    found = made(size, [[0, 0, size[1], size[0]]], masks=InstanceMasks.from_dense(dense))
    assert draw_prediction(image, found).shape == image.shape
    assert draw_prediction(image, made(size, [])).shape == image.shape
    assert draw_prediction(image, Prediction(size, CLASSES, semantic=np.zeros(size, int))).shape == image.shape


def test_names_in_any_script():
    found = Prediction(
        (200, 200),
        ("交通灯 é щ",),
        boxes=np.array([[50, 50, 150, 150]], np.float32),
        scores=np.array([0.5], np.float32),
        labels=np.array([0]),
    )
    drawn = draw_prediction(np.full((200, 200, 3), 128, np.uint8), found)
    unknown = Prediction(**{**vars(found), "classes": ("??? ? ?",)})
    assert (drawn != draw_prediction(np.full((200, 200, 3), 128, np.uint8), unknown)).any()


def test_opacity_and_line_width():
    semantic = np.zeros((100, 100), np.int64)
    image = np.full((100, 100, 3), 128, np.uint8)
    made_map = Prediction((100, 100), ("cat",), semantic=semantic)
    color = np.array(class_color(0))
    np.testing.assert_allclose(made_map.draw(image, opacity=1)[90, 90], color, atol=1)
    np.testing.assert_allclose(replace(made_map, opacity=1.0).draw(image)[90, 90], color, atol=1)
    np.testing.assert_array_equal(made_map.draw(image, opacity=0)[90, 90], image[90, 90])
    boxes = made((100, 100), [(40, 40, 80, 80)], [0])
    painted = [int((boxes.draw(image, line_width=width)[60, :60] != 128).any(axis=1).sum()) for width in (1, 2, 8)]
    assert painted[0] == 1
    assert painted == sorted(set(painted))
    for wrong in ({"opacity": 1.5}, {"line_width": 0}):
        with pytest.raises(ConfigError, match=f"`{next(iter(wrong))}` must be in"):
            boxes.draw(image, **wrong)


def test_the_texture_below_a_map_and_a_heat_map_remains_visible():
    image = np.full((60, 60, 3), 60, np.uint8)
    image[:, ::2] = 180
    for prediction in (
        Prediction((60, 60), ("cat",), semantic=np.zeros((60, 60), np.int64)),
        Prediction((60, 60), ("cat",), heatmap=np.ones((60, 60), np.float32)),
    ):
        drawn = prediction.draw(image).astype(float).mean(axis=2)
        assert drawn[50, 40] - drawn[50, 41] > 0.6 * (180 - 60)
