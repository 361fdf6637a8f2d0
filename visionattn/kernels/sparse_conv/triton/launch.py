"""Launches of the Triton kernels: block sizes and arguments. Nothing here needs a GPU.

Launches do not depend on the numbers of voxels, which vary between frames and are passed with each call. A weight of
three axes is that of a convolution, one of two axes that of a depthwise convolution.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from visionattn.kernels.precision import float32_precision
from visionattn.kernels.sparse_conv.triton.kernels import (
    convolution_kernel,
    depthwise_kernel,
    depthwise_weight_kernel,
    weight_kernel,
)
from visionattn.kernels.triton_launch import Launch, Layout, Pointer, Prepared, layout, plan_cache

__all__ = ["backward", "convolution_launch", "forward", "weight_launch"]

# Rows per block, largest number of channels per block, warps, stages, by size of a number in bytes and kernel.
_WAYS = {
    ("convolution", 2): (64, 64, 4, 3),
    ("convolution", 4): (32, 32, 4, 2),
    ("weight", 2): (64, 64, 4, 3),
    ("weight", 4): (32, 32, 4, 2),
}
_DEPTHWISE = (16, 128, 4, 2)
PART_ROWS, MOST_PARTS = 2048, 64  # of the gradient of the weight; independent of the GPU, so that results are, too


def _block(channels: int, most: int) -> int:
    return min(most, max(16, triton.next_power_of_2(channels)))


def _arguments(
    kernel: str, x: Layout, offsets: int, out: int | None, precision: str
) -> tuple[dict[str, Any], int, int]:
    """Arguments that both kernels share, warps and stages; ``out`` is None for the depthwise convolution."""
    channels, itemsize = x[0][1], x[2].itemsize
    shared = dict(
        x_ptr=Pointer(x[2]), table_ptr=Pointer(torch.int32), x_strides=x[1], rows=1, share=1, IN=channels,
        OFFSETS=offsets, PRECISION=precision,
    )  # fmt: skip
    if out is None:
        rows, most, *options = _DEPTHWISE
        return shared | dict(BLOCK_M=rows, BLOCK_IN=_block(channels, most)), *options
    rows, most, *options = _WAYS[kernel, itemsize]
    blocks = dict(BLOCK_M=rows, OUT=out, BLOCK_IN=_block(channels, most), BLOCK_OUT=_block(out, most))
    return shared | blocks, *options


def _named(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], warps: int, stages: int) -> Launch:
    return Launch(kernel, grid, {name: arguments[name] for name in kernel.arg_names}, warps, stages)


def convolution_launch(x: Layout, weight: Layout, precision: str) -> Launch:
    """The launch for one block of rows; the layout of ``x`` without the number of rows."""
    depthwise = len(weight[0]) == 2
    out = None if depthwise else weight[0][2]
    arguments, *options = _arguments("convolution", x, weight[0][0], out, precision)
    arguments |= dict(weight_ptr=Pointer(weight[2]), out_ptr=Pointer(x[2]), weight_strides=weight[1])
    across = triton.cdiv(x[0][1], arguments["BLOCK_IN"]) if depthwise else triton.cdiv(out, arguments["BLOCK_OUT"])
    return _named(depthwise_kernel if depthwise else convolution_kernel, (1, across), arguments, *options)


def weight_launch(x: Layout, grad: Layout, shape: tuple[int, ...], precision: str) -> Launch:
    """The launch for one part of the gradient of a weight of this shape."""
    depthwise = len(shape) == 2
    arguments, *options = _arguments("weight", x, shape[0], None if depthwise else shape[2], precision)
    arguments |= dict(grad_ptr=Pointer(grad[2]), parts_ptr=Pointer(torch.float32), grad_strides=grad[1])
    blocks = shape[0] * triton.cdiv(shape[1], arguments["BLOCK_IN"])
    if not depthwise:
        blocks *= triton.cdiv(shape[2], arguments["BLOCK_OUT"])
    return _named(depthwise_weight_kernel if depthwise else weight_kernel, (blocks, 1), arguments, *options)


@plan_cache
def _convolution_plan(*arguments: Any) -> tuple[Prepared, int]:
    launch = convolution_launch(*arguments)
    return Prepared(launch), launch.arguments["BLOCK_M"]


@plan_cache
def _weight_plan(*arguments: Any) -> tuple[Prepared, int]:
    launch = weight_launch(*arguments)
    return Prepared(launch), launch.arguments["BLOCK_M"]


def _rows(x: Tensor) -> Layout:
    """The layout of ``[rows, channels]`` without the number of rows."""
    shape, *rest = layout(x)
    return (1, shape[1]), *rest


def forward(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Convolve ``x [N, C]`` with ``weight [K, C, C']`` or ``[K, C]`` by the table ``[M, K]``.

    Returns:
        ``[M, C']`` or ``[M, C]``.
    """
    rows = table.shape[0]
    out = torch.empty((rows, weight.shape[-1]), dtype=x.dtype, device=x.device)
    launch, block = _convolution_plan(_rows(x), layout(weight), float32_precision())
    tensors = dict(x_ptr=x, weight_ptr=weight, table_ptr=table, out_ptr=out)
    launch(tensors, (triton.cdiv(rows, block), launch.grid[1]), dict(rows=rows))
    return out


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, table: Tensor, transposed: Tensor, wants: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the features and the weight, those that are wanted.

    Args:
        table: input row of each output row and offset, -1 where there is none.
        transposed: output row of each input row and offset.
    """
    dx = forward(grad, weight.transpose(1, 2) if weight.dim() == 3 else weight, transposed) if wants[0] else None
    if not wants[1]:
        return dx, None
    rows = table.shape[0]
    launch, block = _weight_plan(_rows(x), _rows(grad), tuple(weight.shape), float32_precision())
    parts = max(1, min(MOST_PARTS, rows // PART_ROWS))
    share = block * triton.cdiv(triton.cdiv(rows, parts), block)
    parts_of_weight = torch.empty((parts, *weight.shape), dtype=torch.float32, device=x.device)
    tensors = dict(x_ptr=x, grad_ptr=grad, table_ptr=table, parts_ptr=parts_of_weight)
    launch(tensors, (launch.grid[0], parts), dict(rows=rows, share=share))
    return dx, parts_of_weight.sum(0).to(weight.dtype)
