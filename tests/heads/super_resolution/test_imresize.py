"""Resizing equal to MATLAB's."""

import numpy as np
import pytest
import torch

from visionattn.heads.super_resolution.imresize import downscale, imresize, to_uint8


def test_recorded_values(shared_dir):
    files = sorted((shared_dir / "parity/catanet").glob("sr_imresize_*.pt"))
    assert files
    for file in files:
        for case in torch.load(file, weights_only=True)["cases"]:
            found = imresize(case["image"].permute(1, 2, 0).numpy(), case["scale"])
            assert found.dtype == np.float32
            np.testing.assert_allclose(found.transpose(2, 0, 1), case["out"].numpy(), atol=1e-5)


def test_known_weights():
    """Half size of one row: the cubic kernel stretched by 2, at half-pixel centers."""
    row = np.zeros((1, 12))
    row[0, 6] = 1
    found = imresize(row, 0.5)[0]  # output i is centered at input 2i + 0.5
    cubic = {0.25: 1.5 / 64 - 2.5 / 16 + 1, 0.75: 1.5 * 27 / 64 - 2.5 * 9 / 16 + 1}
    far = {d: -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 for d in (1.25, 1.75)}
    np.testing.assert_allclose(found, [0, far[1.75] / 2, cubic[0.75] / 2, cubic[0.25] / 2, far[1.25] / 2, 0])


def test_flat_images_and_sizes():
    for scale, side in ((1 / 3, 5), (0.5, 7), (2, 26), (1.5, 20), (1, 13)):
        found = imresize(np.full((13, 13, 3), 7.0), scale)
        assert found.shape == (side, side, 3)
        np.testing.assert_allclose(found, 7)
    image = np.random.default_rng(0).integers(256, size=(9, 12), dtype=np.uint8)
    np.testing.assert_allclose(imresize(image, 1), image)
    with pytest.raises(ValueError, match="`scale` must be positive, got 0"):
        imresize(image, 0)


def test_rounding():
    assert to_uint8(np.array([-3, 0.4, 0.5, 1.5, 2.5, 254.6, 300])).tolist() == [0, 0, 1, 2, 3, 255, 255]
    image = np.random.default_rng(0).integers(256, size=(12, 18, 3), dtype=np.uint8)
    assert (downscale(image, 3) == to_uint8(imresize(image, 1 / 3))).all()
    assert downscale(image, 1) is image
