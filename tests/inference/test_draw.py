from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from visionattn.errors import ConfigError
from visionattn.inference.draw import _ink, _Labels, _Scale, class_color, draw_prediction, map_colors
from visionattn.inference.results import InstanceMasks, Prediction

CLASSES = ("person", "traffic light", "background")


def made(size, boxes, labels=None, **options) -> Prediction:
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    scores = np.linspace(0.9, 0.4, len(boxes)).astype(np.float32)
    return Prediction(size, CLASSES, boxes=boxes, scores=scores, labels=labels, **options)


def labels_of(prediction: Prediction) -> _Labels:
    height, width = prediction.image_size
    labels = _Labels(height, width, _Scale.of(prediction, None))
    labels.add_boxes(prediction)
    return labels


def test_colors_are_stable_and_all_different():
    colors = [class_color(index) for index in range(150)]
    assert colors == [class_color(index) for index in range(150)]
    assert len(set(colors)) == 150
    first = np.array(colors[:20], dtype=float)
    distances = np.linalg.norm(first[:, None] - first[None], axis=2)[np.triu_indices(20, 1)]
    assert distances.min() > 30


def test_text_contrasts_with_its_background():
    """WCAG asks for a ratio of 4.5 for text of this size."""

    def luminance(bgr):
        c = np.array(bgr[::-1]) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for index in range(200):
        a, b = sorted((luminance(class_color(index)), luminance(_ink(class_color(index)))))
        assert (b + 0.05) / (a + 0.05) >= 4.5


@pytest.mark.parametrize("size", [(256, 256), (480, 640), (1400, 2000)])
def test_labels_stay_inside_and_never_overlap(size):
    rng = np.random.default_rng(0)
    height, width = size
    low = rng.uniform(-0.1, 0.8, (14, 2)) * [width, height]
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, (14, 2)) * [width, height]], axis=1)
    labels = labels_of(made(size, boxes, rng.integers(0, 2, 14)))
    assert len(labels.placed) >= 8
    for label in labels.placed:
        assert 0 <= label.x <= label.x + label.width <= width
        assert 0 <= label.y <= label.y + label.height <= height
    for a, b in combinations(labels.placed, 2):
        apart_x = a.x + a.width <= b.x or b.x + b.width <= a.x
        apart_y = a.y + a.height <= b.y or b.y + b.height <= a.y
        assert apart_x or apart_y


def test_label_is_at_its_box():
    labels = labels_of(made((480, 640), [[200, 200, 300, 300]]))
    (label,) = labels.placed
    assert label.text == "person 0.90"
    assert abs(label.x - 200) <= 3
    assert 0 <= 200 - (label.y + label.height) <= 3


def test_label_goes_where_it_hides_no_small_object():
    """Above its box, the usual place, it would cover the second box."""
    labels = labels_of(made((480, 640), [[200, 200, 300, 300], [210, 185, 222, 197]]))
    (first,) = (label for label in labels.placed if label.text == "person 0.90")
    assert not (first.x < 222 and first.x + first.width > 210 and first.y < 197 and first.y + first.height > 185)


def test_labels_grow_with_the_picture():
    small, large = (_Scale.of(Prediction(size, ("a",)), None) for size in ((256, 256), (1500, 2000)))
    assert 10 <= small.font < large.font < 60
    assert small.line < large.line


def test_crowd_gets_a_legend():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 600, (300, 2))
    labels = labels_of(made((640, 640), np.concatenate([low, low + 15], axis=1), [0] * 200 + [1] * 100))
    assert [label.text for label in labels.placed] == ["person: 200", "traffic light: 100"]


def test_one_word_on_every_box_gives_way_to_a_legend():
    low = np.random.default_rng(0).uniform(0, 900, (90, 2))
    boxes = np.concatenate([low, low + 30], axis=1)
    assert [label.text for label in labels_of(made((1000, 1000), boxes)).placed] == ["person: 90"]
    boxes[:, 2:] += 4
    mixed = labels_of(made((1000, 1000), boxes, [0, 1] * 45)).placed
    assert {label.text for label in mixed} == {"person", "traffic light"}


def grid_of_masks(labels=None):
    """400 touching boxes of 16 pixels, with a mask of 10 in the middle of each."""
    corners = np.array([[x, y] for y in range(0, 320, 16) for x in range(0, 320, 16)])
    masks = InstanceMasks([np.pad(np.ones((10, 10), bool), 3)] * 400, corners.tolist(), (320, 320))
    return made((320, 320), np.concatenate([corners, corners + 16], axis=1), labels, masks=masks)


def test_crowd_of_masks_has_no_boxes_and_neighbours_differ_in_colour():
    drawn = draw_prediction(np.full((320, 320, 3), 128, np.uint8), grid_of_masks())
    clear = np.zeros((320, 320), bool)
    clear[40:, :] = True  # below the legend
    rim = clear & (np.add.outer(np.arange(320) % 16 == 0, np.arange(320) % 16 == 0))
    assert (drawn[rim] == 128).all(), "no boxes"
    centers = drawn[56::16, 8::16].astype(int)
    assert (np.abs(centers[:, 1:] - centers[:, :-1]).max(axis=2) > 10).all()
    assert (np.abs(centers[1:] - centers[:-1]).max(axis=2) > 10).all()


