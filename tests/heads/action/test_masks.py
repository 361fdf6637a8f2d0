import numpy as np
import pytest
import torch

from visionattn.heads.action.masks import box_masks, grid_size, heat_masks, joint_targets, patch_masks


def test_published_rasters(shared_dir):
    """Their masks are by frame, column and row, flattened."""
    files = sorted((shared_dir / "parity/pose").glob("pose_rasterisers*.pt"))
    assert files
    for file in files:
        record = torch.load(file, weights_only=True)
        points = record["inputs"]["keypoints_xy"].numpy()
        frames, joints = points.shape[:2]
        for name, expected in record["outputs"].items():
            if name.startswith("patch_idx_inflation_"):
                level = name.rsplit("_", 1)[1]
                found = patch_masks(points, (224, 224), 16, None if level == "None" else int(level))
                assert np.array_equal(found.transpose(0, 2, 1).reshape(-1), expected.numpy().astype(bool))
            elif name == "joint_labels":
                found = joint_targets(points, (224, 224), 16).transpose(0, 2, 1, 3).reshape(-1, joints)
                assert np.array_equal(found, expected.numpy().astype(bool))
        assert frames


def slow_masks(points, size, patch, inflation):
    """A loop with Python's int()."""
    rows, columns = grid_size(size, patch)
    masks = np.zeros((len(points), rows, columns), bool)
    for mask, frame in zip(masks, points, strict=True):
        for x, y in frame:
            if not (np.isfinite(x) and np.isfinite(y)):
                continue
            x, y = int(x), int(y)
            if 0 <= x < size[1] and 0 <= y < size[0]:
                r, c = y // patch, x // patch
                mask[max(0, r - inflation) : r + inflation + 1, max(0, c - inflation) : c + inflation + 1] = True
    return masks


@pytest.mark.parametrize("inflation", [0, 1, 3])
@pytest.mark.parametrize("size", [(33, 70), (16, 16), (7, 100)])
def test_masks_of_odd_sizes(size, inflation):
    points = np.random.default_rng(0).uniform(-20, 110, (5, 9, 2))
    points[0, 0] = np.nan
    points[0, 1] = np.inf, 3
    points[1, 2] = 1e300, 2
    points[1, 3] = -0.5, -0.99
    points[2, 4] = -1, -1
    assert np.array_equal(patch_masks(points, size, 8, inflation), slow_masks(points, size, 8, inflation))


def test_people_are_joined_and_absent_ones_leave_nothing():
    points = np.full((2, 2, 3, 2), np.nan)
    points[0, 0, 1], points[0, 1, 2] = (1, 1), (20, 9)
    masks = patch_masks(points, (16, 32), 8, None)
    assert np.argwhere(masks).tolist() == [[0, 0, 0], [0, 1, 2]]
    assert np.argwhere(joint_targets(points, (16, 32), 8)).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert not patch_masks(np.zeros((2, 0, 3, 2)), (16, 16), 8).any()


def test_boxes():
    boxes = [
        np.array([[3, 0, 8, 8.5], [np.nan, 0, 5, 5], [30, 30, 20, 20]]),
        np.zeros((0, 4)),
        [[-np.inf, 9, 1e9, 9.1]],
    ]
    masks = box_masks(boxes, (20, 30), 8)
    assert np.argwhere(masks[0]).tolist() == [[0, 0], [1, 0]]
    assert not masks[1].any()
    assert np.argwhere(masks[2]).tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]]


def test_heat_maps():
    heat = np.zeros((1, 2, 9, 16), np.float32)
    heat[0, 0, 8, 15], heat[0, 1, 0, 0], heat[0, 1, 1, 1] = 0.25, np.nan, 7
    assert heat_masks(heat, 8).tolist() == [[[1.0, 0.0], [0.0, 0.25]]]
    with pytest.raises(ValueError, match=r"`heat` must be .* got \(2, 2\)"):
        heat_masks(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patch_masks(np.zeros((2, 3)), (8, 8)), r"`points` must be .* got \(2, 3\)"),
        (
            lambda: patch_masks(np.zeros((2, 3, 2)), (0, 8)),
            r"`size` and `patch` must be at least 1, got \(0, 8\) and 16",
        ),
        (
            lambda: patch_masks(np.zeros((2, 3, 2)), (8, 8), 8, -1),
            "`inflation` must be None or a whole number of at least 0, got -1",
        ),
        (lambda: box_masks([np.zeros((0, 4))], (8, 8), 8, -1), "`inflation` must be None or a whole number"),
        (lambda: joint_targets(np.zeros((2, 2)), (8, 8)), r"must be \[T, J, 2\]"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
