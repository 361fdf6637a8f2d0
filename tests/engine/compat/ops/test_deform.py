"""Deformable convolution against the sums of its definition; their gradients by autograd."""

import gc
import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmcv")
from visionattn.engine.compat.ops import deform

# kernel, stride, padding, dilation, groups of channels, groups of offsets; (rows, columns)
GEOMETRIES = [
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, 1),
    ((3, 2), (2, 1), (1, 0), (1, 2), 2, 1),
    ((1, 3), (1, 2), (0, 2), (1, 1), 2, 2),
    ((2, 3), (2, 2), (1, 2), (2, 2), 2, 4),
]
INPUT = (2, 4, 5, 6)
OUT_CHANNELS = 4


def bilinear(plane, y, x):
    """The map read between pixels, zero outside."""
    height, width = plane.shape
    y0, x0 = int(y.floor()), int(x.floor())
    total = plane.sum() * 0
    for i, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
        for j, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
            if 0 <= i < height and 0 <= j < width:
                total = total + plane[i, j] * wy * wx
    return total


def slow(input, weight, offset, mask, geometry):
    kernel, stride, padding, dilation, groups, offset_groups = geometry
    batch, channels = input.shape[:2]
    taps = kernel[0] * kernel[1]
    rows = []
    for n in range(batch):
        for o in range(weight.size(0)):
            for oy in range(offset.size(2)):
                for ox in range(offset.size(3)):
                    total = input.sum() * 0
                    for c in range(channels // groups):
                        source = o // (weight.size(0) // groups) * (channels // groups) + c
                        part = source // (channels // offset_groups)
                        for k in range(taps):
                            dy, dx = offset[n, (part * taps + k) * 2 : (part * taps + k) * 2 + 2, oy, ox]
                            y = oy * stride[0] - padding[0] + k // kernel[1] * dilation[0] + dy
                            x = ox * stride[1] - padding[1] + k % kernel[1] * dilation[1] + dx
                            value = bilinear(input[n, source], y, x) * weight[o, c, k // kernel[1], k % kernel[1]]
                            total = total + (value * mask[n, part * taps + k, oy, ox] if mask is not None else value)
                    rows.append(total)
    return torch.stack(rows).view(batch, weight.size(0), *offset.shape[2:])


def make(geometry, dtype=torch.float64):
    kernel, stride, padding, dilation, groups, offset_groups = geometry
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(OUT_CHANNELS, INPUT[1] // groups, *kernel, generator=generator, dtype=torch.float64)
    input = torch.randn(INPUT, generator=generator, dtype=torch.float64)
    plain = F.conv2d(input, weight, None, stride, padding, dilation, groups)
    taps = kernel[0] * kernel[1] * offset_groups
    offset = torch.randn(INPUT[0], 2 * taps, *plain.shape[2:], generator=generator, dtype=torch.float64) * 1.5
    mask = torch.rand(INPUT[0], taps, *plain.shape[2:], generator=generator, dtype=torch.float64)
    return [t.to(dtype) for t in (input, weight, offset, mask)], plain.to(dtype)


def v1_arguments(geometry):
    kernel, stride, padding, dilation, groups, offset_groups = geometry
    return {
        "kH": kernel[0], "kW": kernel[1], "dH": stride[0], "dW": stride[1],
        "padH": padding[0], "padW": padding[1], "dilationH": dilation[0], "dilationW": dilation[1],
        "group": groups, "deformable_group": offset_groups, "im2col_step": 2,
    }  # fmt: skip


def v2_arguments(geometry):
    kernel, stride, padding, dilation, groups, offset_groups = geometry
    return {
        "kernel_h": kernel[0], "kernel_w": kernel[1], "stride_h": stride[0], "stride_w": stride[1],
        "pad_h": padding[0], "pad_w": padding[1], "dilation_h": dilation[0], "dilation_w": dilation[1],
        "group": groups, "deformable_group": offset_groups,
    }  # fmt: skip


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_deform_conv(geometry):
    (input, weight, offset, _), plain = make(geometry)
    leaves = [t.clone().requires_grad_() for t in (input, weight, offset)]
    expected = slow(*leaves, None, geometry)
    work = input.new_empty(0)
    output = torch.full_like(plain, math.nan)
    arguments = v1_arguments(geometry)
    deform.deform_conv_forward(input, weight, offset, output, work, work, **arguments)
    torch.testing.assert_close(output, expected)

    grad_output = torch.randn_like(output)
    grads = torch.autograd.grad(expected, leaves, grad_output)
    grad_input, grad_weight, grad_offset = (torch.full_like(t, math.nan) for t in leaves)
    for _ in range(2):  # the weight's gradient, first left over from the other call, then by itself
        if grad_input.isnan().any():
            deform.deform_conv_backward_input(
                input, offset, grad_output, grad_input, grad_offset, weight, work, **arguments
            )
        deform.deform_conv_backward_parameters(
            input, offset, grad_output, grad_weight, work, work, scale=1, **arguments
        )
        for got, wanted in zip((grad_input, grad_weight, grad_offset), grads, strict=True):
            torch.testing.assert_close(got, wanted)
        grad_weight.fill_(math.nan)
    deform.deform_conv_backward_parameters(input, offset, grad_output, grad_weight, work, work, scale=0.5, **arguments)
    torch.testing.assert_close(grad_weight, grads[1] / 2)


def test_leftover_gradient_is_used_only_for_its_own_call():
    geometry = GEOMETRIES[0]
    (input, weight, offset, _), plain = make(geometry)
    work, arguments = input.new_empty(0), v1_arguments(geometry)
    grad_output = torch.randn_like(plain)
    grad_input, grad_weight, grad_offset = (torch.empty_like(t) for t in (input, weight, offset))

    def backward_input():
        deform.deform_conv_backward_input(
            input, offset, grad_output, grad_input, grad_offset, weight, work, **arguments
        )

    def backward_weight(source):
        deform.deform_conv_backward_parameters(
            source, offset, grad_output, grad_weight, work, work, scale=1, **arguments
        )
        return grad_weight.clone()

    fresh = backward_weight(input)
    backward_input()
    torch.testing.assert_close(backward_weight(input * 2), fresh * 2)  # another input
    backward_input()
    grad_output *= 3
    torch.testing.assert_close(backward_weight(input), fresh * 3)  # changed in place


def test_leftover_gradient_goes_with_grad_output():
    geometry = GEOMETRIES[0]
    (input, weight, offset, _), grad_output = make(geometry)
    targets = torch.empty_like(input), torch.empty_like(offset)
    deform.deform_conv_backward_input(
        input, offset, grad_output, *targets, weight, input.new_empty(0), **v1_arguments(geometry)
    )
    assert grad_output in deform._weight_grads
    del grad_output
    gc.collect()
    assert not deform._weight_grads


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_modulated_deform_conv(geometry, with_bias):
    (input, weight, offset, mask), plain = make(geometry)
    bias = torch.randn(OUT_CHANNELS, dtype=torch.float64) if with_bias else input.new_zeros(0)
    leaves = [t.clone().requires_grad_() for t in (input, weight, offset, mask)]
    expected = slow(*leaves, geometry)
    if with_bias:
        leaves.append(bias.clone().requires_grad_())
        expected = expected + leaves[-1][:, None, None]
    work = input.new_empty(0)
    output = torch.full_like(plain, math.nan)
    arguments = v2_arguments(geometry) | {"with_bias": with_bias}
    deform.modulated_deform_conv_forward(input, weight, bias, work, offset, mask, output, work, **arguments)
    torch.testing.assert_close(output, expected)

    grad_output = torch.randn_like(output)
    grad_bias = torch.full_like(bias, math.nan)
    got = [torch.full_like(t, math.nan) for t in (input, weight, offset, mask)]
    deform.modulated_deform_conv_backward(
        input, weight, bias, work, offset, mask, work, got[0], got[1], grad_bias, got[2], got[3], grad_output,
        **arguments,
    )  # fmt: skip
    grads = torch.autograd.grad(expected, leaves, grad_output)
    for result, wanted in zip([*got, grad_bias][: len(leaves)], grads, strict=True):
        torch.testing.assert_close(result, wanted)


def test_larger_offsets_are_read_as_memory():
    """What mmdet's DyHead relies on: of larger maps, the first numbers of each image count, in output layout."""
    geometry = GEOMETRIES[1]
    (input, weight, offset, mask), plain = make(geometry)
    work, arguments = input.new_empty(0), v2_arguments(geometry) | {"with_bias": False}
    grad_output = torch.randn_like(plain)

    def run(offset, mask):
        output = torch.full_like(plain, math.nan)
        deform.modulated_deform_conv_forward(input, weight, work, work, offset, mask, output, work, **arguments)
        grads = [torch.full_like(t, math.nan) for t in (input, weight, work, offset, mask)]
        deform.modulated_deform_conv_backward(
            input, weight, work, work, offset, mask, work, *grads, grad_output, **arguments
        )
        return output, grads

    def enlarge(maps):
        larger = torch.randn(*maps.shape[:2], maps.size(2) * 2, maps.size(3) + 1, dtype=maps.dtype)
        larger.flatten(1)[:, : maps[0].numel()] = maps.flatten(1)
        return larger

    output, grads = run(offset, mask)
    larger_output, larger_grads = run(enlarge(offset), enlarge(mask))
    assert torch.equal(larger_output, output)
    for grad, larger in zip(grads[:3], larger_grads[:3], strict=True):
        assert torch.equal(larger, grad)
    for grad, larger in zip(grads[3:], larger_grads[3:], strict=True):
        assert torch.equal(larger.flatten(1)[:, : grad[0].numel()], grad.flatten(1))
        assert larger.flatten(1)[:, grad[0].numel() :].count_nonzero() == 0
    with pytest.raises(RuntimeError, match="output dims"):
        run(offset[..., 1:], mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_zero_offsets(dtype):
    """Without offsets and with a mask of one it is an ordinary convolution."""
    geometry = GEOMETRIES[1]
    (input, weight, offset, mask), plain = make(geometry, dtype)
    output, work = torch.empty_like(plain), input.new_empty(0)
    zeros, ones = torch.zeros_like(offset), torch.ones_like(mask)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float32 else {}
    deform.deform_conv_forward(input, weight, zeros, output, work, work, **v1_arguments(geometry))
    torch.testing.assert_close(output, plain, **tolerance)
    deform.modulated_deform_conv_forward(
        input, weight, work, work, zeros, ones, output.fill_(math.nan), work,
        **v2_arguments(geometry), with_bias=False,
    )  # fmt: skip
    torch.testing.assert_close(output, plain, **tolerance)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_offset_that_is_no_number_reads_zero(bad):
    """As a diverged model gives; it reads beyond the border instead of beyond the memory."""
    geometry = GEOMETRIES[0]
    (input, weight, offset, _), plain = make(geometry)
    work, outputs, arguments = input.new_empty(0), [], v1_arguments(geometry)
    for value in (bad, 100):
        offset[:, 3] = value
        outputs.append(torch.full_like(plain, math.nan))
        deform.deform_conv_forward(input, weight, offset, outputs[-1], work, work, **arguments)
        grads = [torch.full_like(t, math.nan) for t in (input, offset)]
        deform.deform_conv_backward_input(input, offset, plain, *grads, weight, work, **arguments)
        outputs += grads
    for got, wanted in zip(outputs[:3], outputs[3:], strict=True):
        assert torch.equal(got, wanted)


def test_empty_batch():
    geometry = GEOMETRIES[0]
    (input, weight, offset, mask), plain = make(geometry)
    work = input.new_empty(0)
    deform.modulated_deform_conv_forward(
        input[:0], weight, work, work, offset[:0], mask[:0], plain[:0], work,
        **v2_arguments(geometry), with_bias=False,
    )  # fmt: skip