def test_crowd_of_several_classes_keeps_their_colours():
    drawn = draw_prediction(np.full((320, 320, 3), 128, np.uint8), grid_of_masks([0, 1] * 200))
    centers = drawn[56::16, 8::16].reshape(-1, 3)
    assert len(np.unique(centers, axis=0)) == 2


def test_long_names_are_cut_but_their_score_is_not():
    long = Prediction(
        (200, 300),
        ("a name that goes on and on and on and on and on and on",),
        boxes=np.array([[100, 100, 150, 150]], np.float32),
        scores=np.array([0.5], np.float32),
        labels=np.array([0]),
    )
    (label,) = labels_of(long).placed
    assert label.text.startswith("a name that")
    assert label.text.endswith("… 0.50")
    assert label.x + label.width <= 300


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
    x, y = boxes[boxes[:, 1] > 60, :2].T  # corners of boxes, below the legend
    assert (drawn[y, x] == 128).all()
    assert (draw_prediction(image, made((640, 640), boxes))[y, x] != 128).any(axis=1).all()


def test_map_colours_classes_but_not_background_or_ignored():
    image = np.full((300, 300, 3), 128, np.uint8)
    semantic = np.full((300, 300), 255)
    semantic[:, 100:200] = 1
    semantic[:, 200:] = 2  # background
    drawn = draw_prediction(image, Prediction((300, 300), CLASSES, semantic=semantic))
    np.testing.assert_allclose(drawn[20, 120], 0.6 * 128 + 0.4 * np.array(class_color(1)), atol=1)
    assert (drawn[:, :95] == 128).all()
    assert (drawn[:, 205:] == 128).all()
    label = class_color(1)  # filled, about the middle of its region
    assert (drawn[100:200, 100:200] == label).all(axis=2).any()


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


def test_panoptic_segments_have_borders_and_a_label_each():
    """Two things of one class that touch: a line between them, and both are named; no boxes."""
    masks = np.zeros((2, 80, 200), bool)
    masks[0, :, :100] = masks[1, :, 100:] = True
    prediction = made((80, 200), [(0, 0, 100, 80), (100, 0, 200, 80)],
                      masks=InstanceMasks.from_dense(masks), semantic=np.zeros((80, 200), np.int64))  # fmt: skip
    drawn = draw_prediction(np.zeros((80, 200, 3), np.uint8), prediction)
    assert drawn[5, 100].min() > drawn[5, 60].min()
    labels = _Labels(80, 200, _Scale.of(Prediction((80, 200), ("a",)), None))
    labels.add_regions(prediction.panoptic.segments - 1, CLASSES, map_colors(CLASSES), prediction.labels)
    assert [p.text for p in labels.placed] == ["person", "person"]
    assert sorted(p.x // 100 for p in labels.placed) == [0, 1]
    np.testing.assert_array_equal(drawn[1, 1], drawn[5, 60])  # no box along the rim


def test_maps_take_the_colours_of_their_data():
    image = np.full((300, 300, 3), 128, np.uint8)
    semantic = np.full((300, 300), 2)
    semantic[:, :150] = 0
    colors = ((10, 20, 30), (40, 50, 60), (70, 80, 90))
    prediction = Prediction((300, 300), CLASSES, semantic=semantic, colors=colors)
    drawn = draw_prediction(image, prediction)
    np.testing.assert_allclose(drawn[20, 20], 0.6 * 128 + 0.4 * np.array([30, 20, 10]), atol=1)
    assert (drawn[20, 280] == 128).all(), "a background has no colour"
    assert (drawn == np.array([30, 20, 10])).all(axis=2).any(), "nor has its label another one than its class"
    assert map_colors(CLASSES, colors) == {0: (30, 20, 10), 1: (60, 50, 40)}
    assert map_colors(CLASSES) == {0: class_color(0), 1: class_color(1)}
    with pytest.raises(ValueError, match="`colors` must have one entry per class, got 1 for 3 classes"):
        Prediction((300, 300), CLASSES, colors=colors[:1])


def test_labels_larger_than_the_objects_give_way_to_a_legend():
    corners = [(x, y) for x in range(10, 380, 90) for y in range(40, 280, 60)]
    for side, legend in ((12, True), (70, False)):
        labels = labels_of(made((300, 400), [(x, y, x + side, y + side) for x, y in corners], [0, 1] * 10))
        texts = {label.text for label in labels.placed}
        assert (texts == {"person: 10", "traffic light: 10"}) == legend


def test_labels_of_small_objects_are_smaller():
    small, large = (
        labels_of(made((480, 640), [(50, 90, 50 + side, 90 + side)], [0])).placed[0].font for side in (42, 200)
    )
    assert small == 10
    assert large == 15


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
