"""Deformable convolution v1 and v2 (modulated), with the kernels of torchvision."""

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  registers the operators used below
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .common import operator, work_dtype

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]

# torchvision computes all gradients in one call, whereas mmcv requests the gradient of the weight in a second call with
# the same grad_output. The first call stores it here.
_weight_grads: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


FAR = 1e6  # offset in pixels that is outside of any map


def _prepare(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    """Prepare the tensors for torchvision: the same dtype, no missing tensor, no NaN offsets.

    At NaN offsets, the compiled operator of mmcv samples zero and the CPU kernel of torchvision reads out of bounds.
    """
    mask = mask if mask is not None else input.new_zeros(len(input), 1)
    bias = bias if bias is not None else input.new_zeros(weight.size(0))
    dtype = work_dtype(input)
    input, weight, offset, mask, bias = (t.to(dtype) for t in (input, weight, offset, mask, bias))
    return input, weight, offset.nan_to_num(FAR, FAR, -FAR), mask, bias


def _convolve(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry: tuple
) -> Tensor:
    tensors = _prepare(input, weight, offset, mask, bias)
    return torch.ops.torchvision.deform_conv2d(*tensors, *geometry, mask is not None)


def _gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, geometry: tuple
) -> tuple[Tensor, ...]:
    """Compute the gradients with respect to input, weight, offset, mask and bias."""
    tensors = _prepare(input, weight, offset, mask, None)
    return torch.ops.torchvision._deform_conv2d_backward(
        grad_output.to(tensors[0].dtype), *tensors, *geometry, mask is not None
    )


@operator
def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution (Dai et al., 2017), written to `output` ``[N, C_out, H_out, W_out]``.

    Args:
        input: ``[N, C_in, H, W]``.
        weight: ``[C_out, C_in / group, kH, kW]``.
        offset: (y, x) per kernel position in pixels, ``[N, deformable_group * kH * kW * 2, H_out, W_out]``.
        output: written in place.
        columns, ones, im2col_step: buffers and options of compiled kernels; not used.
        kW, kH, dW, dH, padW, padH, dilationW, dilationH: kernel size, stride, padding and dilation.
        group, deformable_group: numbers of channel groups for the weights and for the offsets.
    """
    if not output.numel():
        return
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, None, None, geometry))


@operator
def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of `deform_conv_forward` with respect to input and offset to `grad_input`, `grad_offset`."""
    if not grad_output.numel():
        return
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grads = _gradients(grad_output, input, weight, offset, None, geometry)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])
    _weight_grads[grad_output] = (input.data_ptr(), offset.data_ptr(), grad_output._version, grads[1])


@operator
def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Write the gradient of `deform_conv_forward` with respect to the weight, times `scale`, to `grad_weight`."""
    if not grad_output.numel():
        return
    *same, grad = _weight_grads.pop(grad_output, (None,))
    if same != [input.data_ptr(), offset.data_ptr(), grad_output._version]:
        geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
        # the gradient does not depend on the values of the weight
        grad = _gradients(grad_output, input, torch.zeros_like(grad_weight), offset, None, geometry)[1]
    grad_weight.copy_(grad * scale)


def _read_as(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Reinterpret offsets or masks ``[N, K, H, W]`` as maps of the output size ``[N, K, *size]``.

    Compiled kernels ignore H and W: they read the memory of each image as if its maps had the size of the output.
    DyHead in mmdet passes maps of the finer level, and its published weights were trained in this way.
    """
    if maps.shape[2:] == size or maps[0, 0].numel() < size[0] * size[1]:
        return maps  # torchvision raises an error if the maps are too small
    return maps.flatten(1)[:, : maps.size(1) * size[0] * size[1]].unflatten(1, (maps.size(1), *size))


def _write_as_read(target: Tensor, grad: Tensor) -> None:
    """Write the gradient of `_read_as` with respect to its argument."""
    if target.shape == grad.shape:
        target.copy_(grad)
    else:
        grad = grad.flatten(1)
        target.copy_(F.pad(grad, (0, target[0].numel() - grad.size(1))).view_as(target))


@operator
def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution (Zhu et al., 2019), written to `output` ``[N, C_out, H_out, W_out]``.

    Args:
        input, weight, offset: see `deform_conv_forward`.
        bias: ``[C_out]``, used if `with_bias`.
        mask: modulation per kernel position, ``[N, deformable_group * kernel_h * kernel_w, H_out, W_out]``.
        output: written in place.
        ones, columns: buffers of compiled kernels; not used.
    """
    if not output.numel():
        return
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    offset, mask = (_read_as(t, output.shape[2:]) for t in (offset, mask))
    output.copy_(_convolve(input, weight, offset, mask, bias if with_bias else None, geometry))


@operator
def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients of `modulated_deform_conv_forward` to the five ``grad_*`` tensors."""
    if not grad_output.numel():
        return
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    offset, mask = (_read_as(t, grad_output.shape[2:]) for t in (offset, mask))
    grads = _gradients(grad_output, input, weight, offset, mask, geometry)
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    _write_as_read(grad_offset, grads[2])
    _write_as_read(grad_mask, grads[3])
    if with_bias:
        grad_bias.copy_(grads[4])
