"""Functions shared by the Triton kernels: windows, tiles and halos, masks and loads.

Maps of any rank are treated as three axes; missing ones come last with length 1. Tuples of three have one entry per
axis. All positions are in-group positions (see `geometry`) unless stated otherwise.
"""

import os

import triton
import triton.language as tl

__all__ = [
    "LOG2E",
    "RUNTIME",
    "bias_offsets",
    "dot",
    "first_query",
    "group_of",
    "inside",
    "last_query",
    "load_rows",
    "locate",
    "masked_bias",
    "pack",
    "pair_bias",
    "rows_of",
    "store_rows",
    "token_of",
    "unflatten",
    "window_end",
    "window_start",
]

# Integers that differ between maps and batches. Kernels are not specialized on their values (whether they are 1 or
# divisible by 16), which would compile many variants; the values inside of tuples always are.
RUNTIME = (
    "length0", "length1", "length2", "dilation0", "dilation1", "dilation2", "tiles0", "tiles1", "tiles2", "heads",
    "batch_size", "extra", "chunks", "share", "blocks", "height", "width", "items",
)  # fmt: skip
LOG2E = tl.constexpr(1.4426950408889634)
_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``a @ b`` in float32, added to ``acc`` unless it is None."""
    if _INTERPRETED:  # the interpreter multiplies bfloat16 as integers and accumulates in float16
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def window_start(p, n, K: tl.constexpr, S: tl.constexpr, CAUSAL: tl.constexpr):
    """First position that query ``p`` of ``n`` attends to."""
    if CAUSAL:
        leader = tl.minimum((p // S) * S + (S - 1), n - 1)
        return tl.maximum(leader - (K - 1), 0)
    else:
        leader = tl.minimum((p // S) * S + S // 2, n - 1)
        return tl.maximum(tl.minimum(leader - K // 2, n - K), 0)


@triton.jit
def window_end(p, start, K: tl.constexpr, CAUSAL: tl.constexpr):
    """One past the last position that query ``p`` attends to."""
    if CAUSAL:
        return p + 1
    else:
        return start + K


@triton.jit
def first_query(key, n, K: tl.constexpr, S: tl.constexpr, CAUSAL: tl.constexpr):
    """First query whose window extends to ``key`` or beyond; so do the windows of all later queries."""
    if CAUSAL:
        return key
    else:
        block = (tl.maximum(key - (K - 1), 0) + (K // 2 - S // 2) + S - 1) // S
        return tl.where(key < K, 0, block * S)


@triton.jit
def last_query(key, n, K: tl.constexpr, S: tl.constexpr, CAUSAL: tl.constexpr):
    """Last query whose window starts at or before ``key``."""
    if CAUSAL:
        reach = key + (K - 1)  # the last leader with such a window
        leader: tl.constexpr = S - 1
        everything = reach >= n - 1
    else:
        reach = key + K // 2
        leader: tl.constexpr = S // 2
        everything = (reach >= n - 1) | (key >= n - K)
    last = ((reach - leader) // S) * S + (S - 1)
    return tl.where(everything, n - 1, tl.minimum(last, n - 1))


@triton.jit
def locate(index, length, dilation, TILE: tl.constexpr):
    """Dilation group, first position and group length of tile ``index`` of an axis; tiles are ordered by group."""
    longest = (length + dilation - 1) // dilation
    tiles = (longest + TILE - 1) // TILE
    group = index // tiles
    return group, (index % tiles) * TILE, (length - group + dilation - 1) // dilation


@triton.jit
def unflatten(flat, EXTENT: tl.constexpr):
    """Position inside a box of three axes from its flat row-major index, which may exceed the box along axis 0."""
    return flat // (EXTENT[1] * EXTENT[2]), (flat // EXTENT[2]) % EXTENT[1], flat % EXTENT[2]


@triton.jit
def group_of(pointer, batch, g0, g1, g2, head, strides):
    """Pointer to position 0 of a dilation group. ``strides``: batch, three axes, heads, head_dim, group strides."""
    image = batch.to(tl.int64) * strides[0] + head.to(tl.int64) * strides[4]
    return (
        pointer + image + (g0.to(tl.int64) * strides[1] + g1.to(tl.int64) * strides[2] + g2.to(tl.int64) * strides[3])
    )


@triton.jit
def rows_of(group, x0, x1, x2, strides, WIDE: tl.constexpr):
    """Pointers to rows of a group; the last three of ``strides`` are the strides between its positions.

    ``WIDE``: offsets within an image need 64 bits instead of 32.
    """
    if WIDE:
        x0, x1, x2 = x0.to(tl.int64), x1.to(tl.int64), x2.to(tl.int64)
    return group + (x0 * strides[6] + x1 * strides[7] + x2 * strides[8])


@triton.jit
def token_of(batch, lengths, g0, g1, g2, x0, x1, x2, dilation):
    """64-bit index of tokens in a contiguous ``[batch, axes]``."""
    token = (batch.to(tl.int64) * lengths[0] + g0 + x0 * dilation[0]) * lengths[1] + g1 + x1 * dilation[1]
    return token * lengths[2] + g2 + x2 * dilation[2]


@triton.jit
def store_rows(rows, step, values, keep, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Store ``values [rows, BLOCK]`` to pointers to rows that are to be kept, without the columns from ``DIM`` on."""
    column = tl.arange(0, BLOCK)
    pointers = rows[:, None] + column[None, :] * step
    tl.store(pointers, values.to(rows.dtype.element_ty), mask=keep[:, None] & (column[None, :] < DIM))


