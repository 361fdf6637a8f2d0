"""Dilation schedules, compared with the lists in the published configs."""

import pytest

from visionattn.backbones import resolve_dilations

DINAT = (3, 4, 18, 5)
DINAT_MINI = (3, 4, 6, 5)
DINAT_S = (2, 2, 18, 2)
AT_640 = [1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5]


@pytest.mark.parametrize(
    ("name", "depths", "expected"),
    [
        ("classification", DINAT, [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 9, [1] * 5]),
        ("classification", DINAT_MINI, [[1, 8, 1], [1, 4, 1, 4], [1, 2] * 3, [1] * 5]),
        ("classification_384", DINAT, [[1, 13, 1], [1, 6, 1, 6], [1, 3] * 9, [1] * 5]),
        ("detection", DINAT, [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]]),
        ("detection", DINAT_S, [[1, 28], [1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3]]),
        ("segmentation", DINAT, [[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2, 1, 2, 1]]),
        ("segmentation", DINAT_S, [[1, 16], [1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2]]),
        ("segmentation_640", DINAT, [[1, 20, 1], [1, 5, 1, 10], AT_640, [1, 2, 1, 2, 1]]),
        ("segmentation_640", DINAT_S, [[1, 20], [1, 10], AT_640, [1, 2]]),
        ("mask2former", DINAT, [[1, 14, 1], [1, 4, 1, 7], [1, 2, 1, 3] * 4 + [1, 3], [1] * 5]),
        ("auto", (2, 3), [[1, "auto"], [1, "auto", 1]]),
        (None, (2, 3), [[1, 1], [1, 1, 1]]),
        ([[2], [1, 5]], (1, 2), [[2], [1, 5]]),
    ],
)
def test_schedules(name, depths, expected):
    assert resolve_dilations(name, depths) == expected


def test_local_and_dilated_blocks_alternate_at_any_depth():
    for depth in range(1, 25):
        for level in resolve_dilations("detection", (depth,) * 4):
            assert all(dilation == 1 for dilation in level[::2])
            assert all(dilation > 1 for dilation in level[1::2])


@pytest.mark.parametrize(
    ("dilations", "message"),
    [
        ("dense", "`dilations` must be one of 'auto', .*, got 'dense'"),
        (2, "one sequence for each of 4 levels"),
        ([[1, 2]], "one sequence for each of 4 levels"),
        ([1, 2, 3, 4], r"`dilations\[0\]` must have 3 values"),
        ([[1, 8, 1], [1, 4, 1, 4], [1] * 6, [1, 1, 0, 1, 1]], r"`dilations\[3\]` must be integers >= 1"),
    ],
)
def test_bad_schedules(dilations, message):
    with pytest.raises(ValueError, match=message):
        resolve_dilations(dilations, DINAT_MINI)


def test_presets_are_for_four_levels():
    with pytest.raises(ValueError, match="`dilations`='detection' needs 4 levels, but `depths` has 2"):
        resolve_dilations("detection", (2, 2))
