"""Forgeries as albumentations transforms."""

import albumentations
import numpy as np
import pytest

from visionattn.heads.forgery.augment import ForgeryTransform, RandomCopyMove, RandomInpainting


def picture():
    return np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", [RandomCopyMove, RandomInpainting])
@pytest.mark.parametrize("top", [1, 255])
def test_a_window_is_changed_and_marked(kind, top):
    image, mask = picture(), np.zeros((60, 80), np.uint8)
    mask[0, 0] = top
    step = albumentations.Compose([kind(p=1)])
    for seed in range(8):
        step.set_random_seed(seed)
        out = step(image=image, mask=mask)
        marked = out["mask"] > 0
        marked[0, 0] = False
        rest = ~marked
        assert set(np.unique(out["mask"])) <= {0, top}
        assert np.array_equal(out["image"][rest], image[rest])
        ys, xs = np.nonzero(marked)
        assert 3 <= np.ptp(ys) + 1 < 48
        assert 4 <= np.ptp(xs) + 1 < 64


def test_a_copied_window_comes_from_the_picture():
    image = np.arange(60 * 80, dtype=np.uint16).reshape(60, 80)
    image = np.stack([image & 255, image >> 8, image * 0], 2).astype(np.uint8)  # each pixel once
    step = albumentations.Compose([RandomCopyMove(p=1)])
    step.set_random_seed(3)
    out = step(image=image, mask=np.zeros((60, 80), np.uint8))
    ys, xs = np.nonzero(out["mask"])
    window = out["image"][ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(int)
    number = window[..., 0] + 256 * window[..., 1]
    assert (np.diff(number, axis=1) == 1).all()
    assert (np.diff(number, axis=0) == 80).all()


def test_synthesis_in_a_compose():
    image = picture()
    step = albumentations.Compose([ForgeryTransform(operations=["noise"], quality=None, feather=0, p=1)])
    step.set_random_seed(0)
    one = step(image=image, mask=np.zeros((60, 80), np.uint8))
    assert one["mask"].any()
    assert np.array_equal(one["image"][one["mask"] == 0], image[one["mask"] == 0])
    step.set_random_seed(0)
    two = step(image=image, mask=np.zeros((60, 80), np.uint8))
    assert np.array_equal(one["image"], two["image"])
