"""Augmentation: points stay in their boxes, and everything random comes from the generator."""

import numpy as np
import pytest

from visionattn.heads.lidar.data.augment import (
    Compose,
    DropPoints,
    RandomFlip,
    RandomRotation,
    RandomScaling,
    RandomTranslation,
    RangeFilter,
    ShufflePoints,
    move,
)
from visionattn.heads.lidar.data.boxes import points_in_box
from visionattn.heads.lidar.data.camera_view import CameraView

MOVES = (
    RandomFlip(1.0, 0.0),
    RandomFlip(0.0, 1.0),
    RandomFlip(1.0, 1.0),
    RandomRotation((0.5, 3.0)),
    RandomScaling((0.5, 2.0)),
    RandomTranslation(2.0),
    Compose([RandomFlip(), RandomRotation(), RandomScaling(), RandomTranslation(0.5)]),
)


@pytest.fixture
def item():
    rng = np.random.default_rng(0)
    boxes = np.column_stack(
        [rng.uniform(-20, 20, (9, 3)), rng.uniform(1, 5, (9, 3)), rng.uniform(-np.pi, np.pi, 9)]
    ).astype(np.float32)
    corner = rng.uniform(-0.49, 0.49, (9, 40, 3)) * boxes[:, None, 3:6]
    c, s = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    xyz = np.stack(
        [corner[..., 0] * c - corner[..., 1] * s, corner[..., 0] * s + corner[..., 1] * c, corner[..., 2]], -1
    )
    points = np.concatenate([(xyz + boxes[:, None, :3]).reshape(-1, 3), np.arange(360)[:, None] / 360], 1)
    view = CameraView.from_matrices(
        [[50.0, 0, 50, 0], [0, 50, 25, 0], [0, 0, 1, 0]], np.eye(3), [[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]],
        (100, 50),
    )  # fmt: skip
    return {
        "points": points.astype(np.float32), "boxes": boxes[:8], "labels": np.arange(8) % 3,
        "difficulty": np.zeros(8, np.int64), "ignore_boxes": boxes[8:], "ignore_labels": np.array([-1]),
        "velocity": np.stack([np.cos(boxes[:8, 6]), np.sin(boxes[:8, 6])], 1), "labelled_region": view, "frame": "a",
    }  # fmt: skip


@pytest.mark.parametrize("transform", MOVES)
def test_what_is_in_a_box_stays_in_it(item, transform):
    before = {k: np.array(v) for k, v in item.items() if isinstance(v, np.ndarray)}
    changed = transform(item, np.random.default_rng(3))
    assert not np.allclose(changed["points"], before["points"])
    for key in ("boxes", "ignore_boxes"):
        for old, new in zip(item[key], changed[key], strict=True):
            was, now = (set(points_in_box(p, b, 1e-3)) for p, b in ((item["points"], old), (changed["points"], new)))
            assert was == now
            assert len(was) >= 40
    np.testing.assert_array_equal(changed["points"][:, 3], before["points"][:, 3])
    scale = changed["boxes"][:, 3] / before["boxes"][:, 3]
    ahead = np.stack([np.cos(changed["boxes"][:, 6]), np.sin(changed["boxes"][:, 6])], 1) * scale[:, None]
    np.testing.assert_allclose(changed["velocity"], ahead, atol=1e-5)  # they drive where they look
    assert np.abs(changed["boxes"][:, 6]).max() <= np.pi
    np.testing.assert_array_equal(
        changed["labelled_region"].sees(changed["points"]), item["labelled_region"].sees(item["points"])
    )
    for key, value in before.items():
        np.testing.assert_array_equal(item[key], value)  # the item that came in is as it was


