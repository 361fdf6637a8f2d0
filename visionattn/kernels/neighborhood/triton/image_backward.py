"""Backward pass with programs that loop over images; see `image_forward`. There are no atomics: it is deterministic.

`image_query_kernel` computes the gradient of the queries, the terms of the queries that the other kernel needs, and the
gradient of the bias: gradients of scores are summed over the images of a program, then over the diagonals of the tile.
`image_key_kernel` processes tiles of keys, whose halo are the queries that attend to them.
"""

import triton
import triton.language as tl

from visionattn.kernels.neighborhood.triton.common import LOG2E, RUNTIME, dot, load_rows, locate, store_rows
from visionattn.kernels.neighborhood.triton.image_common import (
    group_offset,
    halo_offset,
    key_window,
    mask_tile,
    query_window,
    unpack_mask,
    varying,
)

__all__ = ["image_key_kernel", "image_query_kernel"]


@triton.jit
def _sum_diagonals(
    partial,
    grad_s,
    p0,
    p1,
    step: tl.constexpr,
    slot,  # elements between the tables of the rows of a tile
    KERNEL: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TABLE: tl.constexpr,  # columns of the table, rounded up to a power of two
):
    """Store the sums of ``grad_s [queries, keys of a step]`` over the columns of the tile, a table per row of the tile.

    A gather aligns the keys of each query, so that a column of the result is a column of the table. ``p0`` and ``p1``
    are the positions of the queries relative to the halo. Each entry is stored by one step only.
    """
    ROWS: tl.constexpr = BLOCK // WIDTH
    COLUMNS: tl.constexpr = 2 * KERNEL[1] - 1
    e = tl.arange(0, ROWS * BLOCK_TABLE)
    row, entry = e // BLOCK_TABLE, e % BLOCK_TABLE
    key = (entry - (KERNEL[1] - 1))[None, :] + p1[:, None]
    found = (key >= 0) & (key < WIDTH) & (entry < COLUMNS)[None, :]
    values = tl.gather(grad_s, tl.where(found, row[None, :] * WIDTH + key, 0), axis=1)
    values = tl.where(found, values, 0.0)
    values = tl.sum(tl.reshape(values, [TILE[0], TILE[1], ROWS * BLOCK_TABLE]), 1)
    # All queries of a row of the tile have the same position on axis 0.
    t0 = tl.arange(0, TILE[0])
    table_row = step * ROWS + (KERNEL[0] - 1) + row[None, :] - p0[:, None]
    keep = (table_row >= 0) & (table_row < 2 * KERNEL[0] - 1) & (entry < COLUMNS)[None, :]
    tl.store(partial + t0[:, None] * slot + table_row * COLUMNS + entry[None, :], values, mask=keep)


