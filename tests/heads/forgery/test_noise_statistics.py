"""Local statistics of noise and compression."""

import cv2
import numpy as np
import torch

from visionattn.heads.forgery.noise import MEAN, QUANTITIES, STD, NoiseStatistics


def normalised(image: np.ndarray) -> torch.Tensor:
    """BGR uint8 to a batch of one."""
    rgb = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    return (rgb - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def photo(size=(128, 128)) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3)).astype(np.uint8)
    image = cv2.resize(small, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8)


def test_the_basis_is_that_of_the_dct():
    block = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    got = (NoiseStatistics(0).dct[:, 0] * torch.from_numpy(block)).sum((1, 2)).reshape(8, 8)
    assert np.allclose(got.numpy(), cv2.dct(block), atol=1e-5)


def test_shapes_at_any_size():
    for size, expected in (((64, 96), (16, 24)), ((50, 33), (14, 10))):
        model = NoiseStatistics().eval()
        assert model.quantities(torch.randn(2, 3, *size)).shape == (2, QUANTITIES, *expected)
        out = model(torch.randn(2, 3, *size))
        assert out.shape == (2, model.out_chans, *expected)
        assert out.isfinite().all()
    plain = NoiseStatistics(0)
    assert not list(plain.parameters())
    assert plain(torch.randn(1, 3, 64, 64)).shape == (1, 48, 16, 16)


def test_edits_stand_out():
    image = photo()
    halves = {}
    for name, changed in (
        ("blur", cv2.GaussianBlur(image, (5, 5), 0)),
        ("noise", np.clip(image + np.random.default_rng(1).normal(0, 12, image.shape), 0, 255).astype(np.uint8)),
    ):
        mixed = image.copy()
        mixed[:, 64:] = changed[:, 64:]
        halves[name] = NoiseStatistics().quantities(normalised(mixed))[0]
    for index in (2, 3, 6):  # residuals of luma, and the highest band
        assert halves["blur"][index, :, 18:].mean() < halves["blur"][index, :, :14].mean() - 0.7
        assert halves["noise"][index, :, 18:].mean() > halves["noise"][index, :, :14].mean() + 0.4


def test_compression_shows_in_its_blocks():
    image = cv2.GaussianBlur(photo(), (0, 0), 1)
    compressed = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 20])[1], cv2.IMREAD_COLOR)
    before, after = (NoiseStatistics().quantities(normalised(p))[0].mean((1, 2)) for p in (image, compressed))
    assert after[14] > before[14] + 0.03  # small coefficients
    assert after[15] > before[15] + 0.1  # borders of blocks
    shifted = np.roll(compressed, 4, (0, 1))
    assert NoiseStatistics().quantities(normalised(shifted))[0, 15].mean() < after[15] - 0.1


def test_autocast_does_not_touch_the_statistics():
    x, model = normalised(photo()), NoiseStatistics(0).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = model(x)
    assert torch.allclose(inside.float(), model(x), atol=1e-3)
