"""Sizes of images and objects for ``train --data``."""

from pathlib import Path

import numpy as np
import pytest

from visionattn.data.recipes import DataSummary, Levels, fit_scale, object_sides, rounded
from visionattn.errors import ConfigError


def summary(sizes, boxes=(), owners=(), labels=()) -> DataSummary:
    return DataSummary(
        Path("data"), "coco", frozenset({"boxes"}), {}, ("a", "b"), {"train": len(sizes)}, np.array(sizes, float),
        np.array(boxes, float).reshape(-1, 2), np.array(owners, int), np.array(labels, int),
    )  # fmt: skip


def test_small_objects_are_those_of_the_smallest_class():
    boxes = [(40, 40)] * 95 + [(10, 10)] * 5  # five in a hundred: not in the smallest tenth, but a class
    sides, small = object_sides(summary([(400, 200)], boxes, [0] * 100, [0] * 95 + [1] * 5))
    assert small == pytest.approx(10 / 400)
    assert sides.max() == pytest.approx(40 / 400)


def test_a_class_with_one_object_in_a_thousand_does_not_count():
    boxes = [(40, 40)] * 999 + [(1, 1)]
    assert object_sides(summary([(400, 200)], boxes, [0] * 1000, [0] * 999 + [1]))[1] == pytest.approx(0.1)


def test_sides_are_relative_to_their_own_image():
    sides, _ = object_sides(summary([(100, 50), (50, 200)], [(10, 10), (10, 10)], [0, 1], [0, 0]))
    assert sides.tolist() == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize(
    ("sizes", "longer", "expected"),
    [
        ([(640, 480)] * 3, 400, (384, 288)),
        ([(480, 640)] * 3, 400, (384, 288)),  # upright images: mmdet compares longer with longer side
        ([(100, 100)], 320, (320, 320)),
        ([(1000, 10)], 320, (320, 32)),
    ],
)
def test_the_scale_has_the_aspect_ratio_of_the_images(sizes, longer, expected):
    assert fit_scale(summary(sizes), longer) == expected


def test_sides_are_multiples_of_the_stride():
    assert [rounded(v) for v in (1, 47, 49, 320)] == [32, 32, 64, 320]


def test_a_backbone_without_a_level_is_named():
    levels = Levels("vit", {16: 0}, {16: 192})
    assert levels.at((16,)) == ([0], [192])
    with pytest.raises(ConfigError, match=r"`model` vit: has no level of stride 8, only \[16\]"):
        levels.at((8, 16))
