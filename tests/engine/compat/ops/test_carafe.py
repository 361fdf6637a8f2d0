"""CARAFE against a loop over its output pixels; gradients by autograd of the loop."""

import math

import pytest
import torch

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops.carafe import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
)


def slow(features, masks, kernel_size, groups, scale):
    batch, channels, height, width = features.shape
    reach = kernel_size // 2
    rows = []
    for n in range(batch):
        for c in range(channels):
            group = c // (channels // groups)
            for y in range(height * scale):
                for x in range(width * scale):
                    total = features.sum() * 0
                    for k in range(kernel_size**2):
                        i = y // scale + k // kernel_size - reach
                        j = x // scale + k % kernel_size - reach
                        if 0 <= i < height and 0 <= j < width:
                            weight = masks[n, group * kernel_size**2 + k, y, x]
                            total = total + features[n, c, i, j] * weight
                    rows.append(total)
    return torch.stack(rows).view(batch, channels, height * scale, width * scale)


def make(kernel_size, groups, scale, dtype=torch.float64):
    generator = torch.Generator().manual_seed(9)
    features = torch.randn(2, 4, 3, 2, generator=generator, dtype=torch.float64)
    masks = torch.randn(2, groups * kernel_size**2, 3 * scale, 2 * scale, generator=generator, dtype=torch.float64)
    return features.to(dtype), masks.to(dtype)


@pytest.mark.parametrize("chunk", [1 << 24, 1])  # the whole map at once; row by row
@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize(("kernel_size", "groups", "scale"), [(3, 1, 2), (5, 2, 2), (1, 1, 1), (3, 4, 3)])
def test_forward_and_backward(kernel_size, groups, scale, naive, chunk, monkeypatch):
    monkeypatch.setattr("visionattn.engine.compat.ops.carafe.MAX_ELEMENTS", chunk)
    arguments = {"kernel_size": kernel_size, "group_size": groups, "scale_factor": scale}
    leaves = [t.requires_grad_() for t in make(kernel_size, groups, scale)]
    expected = slow(*leaves, kernel_size, groups, scale)
    features, masks = (t.detach() for t in leaves)
    output = torch.full_like(expected, math.nan)
    grad_output = torch.randn_like(output)
    grads = [torch.full_like(t, math.nan) for t in leaves]
    if naive:
        carafe_naive_forward(features, masks, output, **arguments)
        carafe_naive_backward(grad_output, features, masks, *grads, **arguments)
    else:
        kept = torch.full_like(features, math.nan)  # all that mmcv saves of the features
        carafe_forward(features, masks, kept, output.clone(), masks.clone(), output, **arguments)
        spare = [torch.empty_like(t) for t in (output, output, features, masks)]
        carafe_backward(grad_output, kept, masks, *spare, *grads, **arguments)
    torch.testing.assert_close(output, expected.detach())
    for got, wanted in zip(grads, torch.autograd.grad(expected, leaves, grad_output), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    features, masks = make(3, 2, 2, dtype)
    expected = slow(features.double(), masks.double(), 3, 2, 2).to(dtype)
    output = torch.full_like(expected, math.nan)
    carafe_naive_forward(features, masks, output, 3, 2, 2)
    torch.testing.assert_close(output, expected)
