"""High-pass residuals."""

import torch

from visionattn.heads.forgery.noise import MEAN, STD, HighPassResidual


def normalised(grey: torch.Tensor) -> torch.Tensor:
    return (grey / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def test_slopes_leave_nothing():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    image = normalised((40 + 3 * x + 2 * y).expand(1, 3, 20, 24))
    residual = HighPassResidual(0).residuals(image)[..., 3:-3, 3:-3]
    assert residual.abs().max() < 1e-3


def test_a_spot_gives_the_filter_in_grey_levels():
    image = torch.full((1, 3, 11, 11), 100.0)
    image[..., 5, 5] += 8
    residual = HighPassResidual(0).residuals(normalised(image))[0]
    assert torch.allclose(residual[0, 5, 4:7], torch.tensor([4.0, -8, 4]), atol=1e-3)
    assert torch.allclose(residual[1, 4:7, 5], torch.tensor([4.0, -8, 4]), atol=1e-3)
    assert torch.allclose(residual[2, 4:7, 5], torch.tensor([4.0, -8, 4]), atol=1e-3)
    assert torch.allclose(residual[3, 5, 5], torch.tensor(-8.0), atol=1e-3)
    assert residual[4:].abs().max() < 1e-2  # grey has no chroma


def test_strength_tells_noise_apart():
    torch.manual_seed(0)
    image = torch.full((1, 3, 32, 64), 120.0)
    image[..., 32:] += 6 * torch.randn(1, 3, 32, 32)
    out = HighPassResidual(0)(normalised(image))
    assert out.shape == (1, 12, 32, 64)
    assert out[:, 6:10, :, 40:].min() > out[:, 6:10, :, :24].max() + 1
    learned = HighPassResidual(5)
    assert learned(normalised(image)).shape == (1, 5, 32, 64)
    assert "kernels" not in learned.state_dict()
