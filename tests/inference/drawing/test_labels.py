"""Labels of boxes and areas, and legends of boxes."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from fixtures.drawn import made

from visionattn.inference.draw import class_color, draw_areas, draw_prediction
from visionattn.inference.drawing.cards import Panel
from visionattn.inference.drawing.labels import Labels, Scale
from visionattn.inference.results import InstanceMasks, Prediction


def rows_of(labels: Labels) -> list[tuple[str, str]]:
    """Return the rows of the legend, which is the only entry."""
    (panel,) = labels.placed
    assert isinstance(panel, Panel)
    return [(row.name, row.value) for row in panel.rows]


def labels_of(prediction: Prediction) -> Labels:
    height, width = prediction.image_size
    labels = Labels(height, width, Scale.of(prediction, None))
    labels.add_boxes(prediction)
    return labels


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
    assert (label.text, label.value) == ("person", "0.90")
    assert abs(label.x - 200) <= 3
    assert 0 <= 200 - (label.y + label.height) <= 3


def test_label_goes_where_it_hides_no_small_object():
    """Above its box, the usual place, it would cover the second box."""
    labels = labels_of(made((480, 640), [[200, 200, 300, 300], [210, 185, 222, 197]]))
    (first,) = (label for label in labels.placed if label.value == "0.90")
    assert not (first.x < 222 and first.x + first.width > 210 and first.y < 197 and first.y + first.height > 185)


def test_labels_grow_with_the_picture():
    small, large = (Scale.of(Prediction(size, ("a",)), None) for size in ((256, 256), (1500, 2000)))
    assert 10 <= small.font < large.font < 60
    assert small.line < large.line


def test_crowd_gets_a_legend():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 600, (300, 2))
    labels = labels_of(made((640, 640), np.concatenate([low, low + 15], axis=1), [0] * 200 + [1] * 100))
    assert rows_of(labels) == [("person", "200"), ("traffic light", "100")]
    assert [row.color for row in labels.placed[0].rows] == [class_color(0), class_color(1)]


def test_one_word_on_every_box_gives_way_to_a_legend():
    low = np.random.default_rng(0).uniform(0, 900, (90, 2))
    boxes = np.concatenate([low, low + 30], axis=1)
    assert rows_of(labels_of(made((1000, 1000), boxes))) == [("person", "90")]
    boxes[:, 2:] += 4
    mixed = labels_of(made((1000, 1000), boxes, [0, 1] * 45)).placed
    assert {label.text for label in mixed} == {"person", "traffic light"}


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
    assert label.text.endswith("…")
    assert label.value == "0.50"
    assert label.x + label.width <= 300


def test_name_and_score_are_apart():
    """In the label of the digit 2, the space before the score is wider than between the digits of the score."""
    found = replace(made((256, 256), [[100, 100, 160, 160]]), classes=("2", "b", "c"))
    (label,) = labels_of(found).placed
    drawn = draw_prediction(np.full((256, 256, 3), 128, np.uint8), found)
    crop = drawn[label.y : label.y + label.height, label.x : label.x + label.width].astype(int)
    text = (abs(crop - crop[0, 0]).max(axis=2) > 100).any(axis=0)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], text, [0]])))
    gaps = ends[2::2] - ends[1:-1:2]
    assert gaps[0] >= 4
    assert gaps[0] > 1.5 * gaps[1:].max()
    rows = np.flatnonzero((abs(crop - crop[0, 0]).max(axis=2) > 100).any(axis=1))
    assert abs(rows[0] - (label.height - 1 - rows[-1])) <= 2, "the digits are in the middle of the height"


def areas_of(dense: np.ndarray, scores) -> Prediction:
    boxes = []
    for mask in dense:
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    found = made(dense.shape[1:], boxes, masks=InstanceMasks.from_dense(dense))
    return replace(found, scores=np.array(scores, np.float32))


@pytest.mark.parametrize("size", [(120, 160), (300, 400), (1080, 1920)])
def test_labels_of_areas_cover_no_area(size):
    height, width = size
    dense = np.zeros((3, *size), bool)
    dense[0, : height // 3, width // 2 : width * 3 // 4] = True  # at the upper border: no space above
    dense[1, height // 2 : height // 2 + height // 4, width // 4 : width // 2] = True
    dense[2, height - 2 :, :2] = True  # too small for a label
    areas = areas_of(dense, [0.9, 0.8, 0.7])
    labels = Labels(height, width, Scale.of(areas))
    labels.add_areas(areas, (0, 0, 255))
    assert [label.text for label in labels.placed] == ["0.90", "0.80"]
    for label in labels.placed:
        assert not dense[:, label.y : label.y + label.height, label.x : label.x + label.width].any()
        assert 0 <= label.x <= label.x + label.width <= width
    title = ("forged", ["forgery score 0.93", "0.93"], (0, 0, 255))
    image = np.full((*size, 3), 128, np.uint8)
    drawn = draw_areas(image, areas, (0, 0, 255), title)
    middle = drawn[height // 2 + height // 8, width * 3 // 8]
    np.testing.assert_allclose(middle, 0.6 * 128 + 0.4 * np.array([0, 0, 255]), atol=1)
    outlined = draw_areas(image, areas, (0, 0, 255), title, filled=False)
    assert (outlined[height // 2 + height // 8, width * 3 // 8] == 128).all()
    assert (outlined[height // 2 + height // 8, width // 4 - 2 : width // 4 + 3] != 128).any()


def test_labels_larger_than_the_objects_give_way_to_a_legend():
    corners = [(x, y) for x in range(10, 380, 90) for y in range(40, 280, 60)]
    for side, legend in ((12, True), (70, False)):
        labels = labels_of(made((300, 400), [(x, y, x + side, y + side) for x, y in corners], [0, 1] * 10))
        assert isinstance(labels.placed[0], Panel) == legend


def test_labels_of_small_objects_are_smaller():
    small, large = (
        labels_of(made((480, 640), [(50, 90, 50 + side, 90 + side)], [0])).placed[0].font for side in (42, 200)
    )
    assert small == 10
    assert large == 16


def test_names_are_written_in_one_line():
    plain = made((120, 200), [(20, 40, 90, 100)])
    odd = replace(plain, classes=("per\n\tson\x00", *plain.classes[1:]))
    spaced = replace(plain, classes=("per son", *plain.classes[1:]))
    image = np.full((120, 200, 3), 90, np.uint8)
    assert np.array_equal(odd.draw(image), spaced.draw(image))
    assert not np.array_equal(odd.draw(image), plain.draw(image))
