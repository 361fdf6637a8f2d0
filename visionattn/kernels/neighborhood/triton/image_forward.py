"""Forward pass with programs that loop over images, for maps of two axes with moderate windows.

A program processes a tile of queries of one image after another (without a bias, also of one head after another). The
scores of ``GROUP`` steps are kept, so that there is one maximum and one rescaling for all of them instead of one per
step. See `tiles.loops_over_images` for the problems that this kernel takes.
"""

import triton
import triton.language as tl

from visionattn.kernels.neighborhood.triton.common import LOG2E, RUNTIME, dot, load_rows, locate, store_rows
from visionattn.kernels.neighborhood.triton.image_common import (
    group_offset,
    halo_offset,
    key_window,
    mask_tile,
    unpack_mask,
    varying,
)

__all__ = ["image_forward_kernel"]


@triton.jit(do_not_specialize=RUNTIME)
def image_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rpb_ptr,
    out_ptr,
    lse_ptr,
    q_strides,  # batch, two axes, heads, head_dim; same for k and v
    k_strides,
    v_strides,
    height,
    width,
    dilation0,
    dilation1,
    tiles0,  # tiles of each axis, over all dilation groups
    tiles1,
    heads,
    items,  # images with a bias, otherwise images times heads
    share,  # items per program
    scale,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    KERNEL: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    STEPS: tl.constexpr,
    GROUP: tl.constexpr,  # steps whose scores are kept
    BLOCK: tl.constexpr,
    HAS_RPB: tl.constexpr,
    SAME_STRIDES: tl.constexpr,  # of k and v
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SIZE: tl.constexpr = TILE[0] * TILE[1]
    ROWS: tl.constexpr = BLOCK // WIDTH
    pid = tl.program_id(0)
    head, rest = pid * 0, pid
    if HAS_RPB:  # heads are the fastest dimension, because they share the cache lines of a token
        head, rest = pid % heads, pid // heads
    index1, rest = rest % tiles1, rest // tiles1
    index0, split = rest % tiles0, rest // tiles0
    g0, first0, n0 = locate(index0, height, dilation0, TILE[0])
    g1, first1, n1 = locate(index1, width, dilation1, TILE[1])
    if (first0 >= n0) | (first1 >= n1):
        return  # a tile past the end of a shorter dilation group

    # Queries past the end of the group duplicate its last one and are not stored.
    t = tl.arange(0, SIZE)
    origin0, p0, exists0, start0, count0 = key_window(first0, n0, t // TILE[1], KERNEL[0])
    origin1, p1, exists1, start1, count1 = key_window(first1, n1, t % TILE[1], KERNEL[1])
    exists = exists0 & exists1
    q_offset = group_offset(g0, p0, dilation0, q_strides[1], WIDE) + group_offset(g1, p1, dilation1, q_strides[2], WIDE)
    token = group_offset(g0, p0, dilation0, width, WIDE) + group_offset(g1, p1, dilation1, 1, WIDE)
    j = tl.arange(0, BLOCK)
    first_row, x1 = origin0 + j // WIDTH, tl.minimum(origin1 + j % WIDTH, n1 - 1)
    k_column = group_offset(g1, x1, dilation1, k_strides[2], WIDE)
    v_column = group_offset(g1, x1, dilation1, v_strides[2], WIDE)
    masks = ()  # of each step: a word per query, or the bias tile divided by the scale
    for step in tl.static_range(STEPS):
        mask = mask_tile(
            rpb_ptr, head, start0, count0, start1, count1, p0 - origin0, p1 - origin1, scale, step,
            KERNEL, WIDTH, BLOCK, HAS_RPB, False,
        )  # fmt: skip
        masks = masks + (mask if q_ptr.dtype.element_ty == tl.float32 else mask.to(tl.bfloat16),)

    factor = scale * LOG2E
    first = split * share
    for item in range(first, tl.minimum(first + share, items)):
        image = item
        if not HAS_RPB:
            image, head = item // heads, item % heads
        row0 = first_row
        if SIZE <= 32:  # larger tiles have fewer rows per thread, and spill with it
            row0 = varying(first_row, item)
        image, head_offset = image.to(tl.int64), head.to(tl.int64)
        q_base = q_ptr + image * q_strides[0] + head_offset * q_strides[3]
        k_base = k_ptr + image * k_strides[0] + head_offset * k_strides[3]
        v_base = v_ptr + image * v_strides[0] + head_offset * v_strides[3]
        q = load_rows(q_base + q_offset, q_strides[4], DIM, BLOCK_DIM)
        m = tl.full([SIZE], -1e30, tl.float32)  # finite for steps without keys of a query
        total = tl.zeros([SIZE, BLOCK], tl.float32)
        acc = tl.zeros([SIZE, BLOCK_VALUE], tl.float32)
        for group in tl.static_range(0, STEPS, GROUP):
            scores = ()
            values = ()
            most = tl.full([SIZE, BLOCK], -1e30, tl.float32)
            for index in tl.static_range(GROUP):
                if group + index < STEPS:
                    k_offset = halo_offset(k_column, row0, group + index, g0, n0, dilation0, k_strides[1], ROWS, WIDE)
                    v_offset = k_offset
                    if not SAME_STRIDES:
                        v_offset = halo_offset(
                            v_column, row0, group + index, g0, n0, dilation0, v_strides[1], ROWS, WIDE
                        )
                    k = load_rows(k_base + k_offset, k_strides[4], DIM, BLOCK_DIM)
                    v = load_rows(v_base + v_offset, v_strides[4], VALUE_DIM, BLOCK_VALUE)
                    s = dot(q, tl.trans(k), unpack_mask(masks[group + index], item), PRECISION)
                    most = tl.maximum(most, s)
                    scores = scores + (s,)
                    values = values + (v,)
            m_new = tl.maximum(m, tl.max(most, 1))
            if group > 0:
                alpha = tl.exp2((m - m_new) * factor)[:, None]
                total = total * alpha
                acc = acc * alpha
            m = m_new
            for index in tl.static_range(GROUP):
                if group + index < STEPS:
                    p = tl.exp2(scores[index] * factor - (m * factor)[:, None])
                    total += p
                    acc = dot(p.to(v_ptr.dtype.element_ty), values[index], acc, PRECISION)
        l = tl.sum(total, 1)
        acc = acc * (1.0 / l)[:, None]
        row = (image * height * width + token) * heads + head
        store_rows(out_ptr + row * VALUE_DIM, 1, acc, exists, VALUE_DIM, BLOCK_VALUE)
        tl.store(lse_ptr + row, m * scale + tl.log(l), mask=exists)