@triton.jit
def load_rows(rows, step, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Load ``[rows, BLOCK]`` from pointers to rows, which must be valid; columns from ``DIM`` on are zero."""
    column = tl.arange(0, BLOCK)
    pointers = rows[:, None] + column[None, :] * step
    if DIM == BLOCK:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=column[None, :] < DIM, other=0.0)


@triton.jit
def pack(x0, x1, x2, BITS: tl.constexpr):
    """Pack three small numbers into bit fields of one integer, with the top bit of each field unused."""
    return (x0 << (BITS[1] + BITS[2])) + (x1 << BITS[2]) + x2


@triton.jit
def inside(low, high, position, BITS: tl.constexpr):
    """Whether packed positions satisfy ``low <= position <= high`` on all three axes; arguments broadcast.

    If the top bit of each field is set in the minuend, it remains set in the difference exactly if the field is not
    negative. This needs two subtractions and one comparison for any rank.
    """
    guard: tl.constexpr = (
        (1 << (BITS[0] + BITS[1] + BITS[2] - 1)) + (1 << (BITS[1] + BITS[2] - 1)) + (1 << (BITS[2] - 1))
    )
    return (((position + guard) - low) & ((high + guard) - position) & guard) == guard


@triton.jit
def bias_offsets(x0, x1, x2, K: tl.constexpr):
    """Weighted positions: the value of a key minus that of a query, plus the center, is the index into the table."""
    return (x0 * (2 * K[1] - 1) + x1) * (2 * K[2] - 1) + x2


@triton.jit
def masked_bias(table, key_offset, query_offset, allowed, K: tl.constexpr):
    """Bias of each pair, -inf where not allowed. One of the offsets is a column vector, the other a row vector."""
    index = key_offset - query_offset + ((2 * K[0] - 1) * (2 * K[1] - 1) * (2 * K[2] - 1) - 1) // 2
    return tl.load(table + index, mask=allowed, other=float("-inf")).to(tl.float32)


@triton.jit
def pair_bias(table, key_offset, query_offset, K: tl.constexpr):
    """The same without a mask, with any entry for pairs outside the table.

    A mask may be in another layout than the scores, in which case the compiler computes it and the index twice.
    """
    LAST: tl.constexpr = (2 * K[0] - 1) * (2 * K[1] - 1) * (2 * K[2] - 1) - 1
    index = key_offset - query_offset + LAST // 2
    return tl.load(table + tl.minimum(tl.maximum(index, 0), LAST)).to(tl.float32)
