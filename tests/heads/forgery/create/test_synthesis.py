"""Synthetic forgeries: exact masks, labels, repeatability, every operation."""

import json

import cv2
import numpy as np
import pytest

from visionattn.heads.forgery.create.regions import REGION_SHAPES, feathered, random_region, superpixels
from visionattn.heads.forgery.create.scenes import new_content, scene_region, seam
from visionattn.heads.forgery.create.synthesis import ALL_OPERATIONS, ForgerySynthesis
from visionattn.io.images import jpeg_round_trip


def photo(seed=0, size=(96, 128)):
    """Smooth shapes with grain."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size[0] // 16, size[1] // 16, 3)).astype(np.uint8)
    image = cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ALL_OPERATIONS)
def test_only_the_mask_changes(name):
    image = photo()
    kept = image.copy()
    synthesis = ForgerySynthesis([name], quality=None, feather=0, donor=lambda rng: (photo(7, (120, 200)), None))
    made = 0
    for seed in range(4):
        forgery = synthesis(image, seed, forge=True)
        made += forgery.label
        assert forgery.label == int(forgery.mask.any())
        outside = forgery.mask == 0
        assert np.array_equal(forgery.image[outside], image[outside])
        if forgery.label:
            assert forgery.steps[0]["operation"] == name
            assert np.abs(forgery.image[~outside].astype(int) - image[~outside]).mean() >= 1
            assert 0.004 < forgery.mask.mean() < 0.8
            json.dumps(forgery.steps, allow_nan=False)
    assert made >= 3
    assert np.array_equal(image, kept)


def test_feathering_stays_near_the_mask():
    image = photo()
    for seed in range(6):
        forgery = ForgerySynthesis(["noise"], quality=None, feather=4)(image, seed, forge=True)
        near = cv2.dilate(forgery.mask, np.ones((17, 17), np.uint8)) > 0
        assert np.array_equal(forgery.image[~near], image[~near])
    alpha = feathered(np.pad(np.ones((20, 20), bool), 10), 4)
    assert alpha[20, 20] == pytest.approx(1, abs=1e-4)
    assert alpha[0, 0] == 0
    assert 0.3 < alpha[20, 10] < 0.7


def test_the_same_seed_gives_the_same_forgery():
    image, synthesis = photo(), ForgerySynthesis()
    for seed in range(12):
        one, two = synthesis(image, seed), synthesis(image, seed)
        assert np.array_equal(one.image, two.image)
        assert np.array_equal(one.mask, two.mask)
        assert one.steps == two.steps
    assert len({synthesis(image, seed).image.tobytes() for seed in range(12)}) == 12


def test_forged_and_untouched_pictures_are_saved_alike():
    image, synthesis = photo(), ForgerySynthesis(["noise"], probability=0.5, quality=(80, 90))
    found = [synthesis(image, seed) for seed in range(60)]
    assert 15 < sum(f.label for f in found) < 45
    for forgery in found:
        assert forgery.steps[-1]["operation"] == "save"
        assert 80 <= forgery.steps[-1]["quality"] <= 90
        if not forgery.label:
            assert not forgery.mask.any()
            assert np.array_equal(forgery.image, jpeg_round_trip(image, forgery.steps[-1]["quality"]))


def test_a_copy_is_found_where_it_says():
    image = photo()
    synthesis = ForgerySynthesis(["copy_move"], quality=None, feather=0, geometry=0, colour_match=0)
    plain = [f for f in (synthesis(image, s, forge=True) for s in range(12)) if f.label and "flip" not in f.steps[0]]
    assert plain
    for forgery in plain:
        dx, dy = (int(v) for v in forgery.steps[0]["shift"])
        ys, xs = np.nonzero(forgery.mask)
        inside = (ys - dy >= 0) & (ys - dy < 96) & (xs - dx >= 0) & (xs - dx < 128)
        assert np.array_equal(forgery.image[ys, xs][inside], image[(ys - dy)[inside], (xs - dx)[inside]])


def test_objects_of_a_donor_are_cut_out():
    donor, thing = photo(3), np.zeros((96, 128), bool)
    thing[30:60, 40:80] = True
    synthesis = ForgerySynthesis(["splice"], quality=None, geometry=0, feather=0, donor=lambda rng: (donor, thing))
    forgery = synthesis(photo(), 1, forge=True)
    assert forgery.steps[0]["shape"] == "object"
    assert forgery.mask.sum() == thing.sum()


@pytest.mark.parametrize("shape", REGION_SHAPES)
def test_regions(shape):
    image = photo()
    rng = np.random.default_rng(0)
    shares = [random_region(rng, image, (0.05, 0.2), [shape], margin=4) for _ in range(15)]
    for mask, name in shares:
        assert name == shape
        assert mask.any()
        assert not mask[:4].any()
        assert not mask[:, -4:].any()
    assert 0.03 < np.mean([m.mean() for m, _ in shares]) < 0.25


def test_superpixels_cover_the_picture_and_follow_edges():
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 29:] = 200
    cells = superpixels(image, 16, np.random.default_rng(0))
    assert cells.shape == (64, 64)
    assert cells.min() == 0
    assert len(np.unique(cells)) == 16
    mixed = sum(1 for c in np.unique(cells) if 0.1 < (cells == c)[:, :27].sum() / (cells == c).sum() < 0.9)
    assert mixed <= 2  # a grid of squares would have four across the edge


def test_wrong_arguments():
    for arguments in (
        dict(operations=["x"]), dict(area=(0.5, 0.1)), dict(probability=2), dict(quality=(0, 5)), dict(shapes=["x"])
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
            ForgerySynthesis(**arguments)
    with pytest.raises(ValueError, match="uint8"):
        ForgerySynthesis()(np.zeros((64, 64, 3)))


def landscape(size=(96, 128)):
    """Sky above ground, and an object in the middle."""
    image = np.empty((*size, 3), np.uint8)
    image[:48], image[48:] = (230, 180, 120), (60, 110, 70)
    cv2.circle(image, (64, 50), 18, (30, 30, 200), -1)
    noise = np.random.default_rng(0).normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_stuff_is_one_part_of_the_scene():
    image = landscape()
    parts = []
    for seed in range(12):
        mask = scene_region(np.random.default_rng(seed), image, 0.3, "stuff")
        sky = mask[:44].sum() / mask.sum()
        circle = cv2.circle(np.zeros(mask.shape, np.uint8), (64, 50), 16, 1, -1).astype(bool)
        parts.append(max(sky, mask[52:].sum() / mask.sum(), (mask & circle).sum() / mask.sum()))
        assert 0.2 < mask.mean() < 0.45
    assert np.median(parts) > 0.85


def test_background_leaves_the_object():
    image = landscape()
    circle = cv2.circle(np.zeros(image.shape[:2], np.uint8), (64, 50), 16, 1, -1).astype(bool)
    for seed in range(6):
        mask = scene_region(np.random.default_rng(seed), image, 0.6, "background")
        assert mask.mean() > 0.45
        assert mask[[0, -1]].any() or mask[:, [0, -1]].any()
        assert mask[circle].mean() < 0.2


def test_new_content_resembles_the_surroundings():
    image = landscape()
    mask = np.zeros(image.shape[:2], bool)
    mask[8:30, 8:40] = True  # in the sky
    made = new_content(np.random.default_rng(0), image, mask)
    assert np.array_equal(made[~mask], image[~mask])
    assert np.abs(made[mask].mean(0) - image[mask].mean(0)).max() < 6
    assert not np.array_equal(made[mask], image[mask])
    assert 0.4 < made[mask].std(0).mean() / image[mask].std(0).mean() < 2.5
    assert seam(image, made, mask) < 1.5
    assert seam(image, np.where(mask[..., None], 0, image).astype(np.uint8), mask) > 5
    assert seam(image, image, mask) == 1


def test_visible_seams_are_discarded():
    image, donor = landscape(), np.zeros((200, 200, 3), np.uint8)
    options = dict(operations=["splice"], feather=0, colour_match=0, quality=None, donor=lambda rng: (donor, None))
    assert all(ForgerySynthesis(**options)(image, seed, forge=True).label for seed in range(3))
    assert not any(ForgerySynthesis(**options, max_seam=2.0)(image, seed, forge=True).label for seed in range(3))
    scenes = ForgerySynthesis(["regenerate"], shapes=("stuff", "background"), area=(0.2, 0.5), max_seam=3.0)
    found = [scenes(image, seed, forge=True) for seed in range(4)]
    assert sum(forgery.label for forgery in found) >= 3
    assert {step["shape"] for forgery in found for step in forgery.steps[:-1]} <= {"stuff", "background"}
    with pytest.raises(ValueError, match="`max_seam` must be positive, got 0"):
        ForgerySynthesis(max_seam=0)