@triton.jit(do_not_specialize=RUNTIME)
def image_query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rpb_ptr,
    out_ptr,
    lse_ptr,
    grad_out_ptr,
    grad_lse_ptr,  # contiguous, or None
    grad_q_ptr,
    terms_ptr,  # [images, heads, tokens, 2]: log-sum-exp in base 2, and the term of the softmax gradient
    partial_ptr,  # [programs / heads, rows of a tile, heads, table], zeros
    q_strides,  # batch, two axes, heads, head_dim; same below
    k_strides,
    v_strides,
    grad_out_strides,
    grad_q_strides,
    height,
    width,
    dilation0,
    dilation1,
    tiles0,
    tiles1,
    heads,
    items,
    share,
    scale,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    KERNEL: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TABLE: tl.constexpr,
    HAS_RPB: tl.constexpr,
    HAS_GRAD_LSE: tl.constexpr,
    SAME_STRIDES: tl.constexpr,  # of k and v
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SIZE: tl.constexpr = TILE[0] * TILE[1]
    ROWS: tl.constexpr = BLOCK // WIDTH
    pid = tl.program_id(0)
    head, rest = pid * 0, pid
    if HAS_RPB:
        head, rest = pid % heads, pid // heads
    index1, others = rest % tiles1, rest // tiles1
    index0, split = others % tiles0, others // tiles0
    g0, first0, n0 = locate(index0, height, dilation0, TILE[0])
    g1, first1, n1 = locate(index1, width, dilation1, TILE[1])
    if (first0 >= n0) | (first1 >= n1):
        return

    t = tl.arange(0, SIZE)
    origin0, p0, exists0, start0, count0 = key_window(first0, n0, t // TILE[1], KERNEL[0])
    origin1, p1, exists1, start1, count1 = key_window(first1, n1, t % TILE[1], KERNEL[1])
    exists = exists0 & exists1
    count0 = tl.where(exists, count0, 0)  # queries that do not exist must not contribute to the gradient of the bias
    q_offset = group_offset(g0, p0, dilation0, q_strides[1], WIDE) + group_offset(g1, p1, dilation1, q_strides[2], WIDE)
    grad_offset = group_offset(g0, p0, dilation0, grad_out_strides[1], WIDE)
    grad_offset += group_offset(g1, p1, dilation1, grad_out_strides[2], WIDE)
    grad_q_offset = group_offset(g0, p0, dilation0, grad_q_strides[1], WIDE)
    grad_q_offset += group_offset(g1, p1, dilation1, grad_q_strides[2], WIDE)
    token = group_offset(g0, p0, dilation0, width, WIDE) + group_offset(g1, p1, dilation1, 1, WIDE)
    j = tl.arange(0, BLOCK)
    first_row, x1 = origin0 + j // WIDTH, tl.minimum(origin1 + j % WIDTH, n1 - 1)
    k_column = group_offset(g1, x1, dilation1, k_strides[2], WIDE)
    v_column = group_offset(g1, x1, dilation1, v_strides[2], WIDE)
    masks = ()
    sums = ()
    for step in tl.static_range(STEPS):
        mask = mask_tile(
            rpb_ptr, head, start0, count0, start1, count1, p0 - origin0, p1 - origin1, scale, step,
            KERNEL, WIDTH, BLOCK, HAS_RPB, False,
        )  # fmt: skip
        masks = masks + (mask if q_ptr.dtype.element_ty == tl.float32 else mask.to(tl.bfloat16),)
        if HAS_RPB:
            sums = sums + (tl.zeros([SIZE, BLOCK], tl.float32),)

    factor = scale * LOG2E
    tokens = height.to(tl.int64) * width
    first = split * share
    for item in range(first, tl.minimum(first + share, items)):
        image = item
        if not HAS_RPB:
            image, head = item // heads, item % heads
        row0 = varying(first_row, item)
        image, head_offset = image.to(tl.int64), head.to(tl.int64)
        q_base = q_ptr + image * q_strides[0] + head_offset * q_strides[3]
        k_base = k_ptr + image * k_strides[0] + head_offset * k_strides[3]
        v_base = v_ptr + image * v_strides[0] + head_offset * v_strides[3]
        grad_base = grad_out_ptr + image * grad_out_strides[0] + head_offset * grad_out_strides[3]
        q = load_rows(q_base + q_offset, q_strides[4], DIM, BLOCK_DIM)
        grad_out = load_rows(grad_base + grad_offset, grad_out_strides[4], VALUE_DIM, BLOCK_VALUE)
        row = (image * tokens + token) * heads + head
        out = load_rows(out_ptr + row * VALUE_DIM, 1, VALUE_DIM, BLOCK_VALUE)
        delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1)
        if HAS_GRAD_LSE:  # its gradient for each score is the probability, like that of -delta
            delta -= tl.load(grad_lse_ptr + row).to(tl.float32)
        lse = tl.load(lse_ptr + row) * LOG2E
        terms = terms_ptr + ((image * heads + head) * tokens + token) * 2
        tl.store(terms, lse, mask=exists)
        tl.store(terms + 1, delta, mask=exists)
        grad_q = tl.zeros([SIZE, BLOCK_DIM], tl.float32)
        new_sums = ()
        for step in tl.static_range(STEPS):
            k_offset = halo_offset(k_column, row0, step, g0, n0, dilation0, k_strides[1], ROWS, WIDE)
            v_offset = k_offset
            if not SAME_STRIDES:
                v_offset = halo_offset(v_column, row0, step, g0, n0, dilation0, v_strides[1], ROWS, WIDE)
            k = load_rows(k_base + k_offset, k_strides[4], DIM, BLOCK_DIM)
            v = load_rows(v_base + v_offset, v_strides[4], VALUE_DIM, BLOCK_VALUE)
            s = dot(q, tl.trans(k), unpack_mask(masks[step], item), PRECISION)
            p = tl.exp2(s * factor - lse[:, None])
            grad_s = p * (dot(grad_out, tl.trans(v), None, PRECISION) - delta[:, None])
            if HAS_RPB:
                new_sums = new_sums + (sums[step] + grad_s,)
            grad_q = dot(grad_s.to(k_ptr.dtype.element_ty), k, grad_q, PRECISION)
        sums = new_sums
        rows = grad_q_ptr + image * grad_q_strides[0] + head_offset * grad_q_strides[3] + grad_q_offset
        store_rows(rows, grad_q_strides[4], grad_q * scale, exists, DIM, BLOCK_DIM)
    if HAS_RPB:
        ENTRIES: tl.constexpr = (2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1)
        partial = partial_ptr + (rest.to(tl.int64) * TILE[0] * heads + head) * ENTRIES
        rows = tl.minimum(first0 + tl.arange(0, TILE[0]), n0 - 1) - origin0
        for step in tl.static_range(STEPS):
            _sum_diagonals(
                partial, sums[step], rows, p1 - origin1, step, heads * ENTRIES, KERNEL, TILE, WIDTH, BLOCK, BLOCK_TABLE
            )