def test_a_flip_by_hand():
    item = {"points": np.array([[1.0, 2, 3, 0.5]], np.float32), "ignore_boxes": np.zeros((0, 7), np.float32),
            "boxes": np.array([[1, 2, 3, 4, 2, 1, 0.3]], np.float32)}  # fmt: skip
    left_right = RandomFlip(1, 0)(item, np.random.default_rng())
    np.testing.assert_allclose(left_right["boxes"], [[1, -2, 3, 4, 2, 1, -0.3]], rtol=1e-6)
    np.testing.assert_allclose(left_right["points"], [[1, -2, 3, 0.5]])
    front_back = RandomFlip(0, 1)(item, np.random.default_rng())
    np.testing.assert_allclose(front_back["boxes"], [[-1, 2, 3, 4, 2, 1, np.pi - 0.3]], rtol=1e-6)


def test_a_turn_by_hand():
    item = {"points": np.array([[1.0, 0, 0, 0.5]], np.float32), "ignore_boxes": np.zeros((0, 7), np.float32),
            "boxes": np.array([[1, 0, 0, 4, 2, 1, 0.1]], np.float32)}  # fmt: skip
    turned = RandomRotation((np.pi / 2, np.pi / 2))(item, np.random.default_rng())
    np.testing.assert_allclose(turned["points"], [[0, 1, 0, 0.5]], atol=1e-6)
    np.testing.assert_allclose(turned["boxes"], [[0, 1, 0, 4, 2, 1, 0.1 + np.pi / 2]], atol=1e-6)


@pytest.mark.parametrize("transform", [*MOVES, DropPoints((0.1, 0.5)), ShufflePoints()])
def test_the_generator_decides(item, transform):
    first, again = (transform(item, np.random.default_rng(7))["points"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_how_often_a_flip_comes(item):
    rng = np.random.default_rng(0)
    same = np.mean([RandomFlip(0.3, 0.0)(item, rng) is item for _ in range(500)])
    assert 0.63 < same < 0.77


def test_range_filter(item):
    limits = np.array([-10, -10, -30, 10, 10, 30])
    changed = RangeFilter(limits)(item, np.random.default_rng())
    xy = item["points"][:, :2]
    np.testing.assert_array_equal(changed["points"], item["points"][(np.abs(xy) < 10).all(1)])
    inside = (np.abs(item["boxes"][:, :2]) < 10).all(1)
    assert 0 < inside.sum() < 8
    for key in ("boxes", "labels", "difficulty", "velocity"):
        np.testing.assert_array_equal(changed[key], item[key][inside])
    poor = RangeFilter(limits, least_points=10**6)(item, np.random.default_rng())
    assert len(poor["boxes"]) == 0
    np.testing.assert_array_equal(poor["ignore_boxes"][-inside.sum() :], item["boxes"][inside])
    assert len(poor["ignore_boxes"]) == len(poor["ignore_labels"])


def test_points_shuffled_and_dropped(item):
    rng = np.random.default_rng(0)
    shuffled = ShufflePoints()(item, rng)["points"]
    assert not np.array_equal(shuffled, item["points"])
    np.testing.assert_array_equal(shuffled[shuffled[:, 3].argsort()], item["points"])
    counts = [len(DropPoints((0.5, 0.5))(item, rng)["points"]) for _ in range(20)]
    assert 150 < np.mean(counts) < 210


def test_arguments():
    for make in (
        lambda: RandomFlip(1.2),
        lambda: RandomRotation((1, 0)),
        lambda: RandomScaling((0, 1)),
        lambda: RandomTranslation(-1),
        lambda: RangeFilter((0, 0, 0, 1, 1, 0)),
        lambda: DropPoints((0.5, 1.5)),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_an_empty_scan(item):
    empty = {**item, "points": item["points"][:0]} | {
        k: item[k][:0] for k in ("boxes", "labels", "difficulty", "velocity")
    }
    changed = Compose(list(MOVES))(empty, np.random.default_rng(0))
    assert changed["boxes"].shape == (0, 7)
    assert move(empty, np.eye(4))["points"].shape == (0, 4)
