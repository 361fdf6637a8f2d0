"""Kernels of the Triton backend, driven by a table of the input row of each output row and offset of the kernel.

The gradient of the features is the same convolution with the transposed table and weight, so it uses the same kernels.
The gradient of the weight is computed in parts, each over a range of output rows, which are added afterwards; each
number is written by one program, so results are deterministic.
"""

import triton
import triton.language as tl

__all__ = ["ROWS", "convolution_kernel", "depthwise_kernel", "depthwise_weight_kernel", "weight_kernel"]

ROWS = ["rows", "share"]
"""Arguments of the kernels that are not specialized for their values, since they vary between frames."""


@triton.jit
def load_table(table_ptr, row, rows, offset, OFFSETS: tl.constexpr):
    """The input rows of output rows for an offset of the kernel, -1 where there is none."""
    return tl.load(table_ptr + row.to(tl.int64) * OFFSETS + offset, mask=row < rows, other=-1)


@triton.jit
def load_rows(ptr, row, exists, strides, channel, CHANNELS: tl.constexpr):
    """Load channels of rows; zero for rows that do not exist and from ``CHANNELS`` on."""
    pointers = ptr + row.to(tl.int64)[:, None] * strides[0] + channel[None, :] * strides[1]
    return tl.load(pointers, mask=exists[:, None] & (channel[None, :] < CHANNELS), other=0.0)


@triton.jit(do_not_specialize=ROWS)
def convolution_kernel(
    x_ptr,
    weight_ptr,
    table_ptr,  # int32 [rows, OFFSETS]
    out_ptr,  # [rows, OUT], contiguous
    x_strides,
    weight_strides,  # offset, input channel, output channel
    rows,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    OFFSETS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some output channels of a block of output rows."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros([BLOCK_M, BLOCK_OUT], tl.float32)
    for step in range(OFFSETS * tl.cdiv(IN, BLOCK_IN)):
        offset = step // tl.cdiv(IN, BLOCK_IN)
        channel = step % tl.cdiv(IN, BLOCK_IN) * BLOCK_IN + tl.arange(0, BLOCK_IN)
        source = load_table(table_ptr, row, rows, offset, OFFSETS)
        x = load_rows(x_ptr, source, source >= 0, x_strides, channel, IN)
        place = offset * weight_strides[0] + channel[:, None] * weight_strides[1] + column[None, :] * weight_strides[2]
        weight = tl.load(
            weight_ptr + place, mask=(channel[:, None] < IN) & (column[None, :] < OUT), other=0.0
        )  # fmt: skip
        total = tl.dot(x, weight, total, input_precision=PRECISION)
    place = out_ptr + row.to(tl.int64)[:, None] * OUT + column[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=(row[:, None] < rows) & (column[None, :] < OUT))


@triton.jit(do_not_specialize=ROWS)
def weight_kernel(
    x_ptr,
    grad_ptr,
    table_ptr,
    parts_ptr,  # float32 [parts, OFFSETS, IN, OUT]
    x_strides,
    grad_strides,
    rows,
    share,  # output rows of a part
    IN: tl.constexpr,
    OUT: tl.constexpr,
    OFFSETS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A part of the gradient of a block of the weight of one offset."""
    index, part = tl.program_id(0), tl.program_id(1)
    across: tl.constexpr = tl.cdiv(OUT, BLOCK_OUT)
    down: tl.constexpr = tl.cdiv(IN, BLOCK_IN)
    offset = index // (across * down)
    channel = index // across % down * BLOCK_IN + tl.arange(0, BLOCK_IN)
    column = index % across * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros([BLOCK_IN, BLOCK_OUT], tl.float32)
    for start in range(part * share, tl.minimum((part + 1) * share, rows), BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        source = load_table(table_ptr, row, rows, offset, OFFSETS)
        x = load_rows(x_ptr, source, source >= 0, x_strides, channel, IN)
        grad = load_rows(grad_ptr, row, source >= 0, grad_strides, column, OUT)
        total = tl.dot(tl.trans(x), grad, total, input_precision=PRECISION)
    place = ((part * OFFSETS + offset).to(tl.int64) * IN + channel[:, None]) * OUT + column[None, :]
    tl.store(parts_ptr + place, total, mask=(channel[:, None] < IN) & (column[None, :] < OUT))


@triton.jit(do_not_specialize=ROWS)
def depthwise_kernel(
    x_ptr,
    weight_ptr,
    table_ptr,
    out_ptr,  # [rows, IN], contiguous
    x_strides,
    weight_strides,  # offset, channel
    rows,
    IN: tl.constexpr,
    OFFSETS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    total = tl.zeros([BLOCK_M, BLOCK_IN], tl.float32)
    for offset in range(OFFSETS):
        source = load_table(table_ptr, row, rows, offset, OFFSETS)
        x = load_rows(x_ptr, source, source >= 0, x_strides, channel, IN)
        place = weight_ptr + offset * weight_strides[0] + channel * weight_strides[1]
        weight = tl.load(place, mask=channel < IN, other=0.0)
        # Products of absent voxels are left out, as the weight may not be finite.
        total += tl.where(source[:, None] >= 0, x.to(tl.float32) * weight.to(tl.float32)[None, :], 0.0)
    place = out_ptr + row.to(tl.int64)[:, None] * IN + channel[None, :]
    tl.store(place, total.to(out_ptr.dtype.element_ty), mask=(row[:, None] < rows) & (channel[None, :] < IN))


@triton.jit(do_not_specialize=ROWS)
def depthwise_weight_kernel(
    x_ptr,
    grad_ptr,
    table_ptr,
    parts_ptr,  # float32 [parts, OFFSETS, IN]
    x_strides,
    grad_strides,
    rows,
    share,
    IN: tl.constexpr,
    OFFSETS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """A part of the gradient of the weight of one offset."""
    offset, part = tl.program_id(0) % OFFSETS, tl.program_id(1)
    channel = tl.program_id(0) // OFFSETS * BLOCK_IN + tl.arange(0, BLOCK_IN)
    total = tl.zeros([BLOCK_M, BLOCK_IN], tl.float32)
    for start in range(part * share, tl.minimum((part + 1) * share, rows), BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)
        source = load_table(table_ptr, row, rows, offset, OFFSETS)
        x = load_rows(x_ptr, source, source >= 0, x_strides, channel, IN)
        grad = load_rows(grad_ptr, row, source >= 0, grad_strides, channel, IN)
        total += x.to(tl.float32) * grad.to(tl.float32)
    place = (part * OFFSETS + offset).to(tl.int64) * IN + channel
    tl.store(parts_ptr + place, tl.sum(total, 0), mask=channel < IN)
