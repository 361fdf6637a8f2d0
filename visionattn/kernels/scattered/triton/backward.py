"""Backward pass of the Triton backend, without atomics: each sum is computed by one program in a fixed order.

The sums of keys and values are recomputed. With G the gradient of the output divided by the denominator, the gradient
of the query is G KVᵀ plus a multiple of the sum of keys; the factor is minus the product of the query with the first
term, divided by the denominator, so the output is not needed. The gradients of keys and values need the sums of queries
times G, and of queries times the factor. Windows of one chunk need a single pass; others need one kernel for each of
the three steps.
"""

import triton
import triton.language as tl

from visionattn.kernels.scattered.triton.common import (
    SCALARS,
    add_sums,
    load_rows,
    load_sums,
    locate_chunk,
    locate_window,
    store_chunk,
    store_rows,
    store_sums,
)

__all__ = ["key_backward_kernel", "query_backward_kernel", "window_backward_kernel"]


@triton.jit
def differentiate_queries(
    q_ptr,
    grad_ptr,
    dq_ptr,
    q_strides,
    grad_strides,
    dq_strides,
    start,
    stop,
    kv,
    k_sum,
    eps,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the gradients of queries and return the contribution of their tokens to the gradients of both sums."""
    d_kv = tl.zeros([BLOCK_DIM, BLOCK_VALUE], tl.float32)
    d_k_sum = tl.zeros([BLOCK_DIM], tl.float32)
    for first in range(start, stop, BLOCK_M):
        token = first + tl.arange(0, BLOCK_M)
        q = load_rows(q_ptr, token, stop, q_strides, DIM, BLOCK_DIM).to(tl.float32)
        grad = load_rows(grad_ptr, token, stop, grad_strides, VALUE_DIM, BLOCK_VALUE).to(tl.float32)
        denominator = tl.sum(q * k_sum[None, :], 1) + eps
        grad = grad / denominator[:, None]
        dq = tl.dot(grad, tl.trans(kv), input_precision=PRECISION)
        factor = -tl.sum(q * dq, 1) / denominator
        dq += factor[:, None] * k_sum[None, :]
        store_rows(dq_ptr, token, stop, dq_strides, dq, DIM, BLOCK_DIM)
        d_kv = tl.dot(tl.trans(q), grad, d_kv, input_precision=PRECISION)
        d_k_sum += tl.sum(q * factor[:, None], 0)
    return d_kv, d_k_sum


@triton.jit
def differentiate_keys(
    k_ptr,
    v_ptr,
    dk_ptr,
    dv_ptr,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    start,
    stop,
    d_kv,
    d_k_sum,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the gradients of keys and values, computed from those of the sums."""
    for first in range(start, stop, BLOCK_M):
        token = first + tl.arange(0, BLOCK_M)
        v = load_rows(v_ptr, token, stop, v_strides, VALUE_DIM, BLOCK_VALUE).to(tl.float32)
        dk = tl.dot(v, tl.trans(d_kv), input_precision=PRECISION) + d_k_sum[None, :]
        store_rows(dk_ptr, token, stop, dk_strides, dk, DIM, BLOCK_DIM)
        k = load_rows(k_ptr, token, stop, k_strides, DIM, BLOCK_DIM).to(tl.float32)
        dv = tl.dot(k, d_kv, input_precision=PRECISION)
        store_rows(dv_ptr, token, stop, dv_strides, dv, VALUE_DIM, BLOCK_VALUE)


@triton.jit(do_not_specialize=SCALARS)
def window_backward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    offsets_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    sums_ptr,
    table_ptr,
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    dq_strides,
    dk_strides,
    dv_strides,
    tokens,
    windows,
    places,
    search_steps,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    head, item = pid % HEADS, pid // HEADS
    is_chunk = item < places
    if is_chunk:
        start, stop, first_place, chunks = locate_chunk(offsets_ptr, item, windows, search_steps, tokens, CHUNK)
        if head == 0:
            store_chunk(table_ptr, item, start, stop, first_place, chunks)
    else:
        start, stop = locate_window(offsets_ptr, item - places, tokens, CHUNK)
    head64 = head.to(tl.int64)
    k_base, v_base = k_ptr + head64 * k_strides[1], v_ptr + head64 * v_strides[1]
    kv, k_sum = add_sums(
        k_base, v_base, k_strides, v_strides, start, stop,
        DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_M, PRECISION,
    )  # fmt: skip
    if is_chunk:
        if stop > start:
            place = item.to(tl.int64) * HEADS + head
            store_sums(sums_ptr + place * (BLOCK_DIM * BLOCK_VALUE + BLOCK_DIM), kv, k_sum, BLOCK_DIM, BLOCK_VALUE)
    else:
        d_kv, d_k_sum = differentiate_queries(
            q_ptr + head64 * q_strides[1], grad_ptr + head64 * grad_strides[1], dq_ptr + head64 * dq_strides[1],
            q_strides, grad_strides, dq_strides, start, stop, kv, k_sum, eps,
            DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_M, PRECISION,
        )  # fmt: skip
        differentiate_keys(
            k_base, v_base, dk_ptr + head64 * dk_strides[1], dv_ptr + head64 * dv_strides[1],
            k_strides, v_strides, dk_strides, dv_strides, start, stop, d_kv, d_k_sum,
            DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_M, PRECISION,
        )  # fmt: skip


@triton.jit
def query_backward_kernel(
    q_ptr,
    grad_ptr,
    dq_ptr,
    sums_ptr,
    d_sums_ptr,  # as sums_ptr, for the gradients of the sums
    table_ptr,
    q_strides,
    grad_strides,
    dq_strides,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    head, item = pid % HEADS, pid // HEADS
    start, stop = tl.load(table_ptr + item * 4), tl.load(table_ptr + item * 4 + 1)
    if stop > start:
        head64 = head.to(tl.int64)
        size: tl.constexpr = BLOCK_DIM * BLOCK_VALUE + BLOCK_DIM
        place = tl.load(table_ptr + item * 4 + 2) * HEADS + head
        kv, k_sum = load_sums(sums_ptr + place * size, BLOCK_DIM, BLOCK_VALUE)
        d_kv, d_k_sum = differentiate_queries(
            q_ptr + head64 * q_strides[1], grad_ptr + head64 * grad_strides[1], dq_ptr + head64 * dq_strides[1],
            q_strides, grad_strides, dq_strides, start, stop, kv, k_sum, eps,
            DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_M, PRECISION,
        )  # fmt: skip
        store_sums(d_sums_ptr + (item.to(tl.int64) * HEADS + head) * size, d_kv, d_k_sum, BLOCK_DIM, BLOCK_VALUE)


@triton.jit
def key_backward_kernel(
    k_ptr,
    v_ptr,
    dk_ptr,
    dv_ptr,
    d_sums_ptr,
    table_ptr,
    k_strides,
    v_strides,
    dk_strides,
    dv_strides,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0)
    head, item = pid % HEADS, pid // HEADS
    start, stop = tl.load(table_ptr + item * 4), tl.load(table_ptr + item * 4 + 1)
    if stop > start:
        head64 = head.to(tl.int64)
        place = tl.load(table_ptr + item * 4 + 2) * HEADS + head
        d_kv, d_k_sum = load_sums(d_sums_ptr + place * (BLOCK_DIM * BLOCK_VALUE + BLOCK_DIM), BLOCK_DIM, BLOCK_VALUE)
        differentiate_keys(
            k_ptr + head64 * k_strides[1], v_ptr + head64 * v_strides[1],
            dk_ptr + head64 * dk_strides[1], dv_ptr + head64 * dv_strides[1],
            k_strides, v_strides, dk_strides, dv_strides, start, stop, d_kv, d_k_sum,
            DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_M, PRECISION,
        )  # fmt: skip
