"""Class maps, their labels and legends."""

from itertools import combinations

import numpy as np
import pytest
from fixtures.drawn import CLASSES, made

from visionattn.inference.draw import class_color, draw_prediction, map_colors
from visionattn.inference.drawing.cards import Label, Panel
from visionattn.inference.drawing.labels import Labels, Scale
from visionattn.inference.drawing.regions import label_regions
from visionattn.inference.results import InstanceMasks, Prediction


def test_map_colours_classes_but_not_background_or_ignored():
    image = np.full((300, 300, 3), 128, np.uint8)
    semantic = np.full((300, 300), 255)
    semantic[:, 100:200] = 1
    semantic[:, 200:] = 2  # background
    drawn = draw_prediction(image, Prediction((300, 300), CLASSES, semantic=semantic))
    np.testing.assert_allclose(drawn[20, 120], 0.6 * 128 + 0.4 * np.array(class_color(1)), atol=1)
    assert (drawn[:100, :95] == 128).all()
    assert (drawn[:100, 205:] == 128).all()
    label = class_color(1)  # filled, about the middle of its region
    assert (drawn[100:200, 100:200] == label).all(axis=2).any()


def test_panoptic_segments_have_borders_and_a_label_each():
    """Two things of one class that touch: a line between them, and both are named; no boxes."""
    masks = np.zeros((2, 80, 200), bool)
    masks[0, :, :100] = masks[1, :, 100:] = True
    prediction = made((80, 200), [(0, 0, 100, 80), (100, 0, 200, 80)],
                      masks=InstanceMasks.from_dense(masks), semantic=np.zeros((80, 200), np.int64))  # fmt: skip
    drawn = draw_prediction(np.zeros((80, 200, 3), np.uint8), prediction)
    assert drawn[5, 100].min() > drawn[5, 60].min()
    labels = Labels(80, 200, Scale.of(Prediction((80, 200), ("a",))))
    label_regions(labels, prediction.panoptic.segments - 1, CLASSES, map_colors(CLASSES), prediction.labels)
    assert [(p.text, p.value) for p in labels.placed] == [("person", "50 %")] * 2
    assert sorted(p.x // 100 for p in labels.placed) == [0, 1]
    np.testing.assert_array_equal(drawn[1, 1], drawn[5, 60])  # no box along the rim


def map_labels(semantic: np.ndarray, classes=CLASSES) -> tuple[dict, dict, Labels]:
    """Return the values of the labels in regions, and of the legend, by name."""
    labels = Labels(*semantic.shape, Scale.of(Prediction(semantic.shape, classes)))
    label_regions(labels, semantic, classes, map_colors(classes))
    inside = {label.text: label.value for label in labels.placed if isinstance(label, Label)}
    rows = [row for panel in labels.placed if isinstance(panel, Panel) for row in panel.rows]
    return inside, {row.name: row.value for row in rows}, labels


def test_labels_of_a_map_state_shares_and_a_legend_has_the_rest():
    classes = ("road", "sky", "pole", "cat", "background", "unused")
    semantic = np.zeros((400, 600), np.int64)  # road
    semantic[:120] = 1  # 30 %, less what follows
    semantic[100:400, 300:310] = 2  # 1 % and too thin for a label
    semantic[300:304, 400:404] = 3
    semantic[380:, :] = 4
    semantic[0, :60] = 255
    semantic[1, :60] = -1
    inside, legend, labels = map_labels(semantic, classes)
    shares = {name: (semantic == value).mean() for value, name in enumerate(classes)}
    assert inside == {name: f"{100 * shares[name]:.0f} %" for name in ("road", "sky")}
    assert legend == {"pole": "1 %", "cat": "<1 %"}
    assert inside["sky"] == "30 %"
    for label in labels.placed:
        if isinstance(label, Label):
            where = semantic[label.y : label.y + label.height, label.x : label.x + label.width]
            assert (where == classes.index(label.text)).mean() >= 0.7


@pytest.mark.parametrize("size", [(120, 160), (512, 512), (1080, 1920)])
def test_legends_of_maps_are_in_a_corner_and_small(size):
    """Forty classes of thin strips on one large region, most of them at the left."""
    classes = tuple(f"class {index} of many" for index in range(41))
    semantic = np.zeros(size, np.int64)
    for index in range(40):
        semantic[2 + index * size[0] // 41, : size[1] * 2 // 3] = index + 1
    _, legend, labels = map_labels(semantic, classes)
    (panel,) = (item for item in labels.placed if isinstance(item, Panel))
    assert panel.font >= 10
    assert panel.width * panel.height <= 0.25 * size[0] * size[1]
    assert 0 <= panel.x <= panel.x + panel.width <= size[1]
    assert 0 <= panel.y <= panel.y + panel.height <= size[0]
    assert min(panel.x, size[1] - panel.x - panel.width) <= 0.02 * size[1] + 5
    assert min(panel.y, size[0] - panel.y - panel.height) <= 0.02 * size[0] + 5
    assert panel.x > size[1] / 4, "it hides the least at the right"
    *_, last = legend
    assert last == f"+{41 - len(legend)} more" or len(legend) == 40
    assert not any(
        a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.y + b.height and b.y < a.y + a.height
        for a, b in combinations(labels.placed, 2)
    )


def test_a_map_of_one_class_has_no_legend():
    inside, legend, _ = map_labels(np.zeros((200, 200), np.int64))
    assert inside == {"person": "100 %"}
    assert not legend


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
