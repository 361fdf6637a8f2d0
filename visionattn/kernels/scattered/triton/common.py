"""Functions shared by the Triton kernels: token ranges of programs, loads and stores, sums over tokens.

A window of at most ``CHUNK`` tokens is processed by one program. Longer windows are divided into chunks to balance the
work, and an intermediate kernel adds the sums of their chunks. The chunks are located without reading the offsets on
the host: with tokens in bins of ``CHUNK``, at most two chunks start in a bin, one of a window that started before the
bin, and the first one of a window that starts in the bin.

Strides are tuples: token, head, head_dim. The sums of a chunk and head are stored contiguously: a matrix
``[BLOCK_DIM, BLOCK_VALUE]``, then a vector ``[BLOCK_DIM]``.
"""

import triton
import triton.language as tl

__all__ = [
    "SCALARS",
    "add_sums",
    "load_rows",
    "load_sums",
    "locate_chunk",
    "locate_window",
    "store_chunk",
    "store_rows",
    "store_sums",
]

SCALARS = ["tokens", "windows", "places", "search_steps"]
"""Arguments of the kernels that are not specialized for their values, since they vary between frames."""


@triton.jit
def window_bounds(offsets_ptr, window, tokens):
    """Start and end of a window, clamped to the tensors for any offsets."""
    start = tl.load(offsets_ptr + window).to(tl.int64)
    stop = tl.load(offsets_ptr + window + 1).to(tl.int64)
    start = tl.minimum(tl.maximum(start, 0), tokens)
    return start, tl.minimum(tl.maximum(stop, start), tokens)


@triton.jit
def locate_window(offsets_ptr, window, tokens, CHUNK: tl.constexpr):
    """Start and end of a window for one program; an empty range if the window is longer than a chunk."""
    start, stop = window_bounds(offsets_ptr, window, tokens)
    return start, tl.where(stop - start > CHUNK, start, stop)


@triton.jit
def locate_chunk(offsets_ptr, place, windows, search_steps, tokens, CHUNK: tl.constexpr):
    """Locate the chunk at an index of the list of possible chunks (a place).

    Returns:
        Its start and end, which are equal if there is no chunk; the place of the first chunk of its window; and the
        number of chunks of the window if this is the first one, else 0.
    """
    bin_start = (place // 2).to(tl.int64) * CHUNK
    later = place % 2
    token = tl.where(later == 1, tl.minimum(bin_start + CHUNK, tokens) - 1, bin_start)
    low, high = 0, windows - 1
    for _ in range(search_steps):  # binary search for the last window that starts at or before this token
        middle = (low + high + 1) // 2
        before = tl.load(offsets_ptr + middle).to(tl.int64) <= token
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle - 1)
    first, last = window_bounds(offsets_ptr, low, tokens)
    behind = tl.maximum(bin_start - first, 0)
    start = tl.where(later == 1, first, first + (behind + CHUNK - 1) // CHUNK * CHUNK)
    exists = (last - first > CHUNK) & (start < last) & ((later == 0) | (first > bin_start))
    first_place = first // CHUNK * 2 + tl.where(first % CHUNK == 0, 0, 1)
    chunks = tl.where(exists & (start == first), (last - first + CHUNK - 1) // CHUNK, 0)
    return start, tl.where(exists, tl.minimum(start + CHUNK, last), start), first_place, chunks


@triton.jit
def store_chunk(table_ptr, place, start, stop, first_place, chunks):
    tl.store(table_ptr + place * 4, start)
    tl.store(table_ptr + place * 4 + 1, stop)
    tl.store(table_ptr + place * 4 + 2, first_place)
    tl.store(table_ptr + place * 4 + 3, chunks)


@triton.jit
def load_rows(ptr, token, stop, strides, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Load ``[tokens, BLOCK]`` of one head; zero from ``DIM`` and `stop` on."""
    column = tl.arange(0, BLOCK)
    pointers = ptr + token[:, None] * strides[0] + column[None, :] * strides[2]
    return tl.load(pointers, mask=(token < stop)[:, None] & (column[None, :] < DIM), other=0.0)


@triton.jit
def store_rows(ptr, token, stop, strides, values, DIM: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    pointers = ptr + token[:, None] * strides[0] + column[None, :] * strides[2]
    mask = (token < stop)[:, None] & (column[None, :] < DIM)
    tl.store(pointers, values.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_sums(
    k_ptr,
    v_ptr,
    k_strides,
    v_strides,
    start,
    stop,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add the sums of keys times values and of keys over the tokens from `start` to `stop`."""
    kv = tl.zeros([BLOCK_DIM, BLOCK_VALUE], tl.float32)
    k_sum = tl.zeros([BLOCK_DIM], tl.float32)
    for first in range(start, stop, BLOCK_M):
        token = first + tl.arange(0, BLOCK_M)
        k = load_rows(k_ptr, token, stop, k_strides, DIM, BLOCK_DIM)
        v = load_rows(v_ptr, token, stop, v_strides, VALUE_DIM, BLOCK_VALUE)
        if PRECISION == "ieee":
            k, v = k.to(tl.float32), v.to(tl.float32)
        kv = tl.dot(tl.trans(k), v, kv, input_precision=PRECISION)
        k_sum += tl.sum(k.to(tl.float32), 0)
    return kv, k_sum


@triton.jit
def sums_pointers(ptr, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr):
    row, column = tl.arange(0, BLOCK_DIM), tl.arange(0, BLOCK_VALUE)
    return ptr + row[:, None] * BLOCK_VALUE + column[None, :], ptr + BLOCK_DIM * BLOCK_VALUE + row


@triton.jit
def load_sums(ptr, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr):
    matrix, vector = sums_pointers(ptr, BLOCK_DIM, BLOCK_VALUE)
    return tl.load(matrix), tl.load(vector)


@triton.jit
def store_sums(ptr, matrix_values, vector_values, BLOCK_DIM: tl.constexpr, BLOCK_VALUE: tl.constexpr):
    matrix, vector = sums_pointers(ptr, BLOCK_DIM, BLOCK_VALUE)
    tl.store(matrix, matrix_values)
    tl.store(vector, vector_values)
