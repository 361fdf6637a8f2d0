"""Boxes and points: corners, containment and overlap from above."""

import numpy as np
import pytest

from visionattn.heads.lidar.data.boxes import (
    bev_corners,
    bev_overlaps,
    box_corners,
    count_points,
    points_in_box,
    wrap_angle,
)

BOX = np.array([1.0, 2.0, 3.0, 4.0, 2.0, 1.0, np.pi / 2])


def test_corners_of_a_turned_box():
    np.testing.assert_allclose(bev_corners(BOX)[0], [(0, 4), (0, 0), (2, 0), (2, 4)], atol=1e-12)
    corners = box_corners(BOX)[0]
    np.testing.assert_allclose(corners[:4, 2], 2.5)
    np.testing.assert_allclose(corners[4:, 2], 3.5)
    np.testing.assert_allclose(corners[:4, :2], corners[4:, :2])


def test_points_in_a_box():
    points = np.array([(1, 2, 3), (1.9, 3.9, 3.4), (2.1, 2, 3), (1, 4.1, 3), (1, 2, 3.6), (2, 4, 3.5)])
    assert points_in_box(points, BOX).tolist() == [0, 1, 5]
    assert points_in_box(points, BOX, margin=0.2).tolist() == [0, 1, 2, 3, 4, 5]
    assert count_points(points, np.stack([BOX, BOX + np.eye(7)[0] * 9])).tolist() == [3, 0]


def test_heading_matters():
    """A point ahead of the box along its heading is inside, one at its side is not."""
    for heading in np.linspace(-3, 3, 13):
        box = np.array([0, 0, 0, 4, 1, 1, heading])
        ahead = np.array([[1.9 * np.cos(heading), 1.9 * np.sin(heading), 0]])
        beside = np.array([[-1.9 * np.sin(heading), 1.9 * np.cos(heading), 0]])
        assert len(points_in_box(ahead, box)) == 1
        assert len(points_in_box(beside, box)) == 0


def test_overlap_agrees_with_polygons():
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(0)
    a, b = (
        np.column_stack([rng.uniform(-6, 6, (60, 3)), rng.uniform(0.3, 5, (60, 3)), rng.uniform(-4, 4, 60)])
        for _ in "ab"
    )
    found = bev_overlaps(a, b)
    first, second = ([shapely.Polygon(c) for c in bev_corners(boxes)] for boxes in (a, b))
    expected = np.array([[p.intersection(q).area > 1e-9 for q in second] for p in first])
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(found, expected)


def test_boxes_that_touch_do_not_overlap():
    a = np.array([[0, 0, 0, 2, 2, 2, 0.0]])
    b = np.array([[2, 0, 0, 2, 2, 2, 0.0], [1.99, 0, 9, 2, 2, 2, 0]])
    assert bev_overlaps(a, b).tolist() == [[False, True]]
    assert bev_overlaps(a, np.zeros((0, 7))).shape == (1, 0)


def test_angles():
    np.testing.assert_allclose(
        wrap_angle(np.array([np.pi, -np.pi, 4.0, 7.0])), [-np.pi, -np.pi, 4 - 2 * np.pi, 7 - 2 * np.pi]
    )


def test_counts_of_real_frames(shared_dir):
    import json

    for path in sorted((shared_dir / "data" / "lidar").glob("*.bin")):
        entries = json.loads(path.with_suffix(".json").read_text())["boxes"]
        if entries:
            points = np.fromfile(path, "<f4").reshape(-1, 4)
            counts = count_points(points, np.array([entry["box"] for entry in entries]))
            assert counts.tolist() == [entry["num_points_inside"] for entry in entries]
