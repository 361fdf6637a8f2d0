"""Several turns as one, and quaternions."""

import numpy as np
import pytest

from visionattn.heads.lidar.data.files import write_points
from visionattn.heads.lidar.data.sweeps import Sweep, SweepReader, rotation_matrix, transform


def test_rotation():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(rotation_matrix([half, 0, 0, half]) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation_matrix([2, 2, 0, 0]) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    q = np.random.default_rng(0).normal(size=4)
    np.testing.assert_allclose(rotation_matrix(q) @ rotation_matrix(q).T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(transform([1, 0, 0, 0], [1, 2, 3]) @ [0, 0, 0, 1], [1, 2, 3, 1])
    for bad in ([0, 0, 0, 0], [1, 0, 0]):
        with pytest.raises(ValueError, match="4 numbers"):
            rotation_matrix(bad)


def test_turns_are_brought_together(tmp_path):
    """A standing point seen twice while the vehicle drives 2 m ahead; a point on the vehicle goes."""
    write_points(tmp_path / "now.bin", np.array([[0.0, 8, 1, 200, 7], [0.5, 0.5, 0, 9, 1]]))
    write_points(tmp_path / "before.bin", np.array([[0.0, 10, 1, 100, 7], [0.5, 0.5, 0, 9, 1], [np.nan, 0, 0, 0, 0]]))
    sweep = Sweep(tmp_path / "before.bin", transform([1, 0, 0, 0], [0, -2, 0]), 0.05)
    found = SweepReader(tmp_path / "now.bin", [sweep])()
    expected = [[0, 8, 1, 200, 0], [0.5, 0.5, 0, 9, 0], [0, 8, 1, 100, 0.05]]
    np.testing.assert_allclose(found.points, expected, rtol=1e-6)
    assert found.dropped == 1
    assert found.points.dtype == np.float32
