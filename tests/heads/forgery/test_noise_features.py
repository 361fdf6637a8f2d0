"""Fixed statistics and a network on residuals."""

import pytest
import torch

from visionattn.heads.forgery.noise import NoiseFeatures, NoiseStatistics


def test_shapes_at_any_size():
    model = NoiseFeatures(8).eval()
    for size, expected in (((64, 96), (16, 24)), ((50, 33), (14, 10))):
        out = model(torch.randn(2, 3, *size))
        assert out.shape == (2, model.out_chans, *expected) == (2, 56, *expected)
        assert out.isfinite().all()


def test_the_statistics_come_first():
    model, alone = NoiseFeatures(8).eval(), NoiseStatistics(0).eval()
    x = torch.randn(1, 3, 48, 48)
    assert torch.equal(model(x)[:, :48], alone(x))


def test_a_single_pixel_is_seen_at_its_place():
    torch.manual_seed(0)
    model = NoiseFeatures(16).eval()
    plain, marked = torch.zeros(1, 3, 128, 128), torch.zeros(1, 3, 128, 128)
    marked[..., 65, 30] = 1
    change = (model(marked) - model(plain))[0, 48:].abs().sum(0)
    rows, columns = change.nonzero(as_tuple=True)
    assert len(rows)
    assert (rows - 65 // 4).abs().max() <= 5
    assert (columns - 30 // 4).abs().max() <= 5


def test_every_parameter_learns():
    model = NoiseFeatures(8).train()
    model(torch.randn(2, 3, 64, 64))[:, 48:].square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


@pytest.mark.parametrize("learned", [0, -4, 6])
def test_wrong_width(learned):
    with pytest.raises(ValueError, match=f"`learned` must be .* got {learned}"):
        NoiseFeatures(learned)
