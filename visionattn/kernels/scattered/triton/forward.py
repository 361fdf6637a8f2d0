"""Forward pass of the Triton backend: windows of one chunk in one pass; longer ones as sums of chunks, then queries."""

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

__all__ = ["query_kernel", "reduce_kernel", "window_kernel"]


@triton.jit
def attend(
    q_ptr,
    out_ptr,
    q_strides,
    out_strides,
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
    """Outputs of the tokens from `start` to `stop`, from the sums of their window."""
    for first in range(start, stop, BLOCK_M):
        token = first + tl.arange(0, BLOCK_M)
        q = load_rows(q_ptr, token, stop, q_strides, DIM, BLOCK_DIM).to(tl.float32)
        denominator = tl.sum(q * k_sum[None, :], 1) + eps
        numerator = tl.dot(q, kv, input_precision=PRECISION)
        store_rows(out_ptr, token, stop, out_strides, numerator / denominator[:, None], VALUE_DIM, BLOCK_VALUE)


@triton.jit(do_not_specialize=SCALARS)
def window_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    offsets_ptr,
    out_ptr,
    sums_ptr,  # float32 [places, heads, BLOCK_DIM * BLOCK_VALUE + BLOCK_DIM]
    table_ptr,  # int64 [places, 4]
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    tokens,
    windows,
    places,  # number of places for chunks
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
    # Chunks come first, since they take longest. Heads are the fastest dimension, because they share cache lines.
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
    kv, k_sum = add_sums(
        k_ptr + head64 * k_strides[1], v_ptr + head64 * v_strides[1], k_strides, v_strides, start, stop,
        DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_M, PRECISION,
    )  # fmt: skip
    if is_chunk:
        if stop > start:
            place = item.to(tl.int64) * HEADS + head
            store_sums(sums_ptr + place * (BLOCK_DIM * BLOCK_VALUE + BLOCK_DIM), kv, k_sum, BLOCK_DIM, BLOCK_VALUE)
    else:
        attend(
            q_ptr + head64 * q_strides[1], out_ptr + head64 * out_strides[1], q_strides, out_strides, start, stop,
            kv, k_sum, eps, DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_M, PRECISION,
        )  # fmt: skip


@triton.jit
def reduce_kernel(
    sums_ptr,
    table_ptr,
    HEADS: tl.constexpr,
    TILES: tl.constexpr,
    SIZE: tl.constexpr,  # size of the sums of a chunk and head
    TILE: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Add the sums of the chunks of a window in a fixed order and store them at the place of its first chunk."""
    pid = tl.program_id(0)
    tile, rest = pid % TILES, pid // TILES
    head, item = rest % HEADS, rest // HEADS
    chunks = tl.load(table_ptr + item * 4 + 3)
    if chunks > 0:
        start = tl.load(table_ptr + item * 4)
        column = tile * TILE + tl.arange(0, TILE)
        total = tl.zeros([TILE], tl.float32)
        for first in range(0, chunks, BLOCK_CHUNKS):
            chunk = first + tl.arange(0, BLOCK_CHUNKS)
            place = tl.where(chunk == 0, item.to(tl.int64), (start // CHUNK + chunk) * 2)
            pointers = sums_ptr + (place[:, None] * HEADS + head) * SIZE + column[None, :]
            total += tl.sum(tl.load(pointers, mask=(chunk < chunks)[:, None] & (column[None, :] < SIZE), other=0.0), 0)
        tl.store(sums_ptr + (item.to(tl.int64) * HEADS + head) * SIZE + column, total, mask=column < SIZE)


@triton.jit
def query_kernel(
    q_ptr,
    out_ptr,
    sums_ptr,
    table_ptr,
    q_strides,
    out_strides,
    eps,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Outputs of the tokens of a chunk, from the sums of its window."""
    pid = tl.program_id(0)
    head, item = pid % HEADS, pid // HEADS
    start, stop = tl.load(table_ptr + item * 4), tl.load(table_ptr + item * 4 + 1)
    if stop > start:
        head64 = head.to(tl.int64)
        place = tl.load(table_ptr + item * 4 + 2) * HEADS + head
        kv, k_sum = load_sums(sums_ptr + place * (BLOCK_DIM * BLOCK_VALUE + BLOCK_DIM), BLOCK_DIM, BLOCK_VALUE)
        attend(
            q_ptr + head64 * q_strides[1], out_ptr + head64 * out_strides[1], q_strides, out_strides, start, stop,
            kv, k_sum, eps, DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_M, PRECISION,
        )  # fmt: skip
