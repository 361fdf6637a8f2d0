"""Cross-entropy with weights and ignored pixels."""

import pytest
import torch

pytest.importorskip("mmseg")

import visionattn.openmmlab  # noqa: F401
from visionattn.engine.parts.losses import CrossEntropyLoss
from visionattn.errors import ConfigError


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 7.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_agrees_with_pytorchs_mean(weights, smoothing):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 5, 4, generator=generator, requires_grad=True)
    label = torch.randint(0, 3, (2, 5, 4), generator=generator)
    label[0, :2] = 255
    loss = CrossEntropyLoss(weights, label_smoothing=smoothing, loss_weight=0.4)(scores, label, ignore_index=255)
    expected = 0.4 * torch.nn.functional.cross_entropy(
        scores, label, torch.tensor(weights) if weights else None, ignore_index=255, label_smoothing=smoothing
    )
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss, scores, retain_graph=True)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, scores)[0])
    assert not ours[0, :, :2].any()


def test_pixel_weights_take_pixels_out():
    scores, label = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    kept = torch.zeros(1, 4, 4)
    kept[:, 1] = 1
    loss = CrossEntropyLoss([1.0, 2.0, 3.0])(scores, label, weight=kept, ignore_index=255)
    torch.testing.assert_close(loss, CrossEntropyLoss([1.0, 2.0, 3.0])(scores[:, :, 1:2], label[:, 1:2]))


def test_nothing_to_learn_from_is_zero():
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = CrossEntropyLoss([1.0, 2.0, 3.0])(scores, torch.full((1, 4, 4), 255), ignore_index=255)
    loss.backward()
    assert loss == 0
    assert not scores.grad.any()


def test_half_precision_is_summed_in_float32():
    scores = torch.full((1, 2, 300, 300), 3.0, dtype=torch.bfloat16)
    loss = CrossEntropyLoss()(scores, torch.zeros(1, 300, 300, dtype=torch.long))
    torch.testing.assert_close(loss, torch.tensor(2.0).log())


def test_number_of_weights():
    with pytest.raises(ConfigError, match="class_weight has 2 values, but the head has 3 classes"):
        CrossEntropyLoss([1.0, 2.0])(torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
