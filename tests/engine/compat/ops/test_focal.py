"""Focal losses against scalar loops in double precision; gradients by autograd of the loops."""

import math

import pytest
import torch

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops.focal import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)

CLASSES = 4
TARGET = torch.tensor([0, 3, 2, -1, 4, 1, 1])  # -1 is ignored, 4 is mmdet's background
LABELLED = (TARGET >= 0) & (TARGET < CLASSES)


def logits(dtype=torch.float64):
    generator = torch.Generator().manual_seed(11)
    return (torch.randn(len(TARGET), CLASSES, generator=generator, dtype=torch.float64) * 3).to(dtype)


def class_weight(weighted, dtype=torch.float64):
    return torch.tensor([0.5, 2, 1.5, 0.1] if weighted else [], dtype=dtype)


def slow_sigmoid(x, target, weight, gamma, alpha):
    rows = []
    for row, label in zip(x, target.tolist(), strict=True):
        factor = weight[label] if len(weight) and 0 <= label < CLASSES else 1
        for c, v in enumerate(row):
            p = 1 / (1 + torch.exp(-v))
            loss = -alpha * (1 - p) ** gamma * p.log() if c == label else -(1 - alpha) * p**gamma * (1 - p).log()
            rows.append(loss * factor)
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.9)])
def test_sigmoid(gamma, alpha, weighted):
    x, weight = logits().requires_grad_(), class_weight(weighted)
    expected = slow_sigmoid(x, TARGET, weight, gamma, alpha)
    output, grad = (torch.full_like(x, math.nan) for _ in range(2))
    sigmoid_focal_loss_forward(x.detach(), TARGET, weight, output, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(output, expected.detach())
    sigmoid_focal_loss_backward(x.detach(), TARGET, weight, grad, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sigmoid_dtypes(dtype):
    x, weight = logits(dtype), class_weight(True, dtype)
    expected = slow_sigmoid(x.double(), TARGET, weight.double(), 2.0, 0.25)
    output = torch.full_like(x, math.nan)
    sigmoid_focal_loss_forward(x, TARGET, weight, output, 2.0, 0.25)
    torch.testing.assert_close(output, expected.to(dtype))


def test_sigmoid_extreme_logits_stay_exact():
    """A confident mistake costs its logit, also where float32 rounds the probability to 0 or 1."""
    x = torch.tensor([[-200.0, 200.0]])
    output, grad = torch.empty_like(x), torch.empty_like(x)
    sigmoid_focal_loss_forward(x, torch.tensor([0]), x.new_zeros(0), output, 2.0, 0.25)
    torch.testing.assert_close(output, torch.tensor([[0.25 * 200, 0.75 * 200]]))
    sigmoid_focal_loss_backward(x, torch.tensor([0]), x.new_zeros(0), grad, 2.0, 0.25)
    torch.testing.assert_close(grad, torch.tensor([[-0.25, 0.75]]))


def slow_softmax(x, target, weight, gamma, alpha):
    rows = []
    for row, label in zip(x, target.tolist(), strict=True):
        if not 0 <= label < CLASSES:
            rows.append(row.sum() * 0)
            continue
        p = row[label].exp() / row.exp().sum()
        rows.append(-alpha * (1 - p) ** gamma * p.log() * (weight[label] if len(weight) else 1))
    return torch.stack(rows)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 1.0), (0.5, 0.9)])
def test_softmax(gamma, alpha, weighted):
    x, weight = logits().requires_grad_(), class_weight(weighted)
    expected = slow_softmax(x, TARGET, weight, gamma, alpha)
    assert (expected[LABELLED] > 0).all()
    probabilities = x.detach().softmax(1)
    output, buffer = (torch.full((len(TARGET),), math.nan, dtype=torch.float64) for _ in range(2))
    softmax_focal_loss_forward(probabilities, TARGET, weight, output, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(output, expected.detach())
    grad = torch.full_like(x, math.nan)
    softmax_focal_loss_backward(probabilities, TARGET, weight, buffer, grad, gamma=gamma, alpha=alpha)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), x)[0])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_softmax_of_certainty_is_finite(gamma):
    probabilities, target = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    output, buffer, grad = torch.empty(2), torch.empty(2), torch.empty(2, 2)
    softmax_focal_loss_forward(probabilities, target, torch.zeros(0), output, gamma, 0.25)
    softmax_focal_loss_backward(probabilities, target, torch.zeros(0), buffer, grad, gamma, 0.25)
    assert output[0] == 0
    assert output[1] > 20
    assert grad.isfinite().all()


def test_no_rows():
    x, target = torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.long)
    sigmoid_focal_loss_forward(x, target, torch.zeros(0), x, 2.0, 0.25)
    sigmoid_focal_loss_backward(x, target, torch.zeros(0), x, 2.0, 0.25)
    softmax_focal_loss_forward(x, target, torch.zeros(0), torch.zeros(0), 2.0, 0.25)
    softmax_focal_loss_backward(x, target, torch.zeros(0), torch.zeros(0), x, 2.0, 0.25)
