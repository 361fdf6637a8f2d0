"""What a camera sees of a scan."""

import json

import numpy as np
import pytest

from visionattn.heads.lidar.data.camera_view import CameraView
from visionattn.heads.lidar.data.files import read_points
from visionattn.heads.lidar.data.folders import read_point_folder


@pytest.fixture
def view() -> CameraView:
    """A camera at the origin that looks along +x, 90 degrees wide, with a don't-care region at the left."""
    p2 = [[50.0, 0, 50, 0], [0, 50, 25, 0], [0, 0, 1, 0]]
    tr = [[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]
    return CameraView.from_matrices(p2, np.eye(3), tr, (100, 50), np.array([[0.0, 0, 30, 49]]))


def test_projection(view):
    uv, depth = view.pixels(np.array([[10.0, 0, 0], [10, 5, 1], [-10, 0, 0]]))
    np.testing.assert_allclose(uv[:2], [(50, 25), (25, 20)])
    np.testing.assert_allclose(depth, [10, 10, -10])
    points = np.array([[10.0, 0, 0], [-10, 0, 0], [10, 11, 0], [10, 0, 6], [10, -9, -4]])
    assert view.sees(points).tolist() == [True, False, False, False, True]


def test_dont_care_and_out_of_view(view):
    boxes = np.array([(10, 0, 0, 1, 1, 1, 0), (10, 8, 0, 1, 1, 1, 0.3), (-10, 0, 0, 1, 1, 1, 0)], float)
    assert view.counts(boxes).tolist() == [True, False, False]
    assert view.counts(boxes[:0]).tolist() == []
    left, top, right, bottom = view.image_boxes(boxes[:1])[0]
    np.testing.assert_allclose((left + right) / 2, 50)
    assert bottom - top == pytest.approx(50 / 9.5, rel=1e-6)  # by its near face


def test_it_moves_with_the_points(view):
    angle = 0.4
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[:2] *= [[1], [-1]]  # and mirrored
    matrix[:3, 3] = 1, 2, 0.5
    points = np.random.default_rng(0).uniform(-20, 20, (500, 3))
    moved = points @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_array_equal(view.moved(matrix).sees(moved), view.sees(points))
    assert view.sees(points).any()


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"`p2` must have shape \(3, 4\)"):
        CameraView.from_matrices(np.eye(3), np.eye(3), np.eye(4)[:3], (10, 10))
    with pytest.raises(ValueError, match=r"`r0_rect` must have shape \(3, 3\)"):
        CameraView.from_matrices(np.eye(4)[:3], np.eye(4), np.eye(4)[:3], (10, 10))


def test_real_frames_that_hold_only_what_the_camera_sees(shared_dir):
    """Their source cut them to the picture, so that the view must hold every point; of the others, a sector."""
    folder = shared_dir / "data" / "lidar"
    for frame in read_point_folder(folder):
        if frame.labelled_region is None:
            continue
        seen = frame.labelled_region.sees(read_points(frame.path).points)
        content = json.loads(frame.path.with_suffix(".json").read_text())
        if content["field_of_view"].startswith("camera"):
            assert seen.all()
        else:
            assert 0.1 < seen.mean() < 0.25
        for entry, rectangle in zip(
            content["boxes"], frame.labelled_region.image_boxes(frame.boxes), strict=True
        ):  # their own rectangles were drawn by hand
            if entry["truncated"] == 0 and entry["occluded"] == 0:
                assert np.abs(rectangle - entry["bbox_2d_xyxy"]).max() < 20
