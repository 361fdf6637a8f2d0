"""Scattered linear attention in the design of the kernels published with ScatterFormer, as a peer to time.

Written anew from a description of theirs: one program for each window and head walks its window 32 tokens at a time,
so the most crowded window decides how long a kernel takes; the matrices of all windows go through memory between two
kernels; everything is float32 without TF32; the sums of keys and the division are PyTorch's operations. The backward
kernels add to the gradients of the matrices with atomics.
"""

import torch
import triton
import triton.language as tl
from scattered_peers import EPS

__all__ = ["published"]

BLOCK = 32


@triton.jit
def _rows(ptr, token, stop, head, heads, D: tl.constexpr):
    column = tl.arange(0, D)
    pointers = ptr + (token[:, None] * heads + head) * D + column[None, :]
    return tl.load(pointers, mask=(token < stop)[:, None], other=0.0)


@triton.jit
def _write(ptr, values, token, stop, head, heads, D: tl.constexpr):
    column = tl.arange(0, D)
    tl.store(ptr + (token[:, None] * heads + head) * D + column[None, :], values, mask=(token < stop)[:, None])


@triton.jit
def _matrix(ptr, window, head, heads, D: tl.constexpr):
    row = tl.arange(0, D)
    return ptr + (window * heads + head) * D * D + row[:, None] * D + row[None, :]


@triton.jit
def sum_kernel(k_ptr, v_ptr, offsets_ptr, kv_ptr, heads, D: tl.constexpr, BLOCK: tl.constexpr):
    window, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(offsets_ptr + window), tl.load(offsets_ptr + window + 1)
    kv = tl.zeros([D, D], tl.float32)
    for first in range(start, stop, BLOCK):
        token = first + tl.arange(0, BLOCK)
        k = _rows(k_ptr, token, stop, head, heads, D)
        kv += tl.dot(tl.trans(k), _rows(v_ptr, token, stop, head, heads, D), input_precision="ieee")
    tl.store(_matrix(kv_ptr, window, head, heads, D), kv)


@triton.jit
def product_kernel(x_ptr, m_ptr, offsets_ptr, y_ptr, heads, D: tl.constexpr, BLOCK: tl.constexpr, T: tl.constexpr):
    """Tokens times the matrix of their window, or its transposed."""
    window, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(offsets_ptr + window), tl.load(offsets_ptr + window + 1)
    matrix = tl.load(_matrix(m_ptr, window, head, heads, D))
    if T:
        matrix = tl.trans(matrix)
    for first in range(start, stop, BLOCK):
        token = first + tl.arange(0, BLOCK)
        x = _rows(x_ptr, token, stop, head, heads, D)
        _write(y_ptr, tl.dot(x, matrix, input_precision="ieee"), token, stop, head, heads, D)


@triton.jit
def product_backward_kernel(
    grad_ptr, q_ptr, kv_ptr, offsets_ptr, dq_ptr, d_kv_ptr, heads, D: tl.constexpr, BLOCK: tl.constexpr
):
    window, head = tl.program_id(0), tl.program_id(1)
    start, stop = tl.load(offsets_ptr + window), tl.load(offsets_ptr + window + 1)
    kv = tl.load(_matrix(kv_ptr, window, head, heads, D))
    for first in range(start, stop, BLOCK):
        token = first + tl.arange(0, BLOCK)
        grad = _rows(grad_ptr, token, stop, head, heads, D)
        _write(dq_ptr, tl.dot(grad, tl.trans(kv), input_precision="ieee"), token, stop, head, heads, D)
        share = tl.dot(tl.trans(_rows(q_ptr, token, stop, head, heads, D)), grad, input_precision="ieee")
        tl.atomic_add(_matrix(d_kv_ptr, window, head, heads, D), share)


def _grid(x: torch.Tensor, offsets: torch.Tensor) -> tuple[int, int]:
    return offsets.numel() - 1, x.shape[1]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, v, offsets):
        ctx.save_for_backward(k, v, offsets)
        heads, dim = k.shape[1:]
        kv = k.new_empty(offsets.numel() - 1, heads, dim, dim)
        sum_kernel[_grid(k, offsets)](k, v, offsets, kv, heads, dim, BLOCK)
        return kv

    @staticmethod
    def backward(ctx, d_kv):
        k, v, offsets = ctx.saved_tensors
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        d_kv = d_kv.contiguous()
        product_kernel[_grid(k, offsets)](v, d_kv, offsets, dk, k.shape[1], k.shape[2], BLOCK, True)
        product_kernel[_grid(k, offsets)](k, d_kv, offsets, dv, k.shape[1], k.shape[2], BLOCK, False)
        return dk, dv, None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, kv, offsets):
        ctx.save_for_backward(q, kv, offsets)
        y = torch.empty_like(q)
        product_kernel[_grid(q, offsets)](q, kv, offsets, y, q.shape[1], q.shape[2], BLOCK, False)
        return y

    @staticmethod
    def backward(ctx, grad):
        q, kv, offsets = ctx.saved_tensors
        dq, d_kv = torch.empty_like(q), torch.zeros_like(kv)
        product_backward_kernel[_grid(q, offsets)](
            grad.contiguous(), q, kv, offsets, dq, d_kv, q.shape[1], q.shape[2], BLOCK
        )
        return dq, d_kv, None


def published(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Float32; head dimensions that are powers of two from 16, the same for values."""
    window = torch.arange(offsets.numel() - 1, device=q.device).repeat_interleave(offsets.diff())
    k_sum = k.new_zeros(offsets.numel() - 1, *k.shape[1:]).index_add(0, window, k)
    denominator = (q * k_sum[window]).sum(-1, keepdim=True) + EPS
    return _Product.apply(q, _Sum.apply(k, v, offsets), offsets) / denominator