@triton.jit(do_not_specialize=RUNTIME)
def image_key_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rpb_ptr,
    terms_ptr,
    grad_out_ptr,
    grad_k_ptr,
    grad_v_ptr,
    q_strides,
    k_strides,
    v_strides,
    grad_out_strides,
    grad_k_strides,
    grad_v_strides,
    height,
    width,
    dilation0,
    dilation1,
    tiles0,
    tiles1,
    heads,
    items,
    share,
    scale,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    KERNEL: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RPB: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SIZE: tl.constexpr = TILE[0] * TILE[1]
    ROWS: tl.constexpr = BLOCK // WIDTH
    pid = tl.program_id(0)
    head, rest = pid * 0, pid
    if HAS_RPB:
        head, rest = pid % heads, pid // heads
    index1, rest = rest % tiles1, rest // tiles1
    index0, split = rest % tiles0, rest // tiles0
    g0, first0, n0 = locate(index0, height, dilation0, TILE[0])
    g1, first1, n1 = locate(index1, width, dilation1, TILE[1])
    if (first0 >= n0) | (first1 >= n1):
        return

    t = tl.arange(0, SIZE)
    origin0, x0, exists0, start0, count0 = query_window(first0, n0, t // TILE[1], KERNEL[0])
    origin1, x1, exists1, start1, count1 = query_window(first1, n1, t % TILE[1], KERNEL[1])
    exists = exists0 & exists1
    k_offset = group_offset(g0, x0, dilation0, k_strides[1], WIDE) + group_offset(g1, x1, dilation1, k_strides[2], WIDE)
    v_offset = group_offset(g0, x0, dilation0, v_strides[1], WIDE) + group_offset(g1, x1, dilation1, v_strides[2], WIDE)
    grad_k_offset = group_offset(g0, x0, dilation0, grad_k_strides[1], WIDE)
    grad_k_offset += group_offset(g1, x1, dilation1, grad_k_strides[2], WIDE)
    grad_v_offset = group_offset(g0, x0, dilation0, grad_v_strides[1], WIDE)
    grad_v_offset += group_offset(g1, x1, dilation1, grad_v_strides[2], WIDE)
    j = tl.arange(0, BLOCK)
    row0, p1 = origin0 + j // WIDTH, tl.minimum(origin1 + j % WIDTH, n1 - 1)
    q_column = group_offset(g1, p1, dilation1, q_strides[2], WIDE)
    grad_column = group_offset(g1, p1, dilation1, grad_out_strides[2], WIDE)
    token_column = group_offset(g1, p1, dilation1, 2, WIDE)
    masks = ()
    for step in tl.static_range(STEPS):
        mask = mask_tile(
            rpb_ptr, head, start0, count0, start1, count1, x0 - origin0, x1 - origin1, scale, step,
            KERNEL, WIDTH, BLOCK, HAS_RPB, True,
        )  # fmt: skip
        masks = masks + (mask if q_ptr.dtype.element_ty == tl.float32 else mask.to(tl.bfloat16),)

    factor = scale * LOG2E
    tokens = height.to(tl.int64) * width
    first = split * share
    for item in range(first, tl.minimum(first + share, items)):
        image = item
        if not HAS_RPB:
            image, head = item // heads, item % heads
        image, head_offset = image.to(tl.int64), head.to(tl.int64)
        q_base = q_ptr + image * q_strides[0] + head_offset * q_strides[3]
        k_base = k_ptr + image * k_strides[0] + head_offset * k_strides[3]
        v_base = v_ptr + image * v_strides[0] + head_offset * v_strides[3]
        grad_base = grad_out_ptr + image * grad_out_strides[0] + head_offset * grad_out_strides[3]
        terms = terms_ptr + (image * heads + head) * tokens * 2
        k = load_rows(k_base + k_offset, k_strides[4], DIM, BLOCK_DIM)
        v = load_rows(v_base + v_offset, v_strides[4], VALUE_DIM, BLOCK_VALUE)
        grad_k = tl.zeros([SIZE, BLOCK_DIM], tl.float32)
        grad_v = tl.zeros([SIZE, BLOCK_VALUE], tl.float32)
        for step in tl.static_range(STEPS):
            q_rows = halo_offset(q_column, row0, step, g0, n0, dilation0, q_strides[1], ROWS, WIDE)
            grad_rows = halo_offset(grad_column, row0, step, g0, n0, dilation0, grad_out_strides[1], ROWS, WIDE)
            term = terms + halo_offset(token_column, row0, step, g0, n0, dilation0, width * 2, ROWS, WIDE)
            q = load_rows(q_base + q_rows, q_strides[4], DIM, BLOCK_DIM)
            grad_out = load_rows(grad_base + grad_rows, grad_out_strides[4], VALUE_DIM, BLOCK_VALUE)
            lse, delta = tl.load(term), tl.load(term + 1)
            s = dot(k, tl.trans(q), unpack_mask(masks[step], item), PRECISION)
            p = tl.exp2(s * factor - lse[None, :])
            grad_v = dot(p.to(grad_out_ptr.dtype.element_ty), grad_out, grad_v, PRECISION)
            grad_s = p * (dot(v, tl.trans(grad_out), None, PRECISION) - delta[None, :])
            grad_k = dot(grad_s.to(q_ptr.dtype.element_ty), q, grad_k, PRECISION)
        rows = grad_k_ptr + image * grad_k_strides[0] + head_offset * grad_k_strides[3] + grad_k_offset
        store_rows(rows, grad_k_strides[4], grad_k * scale, exists, DIM, BLOCK_DIM)
        rows = grad_v_ptr + image * grad_v_strides[0] + head_offset * grad_v_strides[3] + grad_v_offset
        store_rows(rows, grad_v_strides[4], grad_v, exists, VALUE_DIM, BLOCK_VALUE)
