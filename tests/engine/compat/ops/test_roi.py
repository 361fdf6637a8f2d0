"""RoI operators against loops over bins and samples; the gradients of those by autograd."""

import math

import pytest
import torch

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops.border import border_align_backward, border_align_forward
from visionattn.engine.compat.ops.deform_roi import (
    deform_roi_pool_backward,
    deform_roi_pool_forward,
)
from visionattn.engine.compat.ops.roi import (
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)

# (image, x1, y1, x2, y2) in an image of 28 × 36 pixels, whose map has 7 × 9
ROIS = torch.tensor(
    [
        [0, 3.1, 2.3, 20.7, 17.9],
        [1, 0, 0, 36, 28],  # all of the map
        [1, -9, -7, 13, 9],  # beyond two sides
        [0, 25, 20, 60, 50],
        [1, 8.5, 6.5, 9.1, 7.2],  # smaller than a pixel
        [0, 12, 12, 12, 12],  # empty
        [1, 70, 70, 90, 90],  # outside
    ],
    dtype=torch.float64,
)
SCALE = 0.25
BINS = (2, 3)


def feature_map(channels=2, dtype=torch.float64, images=2):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(images, channels, 7, 9, generator=generator, dtype=torch.float64).to(dtype)


def bilinear(plane, y, x):
    """RoIAlign's lookup: zero beyond one pixel outside, the border's value closer than that."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.sum() * 0
    y, x = (v.clamp(min=0) if torch.is_tensor(v) else max(v, 0.0) for v in (y, x))
    y0, x0 = min(int(y), height - 1), min(int(x), width - 1)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = (y - y0 if y1 > y0 else 0), (x - x0 if x1 > x0 else 0)
    top = plane[y0, x0] * (1 - fx) + plane[y0, x1] * fx
    return top * (1 - fy) + (plane[y1, x0] * (1 - fx) + plane[y1, x1] * fx) * fy


def slow_roi_align(maps, rois, ratio, aligned, mode, offset=None, gamma=0.0, scale=SCALE):
    results = []
    for number, (image, *box) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (v * scale - 0.5 * aligned for v in box)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1), max(width, 1)
        bin_h, bin_w = height / BINS[0], width / BINS[1]
        rows = ratio or math.ceil(bin_h)
        columns = ratio or math.ceil(bin_w)
        for plane in maps[int(image)]:
            for i in range(BINS[0]):
                for j in range(BINS[1]):
                    dx = gamma * width * offset[number, 0, i, j] if offset is not None else 0
                    dy = gamma * height * offset[number, 1, i, j] if offset is not None else 0
                    samples = [
                        bilinear(
                            plane,
                            y1 + dy + bin_h * (i + (r + 0.5) / rows),
                            x1 + dx + bin_w * (j + (c + 0.5) / columns),
                        )
                        for r in range(rows)
                        for c in range(columns)
                    ] or [plane.sum() * 0]
                    stack = torch.stack(samples)
                    results.append(stack.max() if mode == 0 else stack.mean())
    return torch.stack(results).view(len(rois), maps.size(1), *BINS)


def upstream_gradient(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(8)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", [0, 1])
def test_roi_align(mode, ratio, aligned):
    maps = feature_map().requires_grad_()
    expected = slow_roi_align(maps, ROIS, ratio, aligned, mode)
    output = torch.full_like(expected, math.nan)
    argmax_y, argmax_x = (torch.full_like(output, math.nan) for _ in "yx")
    arguments = (*BINS, SCALE, ratio, mode, aligned)
    roi_align_forward(maps.detach(), ROIS, output, argmax_y, argmax_x, *arguments)
    torch.testing.assert_close(output, expected)

    grad_output = upstream_gradient(output.shape)
    grad_input = torch.full_like(maps, math.nan)
    roi_align_backward(grad_output, ROIS, argmax_y, argmax_x, grad_input, *arguments)
    (grad,) = torch.autograd.grad(expected, maps, grad_output)
    torch.testing.assert_close(grad_input, grad)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_gradient_of_many_boxes_of_all_sizes_is_that_of_torchvision(chunk, aligned, monkeypatch):
    monkeypatch.setattr("visionattn.engine.compat.ops.roi.MAX_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(150, 2, generator=generator, dtype=torch.float64) * 120 - 20
    sides = torch.rand(150, 2, generator=generator, dtype=torch.float64) ** 3 * 130 - 2  # a few turned inside out
    image = torch.randint(0, 3, (150, 1), generator=generator).double()
    rois = torch.cat([image, corner, corner + sides], 1)
    grad = torch.randn(150, 5, 4, 3, generator=generator, dtype=torch.float64)
    unused, found = torch.empty(0), torch.full((3, 5, 20, 26), torch.nan, dtype=torch.float64)
    roi_align_backward(grad, rois, unused, unused, found, 4, 3, SCALE, 0, 1, aligned)
    expected = torch.ops.torchvision._roi_align_backward(grad, rois, SCALE, 4, 3, 3, 5, 20, 26, 0, aligned)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 32])
@pytest.mark.parametrize("ratio", [0, 3])
@pytest.mark.parametrize("mode", [0, 1])
def test_roi_align_of_other_levels(mode, ratio, scale):
    """From a map as fine as the image, where most boxes lie partly outside, to one that makes all boxes tiny."""
    maps, rois = feature_map().requires_grad_(), ROIS[:5]
    expected = slow_roi_align(maps, rois, ratio, True, mode, scale=scale)
    output, argmax_y, argmax_x = (torch.full_like(expected, math.nan) for _ in range(3))
    arguments = (*BINS, scale, ratio, mode, True)
    roi_align_forward(maps.detach(), rois, output, argmax_y, argmax_x, *arguments)
    torch.testing.assert_close(output, expected)
    grad_output, grad_input = upstream_gradient(output.shape), torch.full_like(maps, math.nan)
    roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, *arguments)
    torch.testing.assert_close(grad_input, torch.autograd.grad(expected, maps, grad_output)[0])


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_roi_align_dtypes(dtype, mode):
    maps = feature_map(dtype=dtype)
    expected = slow_roi_align(maps.double(), ROIS.to(dtype).double(), 0, True, mode).to(dtype)
    output, argmax_y, argmax_x = (torch.empty_like(expected) for _ in range(3))
    roi_align_forward(maps, ROIS.to(dtype), output, argmax_y, argmax_x, *BINS, SCALE, 0, mode, True)
    torch.testing.assert_close(output, expected)
    grad_input = torch.full_like(maps, math.nan)
    roi_align_backward(
        torch.ones_like(output), ROIS.to(dtype), argmax_y, argmax_x, grad_input, *BINS, SCALE, 0, mode, True
    )
    assert grad_input.isfinite().all()


def slow_roi_pool(maps, rois):
    height, width = maps.shape[2:]
    results = []
    for image, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = x1 * SCALE, y1 * SCALE, (x2 + 1) * SCALE, (y2 + 1) * SCALE
        for plane in maps[int(image)]:
            for i in range(BINS[0]):
                for j in range(BINS[1]):
                    rows = [
                        math.floor(y1 + (y2 - y1) / BINS[0] * i),
                        math.ceil(y1 + (y2 - y1) / BINS[0] * (i + 1)),
                    ]
                    columns = [
                        math.floor(x1 + (x2 - x1) / BINS[1] * j),
                        math.ceil(x1 + (x2 - x1) / BINS[1] * (j + 1)),
                    ]
                    rows, columns = (
                        [min(max(v, 0), limit) for v in pair] for pair, limit in ((rows, height), (columns, width))
                    )
                    part = plane[rows[0] : rows[1], columns[0] : columns[1]]
                    proper = part.numel() and x2 > x1 and y2 > y1
                    results.append(part.max() if proper else plane.sum() * 0)
    return torch.stack(results).view(len(rois), maps.size(1), *BINS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_roi_pool(dtype):
    rois = torch.cat((ROIS, torch.tensor([[0.0, 20, 20, 10, 10]], dtype=torch.float64))).to(dtype)  # reversed
    maps = feature_map(dtype=dtype).requires_grad_()
    expected = slow_roi_pool(maps, rois)
    output = torch.full_like(expected, math.nan)
    argmax = torch.full(output.shape, 99, dtype=torch.int)
    roi_pool_forward(maps.detach(), rois, output, argmax, *BINS, SCALE)
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    assert (argmax[-2:] == -1).all()  # outside, and reversed

    grad_output = upstream_gradient(output.shape, dtype)
    grad_input = torch.full_like(maps, math.nan)
    roi_pool_backward(grad_output, rois, argmax, grad_input, *BINS, SCALE)
    exact = maps.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(slow_roi_pool(exact, rois), exact, grad_output.double())
    torch.testing.assert_close(grad_input, grad.to(dtype))


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("with_offset", [True, False])
@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_deform_roi_pool(ratio, with_offset, chunk, monkeypatch):
    monkeypatch.setattr("visionattn.engine.compat.ops.deform_roi.MAX_ELEMENTS", chunk)  # all boxes at once; one by one
    maps = feature_map().requires_grad_()
    rois = ROIS[[0, 1, 3, 5, 6]] + torch.tensor([0, 0.37, 0.41, 0.43, 0.59])  # no sample on a pixel centre
    offset = upstream_gradient((len(rois), 2, *BINS)).requires_grad_() if with_offset else None
    expected = slow_roi_align(maps, rois, ratio, True, 1, offset, gamma=0.1)
    given = offset.detach() if with_offset else maps.new_zeros(0)
    output = torch.full_like(expected, math.nan)
    deform_roi_pool_forward(maps.detach(), rois, given, output, *BINS, SCALE, ratio, 0.1)
    torch.testing.assert_close(output, expected)

    grad_output = upstream_gradient(output.shape)
    grad_input, grad_offset = torch.full_like(maps, math.nan), torch.full_like(given, math.nan)
    deform_roi_pool_backward(grad_output, maps.detach(), rois, given, grad_input, grad_offset, *BINS, SCALE, ratio, 0.1)
    grads = torch.autograd.grad(expected, (maps, offset) if with_offset else (maps,), grad_output)
    torch.testing.assert_close(grad_input, grads[0])
    if with_offset:
        assert grads[1].abs().sum() > 0
        torch.testing.assert_close(grad_offset, grads[1])


@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_border_align(chunk, monkeypatch):
    monkeypatch.setattr("visionattn.engine.compat.ops.border.MAX_ELEMENTS", chunk)
    pool_size, images, channels = 4, 2, 2
    maps = feature_map(4 * channels).requires_grad_()
    boxes = (ROIS[:5, 1:] * SCALE).repeat(images, 1, 1)
    boxes[1] += 0.3
    results = []
    for image in range(images):
        for channel in range(channels):
            for x1, y1, x2, y2 in boxes[image].tolist():
                step_x, step_y = (x2 - x1) / pool_size, (y2 - y1) / pool_size
                walks = ((y1, x1, 0, step_x), (y1, x1, step_y, 0), (y2, x2, 0, -step_x), (y2, x2, -step_y, 0))
                for side, (y, x, dy, dx) in enumerate(walks):
                    plane = maps[image, side * channels + channel]
                    samples = [bilinear(plane, y + k * dy, x + k * dx) for k in range(pool_size + 1)]
                    results.append(torch.stack(samples).max())
    expected = torch.stack(results).view(images, channels, boxes.size(1), 4)
    output, argmax = torch.full_like(expected, math.nan), torch.full(expected.shape, -9, dtype=torch.int)
    border_align_forward(maps.detach(), boxes, output, argmax, pool_size)
    torch.testing.assert_close(output, expected)

    grad_output, grad_input = upstream_gradient(output.shape), torch.full_like(maps, math.nan)
    border_align_backward(grad_output, boxes, argmax, grad_input, pool_size)
    (grad,) = torch.autograd.grad(expected, maps, grad_output)
    torch.testing.assert_close(grad_input, grad)


@pytest.mark.parametrize("column", [0, 1, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_boxes_that_are_no_numbers_pool_to_zero(bad, column):
    """As a diverged model gives; the other boxes are unharmed."""
    maps, rois = feature_map(), ROIS[:3].clone()
    rois[1, column] = bad

    def pool(rois):
        results = []
        shape = (len(rois), 2, *BINS)
        for mode in (0, 1):
            output, argmax_y, argmax_x = (maps.new_full(shape, math.nan) for _ in range(3))
            arguments = (*BINS, SCALE, 2, mode, True)
            roi_align_forward(maps, rois, output, argmax_y, argmax_x, *arguments)
            grad = torch.full_like(maps, math.nan)
            roi_align_backward(output, rois, argmax_y, argmax_x, grad, *arguments)
            results.append((output, grad))
        output, argmax = maps.new_full(shape, math.nan), torch.zeros(shape, dtype=torch.int)
        roi_pool_forward(maps, rois, output, argmax, *BINS, SCALE)
        roi_pool_backward(output, rois, argmax, grad := torch.full_like(maps, math.nan), *BINS, SCALE)
        results.append((output, grad))
        output, none = maps.new_full(shape, math.nan), maps.new_zeros(0)
        deform_roi_pool_forward(maps, rois, none, output, *BINS, SCALE, 2, 0.1)
        grad = torch.full_like(maps, math.nan)
        deform_roi_pool_backward(output, maps, rois, none, grad, none, *BINS, SCALE, 2, 0.1)
        return [*results, (output, grad)]

    for (output, grad), (other, other_grad) in zip(pool(rois), pool(rois[[0, 2]]), strict=True):
        assert torch.equal(output[[0, 2]], other)
        assert output[1].count_nonzero() == 0
        torch.testing.assert_close(grad, other_grad)


def test_no_boxes():
    maps, rois = feature_map(), torch.zeros(0, 5, dtype=torch.float64)
    output, argmax = maps.new_zeros(0, 2, *BINS), torch.zeros(0, 2, *BINS, dtype=torch.int)
    grad_input = torch.full_like(maps, math.nan)
    for mode in (0, 1):
        arguments = (*BINS, SCALE, 0, mode, True)
        roi_align_forward(maps, rois, output, output, output, *arguments)
        roi_align_backward(output, rois, output, output, grad_input.fill_(math.nan), *arguments)
        assert torch.equal(grad_input, torch.zeros_like(maps))
    roi_pool_forward(maps, rois, output, argmax, *BINS, SCALE)
    roi_pool_backward(output, rois, argmax, grad_input.fill_(math.nan), *BINS, SCALE)
    assert torch.equal(grad_input, torch.zeros_like(maps))
    deform_roi_pool_forward(maps, rois, maps.new_zeros(0), output, *BINS, SCALE, 0, 0.1)
    deform_roi_pool_backward(
        output,
        maps,
        rois,
        maps.new_zeros(0),
        grad_input.fill_(math.nan),
        maps.new_zeros(0),
        *BINS,
        SCALE,
        0,
        0.1,
    )
    assert torch.equal(grad_input, torch.zeros_like(maps))
