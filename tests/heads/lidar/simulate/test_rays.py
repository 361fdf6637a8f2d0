"""Rays against shapes: distances that can be worked out, occlusion, and the columns that are tried."""

import numpy as np
import pytest

from visionattn.heads.lidar.simulate.rays import Body, Cylinder, Ellipsoid, Lidar, Material, cast, prism

STONE = Material(0.5, 0.0)
LIDAR = Lidar(beams=16, azimuths=720, max_range=60.0)


def level(x, y):
    return np.full_like(x, -LIDAR.height)


def grey(x, y):
    return np.full_like(x, 0.2)


def scan(*bodies, lidar=LIDAR, ground=level):
    return cast(lidar, ground, bodies, np.random.default_rng(0), grey)


def places(hits, lidar=LIDAR, owner=None):
    met = np.isfinite(hits.distance) if owner is None else hits.owner == owner
    return lidar.directions[met] * hits.distance[met][:, None]


def test_level_ground():
    hits = scan()
    down = LIDAR.elevation < -np.arcsin(LIDAR.height / LIDAR.max_range)
    assert np.isfinite(hits.distance[down]).all()
    assert np.isinf(hits.distance[~down]).all()
    np.testing.assert_allclose(places(hits)[:, 2], -LIDAR.height, atol=1e-9)


def test_slope():
    hits = scan(ground=lambda x, y: -LIDAR.height + 0.03 * x - 0.01 * y)
    x, y, z = places(hits).T
    assert len(x) > 3000
    np.testing.assert_allclose(z, -LIDAR.height + 0.03 * x - 0.01 * y, atol=0.05)


@pytest.mark.parametrize("heading", [0.0, 0.7, 2.5])
def test_points_on_a_box_lie_on_its_faces(heading):
    size = np.array([4.0, 2.0, 1.5])
    hits = scan(Body([prism((8, 5, -1), size, heading, STONE)], 0))
    points = places(hits, owner=0) - [8, 5, -1]
    c, s = np.cos(heading), np.sin(heading)
    local = np.abs(points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])) / (size / 2)
    assert len(points) > 50
    np.testing.assert_allclose(local.max(1), 1, atol=1e-9)


def test_no_ray_is_missed_by_the_choice_of_columns():
    """A body seen from all sides, across the seam at pi and around the sensor, against all columns."""
    rng = np.random.default_rng(0)
    for place in [(-6, 0.1, -1), (-6, -0.1, 0), (5, 5, -1), (0.5, 0.2, -1), *rng.uniform(-9, 9, (20, 3))]:
        shape = prism(place, (3.0, 2.0, 1.5), 0.4, STONE, taper=(0.3, 0.1, 0.1), bevel=0.2)
        enter, leave, _ = shape.cross(LIDAR.directions)
        expected = (enter < leave) & (enter > 0.5) & (enter <= LIDAR.max_range)
        hits = scan(Body([shape], 0), ground=lambda x, y: np.full_like(x, -1e6))
        np.testing.assert_array_equal(hits.owner == 0, expected)
        assert hits.alone[0] == expected.sum()


def test_cylinder_and_ellipsoid():
    round_post = Cylinder(np.array([10.0, 2.0]), 1.0, -1.0, 2.0, STONE)
    points = places(scan(Body([round_post], 0)), owner=0)
    np.testing.assert_allclose(np.hypot(points[:, 0] - 10, points[:, 1] - 2), 1, atol=1e-9)
    assert points[:, 2].min() >= -1
    assert points[:, 2].max() <= 2
    assert np.linalg.norm(points[:, :2], axis=1).max() < np.hypot(10, 2)  # the near side
    ball = Ellipsoid(np.array([10.0, 2.0, 0.0]), np.array([2.0, 1.0, 0.5]), STONE, heading=0.5)
    points = places(scan(Body([ball], 0)), owner=0) - ball.center
    c, s = np.cos(0.5), np.sin(0.5)
    local = points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) / ball.radii
    np.testing.assert_allclose(np.linalg.norm(local, axis=1), 1, atol=1e-9)
    assert len(local) > 20


def test_what_is_nearer_hides_what_is_behind():
    wall = Body([prism((10, 0, 0), (0.2, 40, 8), 0, STONE)])
    thing = Body([prism((15, 0, -1), (2, 2, 2), 0, STONE)], 0)
    beside = Body([prism((-15, 0, -1), (2, 2, 2), 0, STONE)], 1)
    for order in ((wall, thing, beside), (beside, thing, wall)):
        hits = scan(*order)
        assert not (hits.owner == 0).any()
        assert hits.alone[0] > 0
        assert (hits.owner == 1).sum() == hits.alone[1]


def test_leaves_let_rays_in():
    leaves = Material(0.3, 0.0, density=1.0)
    crown = Ellipsoid(np.array([8.0, 0, 0]), np.full(3, 2.0), leaves)
    wall = Body([prism((14, 0, 0), (0.2, 60, 20), 0, STONE)], 1)
    hits = scan(Body([crown], 0), wall)
    inside = np.linalg.norm(places(hits, owner=0) - crown.center, axis=1)
    assert inside.max() <= 2.0
    assert inside.std() > 0.2  # not only its surface
    behind = places(hits, owner=1)
    assert (np.hypot(behind[:, 1], behind[:, 2]) < 2).any()  # some rays come through


def test_sensor():
    big = Lidar()
    assert big.directions.shape == (64, 1800, 3)
    np.testing.assert_allclose(np.linalg.norm(big.directions, axis=-1), 1)
    assert (np.diff(big.elevation) < 0).all()
    assert np.degrees(big.elevation[[0, -1]]).round(2).tolist() == [2.0, -24.33]
    for bad in ({"beams": 0}, {"azimuths": 4}, {"height": 0}, {"dropout": 1}, {"noise": -1}):
        with pytest.raises(ValueError, match="must be"):
            Lidar(**bad)
