"""Degradations of robustness tests."""

import numpy as np
import pytest

from visionattn.data.degrade import DEGRADATION_LEVELS, degrade


def picture():
    return np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", DEGRADATION_LEVELS)
def test_each_level_takes_more_away(kind):
    image = picture()
    errors = [np.abs(degrade(image, kind, level).astype(int) - image).mean() for level in DEGRADATION_LEVELS[kind]]
    assert degrade(image, kind, DEGRADATION_LEVELS[kind][0]).shape == image.shape
    assert errors == sorted(errors)
    assert errors[-1] > errors[0] > 0


def test_noise_has_its_variance_and_seed():
    flat = np.full((200, 200, 3), 128, np.uint8)
    noisy = degrade(flat, "noise", 11, seed=1).astype(float)
    assert np.var(noisy) == pytest.approx(11 + 1 / 12, rel=0.05)  # rounding adds a twelfth
    assert np.array_equal(noisy, degrade(flat, "noise", 11, seed=1))
    assert not np.array_equal(noisy, degrade(flat, "noise", 11, seed=2))


@pytest.mark.parametrize(("kind", "level"), [("x", 1), ("jpeg", 0), ("blur", 4), ("noise", -1), ("resize", 2)])
def test_wrong_levels(kind, level):
    with pytest.raises(ValueError, match=f"kind='{kind}'"):
        degrade(picture(), kind, level)
