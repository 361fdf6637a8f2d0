"""Multi-scale deformable attention against scalar loops; gradients by autograd of the loops."""

import math

import pytest
import torch

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops.ms_deform import ms_deform_attn_backward, ms_deform_attn_forward

SHAPES = torch.tensor([[4, 5], [2, 3], [1, 1]])
STARTS = torch.tensor([0, 20, 26])
BATCH, HEADS, DIM, QUERIES, POINTS = 2, 2, 3, 4, 2


def make(dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    value = torch.randn(BATCH, 27, HEADS, DIM, generator=generator, dtype=torch.float64)
    places = (BATCH, QUERIES, HEADS, len(SHAPES), POINTS)
    locations = torch.rand(*places, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3  # some outside
    weights = torch.rand(places, generator=generator, dtype=torch.float64)
    return [t.to(dtype) for t in (value, locations, weights)]


def bilinear(pixels, height, width, y, x):
    y0, x0 = int(y.floor()), int(x.floor())
    total = pixels[0] * 0
    for i, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for j, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= i < height and 0 <= j < width:
                total = total + pixels[i * width + j] * wy * wx
    return total


def slow(value, locations, weights):
    rows = []
    for b in range(BATCH):
        for q in range(QUERIES):
            for h in range(HEADS):
                total = value[b, 0, h] * 0
                for level, (height, width) in enumerate(SHAPES.tolist()):
                    start = int(STARTS[level])
                    pixels = value[b, start : start + height * width, h]
                    for p in range(POINTS):
                        x, y = locations[b, q, h, level, p]
                        sample = bilinear(pixels, height, width, y * height - 0.5, x * width - 0.5)
                        total = total + sample * weights[b, q, h, level, p]
                rows.append(total)
    return torch.stack(rows).view(BATCH, QUERIES, HEADS * DIM)


def test_forward_and_backward():
    leaves = [t.requires_grad_() for t in make()]
    expected = slow(*leaves)
    value, locations, weights = (t.detach() for t in leaves)
    output = ms_deform_attn_forward(value, SHAPES, STARTS, locations, weights, im2col_step=64)
    assert not output.requires_grad
    torch.testing.assert_close(output, expected.detach())

    grad_output = torch.randn_like(output)
    targets = [torch.full_like(t, math.nan) for t in (value, locations, weights)]
    ms_deform_attn_backward(value, SHAPES, STARTS, locations, weights, grad_output, *targets, im2col_step=64)
    for target, wanted in zip(targets, torch.autograd.grad(expected, leaves, grad_output), strict=True):
        torch.testing.assert_close(target, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype):
    value, locations, weights = make(dtype)
    output = ms_deform_attn_forward(value, SHAPES, STARTS, locations, weights, 64)
    torch.testing.assert_close(output, slow(value.double(), locations.double(), weights.double()).to(dtype))


def test_autocast_does_not_lower_the_precision():
    value, locations, weights = make(torch.float32)
    plain = ms_deform_attn_forward(value, SHAPES, STARTS, locations, weights, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ms_deform_attn_forward(value, SHAPES, STARTS, locations, weights, 64), plain)


def test_no_queries():
    value, locations, weights = make()
    output = ms_deform_attn_forward(value, SHAPES, STARTS, locations[:, :0], weights[:, :0], 64)
    assert output.shape == (BATCH, 0, HEADS * DIM)
