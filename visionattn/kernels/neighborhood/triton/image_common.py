"""Parts of the kernels that loop over images: the halo in rows of a fixed width, and the mask and bias of a tile.

A program processes one tile of positions of one or more images. Everything that depends on positions only is computed
once: offsets of the rows of the halo, the mask, the bias. The halo has rows of ``WIDTH`` positions, a power of two, of
which a step of the softmax processes ``BLOCK // WIDTH``, so that the position of a column needs no division.
"""

import os

import triton
import triton.language as tl

from visionattn.kernels.neighborhood.triton.common import first_query, last_query, window_start

__all__ = ["group_offset", "halo_offset", "key_window", "mask_tile", "query_window", "unpack_mask", "varying"]

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def key_window(first, n, t, K: tl.constexpr):
    """Queries of a tile on one axis, and the keys that they attend to.

    Args:
        first: first query of the tile. n: length of the dilation group. t: offsets in the tile.

    Returns:
        First key of the halo; queries, where the last one of the group repeats past its end; whether they exist; first
        key of the window of each, relative to the halo, and the number of keys.
    """
    origin = window_start(first, n, K, 1, False)
    p = tl.minimum(first + t, n - 1)
    start = window_start(p, n, K, 1, False) - origin
    return origin, p, first + t < n, start, start * 0 + K


@triton.jit
def query_window(first, n, t, K: tl.constexpr):
    """The same for keys of a tile and the queries that attend to them, which also are an interval."""
    origin = first_query(first, n, K, 1, False)
    p = tl.minimum(first + t, n - 1)
    start = first_query(p, n, K, 1, False)
    return origin, p, first + t < n, start - origin, last_query(p, n, K, 1, False) - start + 1


@triton.jit
def group_offset(group, position, dilation, stride, WIDE: tl.constexpr):
    """Offset of positions of a dilation group along one axis; 64 bits if ``WIDE``."""
    index = group + position * dilation
    if WIDE:
        index = index.to(tl.int64)
    return index * stride


@triton.jit
def varying(x, item):
    """``x``, as a value that the compiler cannot move out of the loop over items, which are not negative.

    Otherwise it keeps the offsets of all steps in registers, which then spill.
    """
    return x + (item >> 31)


@triton.jit
def halo_offset(columns, row0, step: tl.constexpr, g0, n0, dilation0, stride0, ROWS: tl.constexpr, WIDE: tl.constexpr):
    """Offsets of the columns of a step, from those along axis 1 and the rows of step 0.

    The last row of the group repeats past its end.
    """
    return group_offset(g0, tl.minimum(row0 + step * ROWS, n0 - 1), dilation0, stride0, WIDE) + columns


@triton.jit
def mask_tile(
    rpb_ptr,
    head,
    start0,
    count0,
    start1,
    count1,
    p0,
    p1,
    scale,
    step: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RPB: tl.constexpr,
    KEYS: tl.constexpr,
):
    """What the products of queries and keys start from, ``[positions of the tile, columns of a step]`` in float32.

    That is the bias divided by the scale, or 0 without a bias, inside the windows, and -inf outside.

    Args:
        rpb_ptr: ``[heads, 2 * K[0] - 1, 2 * K[1] - 1]``.
        start0, count0, start1, count1: the windows, relative to the halo.
        p0, p1: positions of the tile, relative to the halo.
        KEYS: the tile has keys, and the halo queries.
    """
    j = tl.arange(0, BLOCK)[None, :]
    j0, j1 = step * (BLOCK // WIDTH) + j // WIDTH, j % WIDTH
    d0, d1 = j0 - start0[:, None], j1 - start1[:, None]
    allowed = (d0 >= 0) & (d0 < count0[:, None]) & (d1 >= 0) & (d1 < count1[:, None])
    if HAS_RPB:
        index = (j0 - p0[:, None]) * (2 * K[1] - 1) + j1 - p1[:, None]
        if KEYS:
            index = -index
        CENTRE: tl.constexpr = (K[0] - 1) * (2 * K[1] - 1) + K[1] - 1
        table = rpb_ptr + head * ((2 * K[0] - 1) * (2 * K[1] - 1)) + CENTRE
        return tl.load(table + index, mask=allowed, other=float("-inf")).to(tl.float32) * (1.0 / scale)
    else:
        return tl.where(allowed, 0.0, float("-inf"))


@triton.jit
def unpack_mask(mask, item):
    """The result of `mask_tile` in float32.

    Tiles that are stored in bfloat16 take half of the registers. The conversion is written as an instruction that
    pretends to depend on the loop over items, because the compiler would otherwise move it out of the loop, and spill
    the result.
    """
    if mask.dtype == tl.float32:
        return mask
    elif _INTERPRETED:
        return mask.to(tl.float32)
    else:
        return tl.inline_asm_elementwise(
            "{ shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000; }",
            "=r,=r,r,r,r",
            [mask, item],
            dtype=tl.float32,
            is_pure=True,
            pack=2,
        )
