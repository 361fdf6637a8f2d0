"""Forward pass of the Triton backend: each program processes a tile of queries and iterates over its halo of keys.

The halo starts at the first key of the first query of the tile, without alignment: an 8x8 tile with a 7x7 window reads
14x14 keys, in flat chunks. The softmax is the online softmax of FlashAttention (arXiv 2205.14135, 2307.08691);
additional keys are further chunks of the same softmax.
"""

import triton
import triton.language as tl

from visionattn.kernels.neighborhood.triton.common import (
    LOG2E,
    RUNTIME,
    bias_offsets,
    dot,
    group_of,
    inside,
    load_rows,
    locate,
    masked_bias,
    pack,
    rows_of,
    store_rows,
    token_of,
    unflatten,
    window_end,
    window_start,
)

__all__ = ["forward_kernel"]


@triton.jit
def _update(s, v, acc, m, l, factor, PRECISION: tl.constexpr):
    """One step of the online softmax with scores ``s [M, N]`` (-inf where masked) and values ``v [N, d]``.

    Probabilities are ``exp2(s * factor)``: a positive scale is applied here, fused with the subtraction.
    """
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s * factor - (m_new * factor)[:, None])
    alpha = tl.exp2((m - m_new) * factor)
    l = l * alpha + tl.sum(p, 1)
    acc = dot(p.to(v.dtype), v, acc * alpha[:, None], PRECISION)
    return acc, m_new, l


@triton.jit(do_not_specialize=RUNTIME)
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rpb_ptr,
    extra_k_ptr,
    extra_v_ptr,
    out_ptr,
    lse_ptr,
    q_strides,  # batch, three axes, heads, head_dim, three axes times dilation; same for k and v
    k_strides,
    v_strides,
    extra_k_strides,  # batch, extra, heads, head_dim
    extra_v_strides,
    length0,
    length1,
    length2,
    dilation0,
    dilation1,
    dilation2,
    tiles0,  # tiles of each axis, over all dilation groups
    tiles1,
    tiles2,
    heads,
    extra,
    scale,
    REPEAT: tl.constexpr,  # query heads per key head
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    CAUSAL: tl.constexpr,
    TILE: tl.constexpr,
    HALO: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RPB: tl.constexpr,
    HAS_EXTRA: tl.constexpr,
    SKIP_MASK: tl.constexpr,
    LATE_SCALE: tl.constexpr,  # the scale is positive and not tiny, so it can be applied in the softmax
    SAME_STRIDES: tl.constexpr,  # of k and v
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    lengths, dilation, tiles = (length0, length1, length2), (dilation0, dilation1, dilation2), (tiles0, tiles1, tiles2)
    # Heads are the fastest dimension, because they share the cache lines of a token.
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    index2, rest = rest % tiles[2], rest // tiles[2]
    index1, rest = rest % tiles[1], rest // tiles[1]
    index0, batch = rest % tiles[0], (rest // tiles[0]).to(tl.int64)
    g0, first0, n0 = locate(index0, lengths[0], dilation[0], TILE[0])
    g1, first1, n1 = locate(index1, lengths[1], dilation[1], TILE[1])
    g2, first2, n2 = locate(index2, lengths[2], dilation[2], TILE[2])
    if (first0 >= n0) | (first1 >= n1) | (first2 >= n2):
        return  # a tile past the end of a shorter dilation group

    # Queries past the end of the group duplicate its last one and are not stored.
    t0, t1, t2 = unflatten(tl.arange(0, TILE[0] * TILE[1] * TILE[2]), TILE)
    exists = (first0 + t0 < n0) & (first1 + t1 < n1) & (first2 + t2 < n2)
    p0, p1, p2 = tl.minimum(first0 + t0, n0 - 1), tl.minimum(first1 + t1, n1 - 1), tl.minimum(first2 + t2, n2 - 1)
    start0 = window_start(p0, n0, KERNEL[0], STRIDE[0], CAUSAL[0])
    start1 = window_start(p1, n1, KERNEL[1], STRIDE[1], CAUSAL[1])
    start2 = window_start(p2, n2, KERNEL[2], STRIDE[2], CAUSAL[2])
    origin0 = window_start(first0, n0, KERNEL[0], STRIDE[0], CAUSAL[0])
    origin1 = window_start(first1, n1, KERNEL[1], STRIDE[1], CAUSAL[1])
    origin2 = window_start(first2, n2, KERNEL[2], STRIDE[2], CAUSAL[2])
    low = pack(start0 - origin0, start1 - origin1, start2 - origin2, BITS)
    high = pack(
        window_end(p0, start0, KERNEL[0], CAUSAL[0]) - 1 - origin0,
        window_end(p1, start1, KERNEL[1], CAUSAL[1]) - 1 - origin1,
        window_end(p2, start2, KERNEL[2], CAUSAL[2]) - 1 - origin2,
        BITS,
    )
    final0 = tl.minimum(first0 + (TILE[0] - 1), n0 - 1)
    final_start0 = window_start(final0, n0, KERNEL[0], STRIDE[0], CAUSAL[0])
    keys = (window_end(final0, final_start0, KERNEL[0], CAUSAL[0]) - origin0) * (HALO[1] * HALO[2])
    if SKIP_MASK:  # flat range of the halo that all queries of the tile attend to
        final1 = tl.minimum(first1 + (TILE[1] - 1), n1 - 1)
        final2 = tl.minimum(first2 + (TILE[2] - 1), n2 - 1)
        common1 = window_start(final1, n1, KERNEL[1], STRIDE[1], CAUSAL[1]) == origin1
        common2 = window_start(final2, n2, KERNEL[2], STRIDE[2], CAUSAL[2]) == origin2
        common1 = common1 & (window_end(first1, origin1, KERNEL[1], CAUSAL[1]) - origin1 == HALO[1])
        common2 = common2 & (window_end(first2, origin2, KERNEL[2], CAUSAL[2]) - origin2 == HALO[2])
        free_from = (final_start0 - origin0) * (HALO[1] * HALO[2])
        free_to = (window_end(first0, origin0, KERNEL[0], CAUSAL[0]) - origin0) * (HALO[1] * HALO[2])
        free_to = tl.where(common1 & common2, free_to, 0)

    head_kv = head // REPEAT
    q_base = group_of(q_ptr, batch, g0, g1, g2, head, q_strides)
    k_base = group_of(k_ptr, batch, g0, g1, g2, head_kv, k_strides)
    v_base = group_of(v_ptr, batch, g0, g1, g2, head_kv, v_strides)

    q = load_rows(rows_of(q_base, p0, p1, p2, q_strides, WIDE), q_strides[5], DIM, BLOCK_DIM)
    if HAS_RPB:
        table = rpb_ptr + head * ((2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1) * (2 * KERNEL[2] - 1))
        query_offset = bias_offsets(p0 - origin0, p1 - origin1, p2 - origin2, KERNEL)
    factor = scale * LOG2E if LATE_SCALE else LOG2E
    if HAS_RPB and LATE_SCALE:
        inverse_scale = 1.0 / scale
    m = tl.full([TILE[0] * TILE[1] * TILE[2]], -1e30, tl.float32)  # finite for chunks without keys of a query
    # Not tl.zeros, which in Triton 3.4 and 3.5 does not accept a computed size.
    l = tl.full([TILE[0] * TILE[1] * TILE[2]], 0, tl.float32)
    acc = tl.full([TILE[0] * TILE[1] * TILE[2], BLOCK_VALUE], 0, tl.float32)
    for chunk in range(0, keys, BLOCK):
        j0, j1, j2 = unflatten(chunk + tl.arange(0, BLOCK), HALO)
        # Keys past the end of the group or the halo are masked and read the last key instead.
        x0 = tl.minimum(origin0 + j0, n0 - 1)
        x1 = tl.minimum(origin1 + j1, n1 - 1)
        x2 = tl.minimum(origin2 + j2, n2 - 1)
        k = load_rows(rows_of(k_base, x0, x1, x2, k_strides, WIDE), k_strides[5], DIM, BLOCK_DIM)
        if SAME_STRIDES:
            v_rows = rows_of(v_base, x0, x1, x2, k_strides, WIDE)
        else:
            v_rows = rows_of(v_base, x0, x1, x2, v_strides, WIDE)
        v = load_rows(v_rows, v_strides[5], VALUE_DIM, BLOCK_VALUE)
        keys_here = pack(j0, j1, j2, BITS)[None, :]
        if HAS_RPB:
            # The bias is the initial accumulator of the product, so that everything stays in the layout of the product.
            # If it is added afterwards, the compiler computes the softmax in two layouts.
            allowed = inside(low[:, None], high[:, None], keys_here, BITS)
            offset = bias_offsets(j0, j1, j2, KERNEL)
            bias = masked_bias(table, offset[None, :], query_offset[:, None], allowed, KERNEL)
            if LATE_SCALE:
                s = dot(q, tl.trans(k), bias * inverse_scale, PRECISION)
            else:
                s = dot(q, tl.trans(k), None, PRECISION) * scale + bias
        else:
            s = dot(q, tl.trans(k), None, PRECISION)
            if not LATE_SCALE:
                s *= scale
            if SKIP_MASK:
                if (chunk < free_from) | (chunk + BLOCK > free_to):
                    s = tl.where(inside(low[:, None], high[:, None], keys_here, BITS), s, float("-inf"))
            else:
                s = tl.where(inside(low[:, None], high[:, None], keys_here, BITS), s, float("-inf"))
        acc, m, l = _update(s, v, acc, m, l, factor, PRECISION)
    if HAS_EXTRA:
        k_base = extra_k_ptr + batch * extra_k_strides[0] + head_kv.to(tl.int64) * extra_k_strides[2]
        v_base = extra_v_ptr + batch * extra_v_strides[0] + head_kv.to(tl.int64) * extra_v_strides[2]
        for chunk in range(0, extra, BLOCK):
            j = chunk + tl.arange(0, BLOCK)
            x = tl.minimum(j, extra - 1)
            k = load_rows(k_base + x * extra_k_strides[1], extra_k_strides[3], DIM, BLOCK_DIM)
            v = load_rows(v_base + x * extra_v_strides[1], extra_v_strides[3], VALUE_DIM, BLOCK_VALUE)
            s = dot(q, tl.trans(k), None, PRECISION)
            if not LATE_SCALE:
                s *= scale
            s = tl.where((j < extra)[None, :], s, float("-inf"))
            acc, m, l = _update(s, v, acc, m, l, factor, PRECISION)

    acc = acc / l[:, None]
    row = token_of(batch, lengths, g0, g1, g2, p0, p1, p2, dilation) * heads + head
    store_rows(out_ptr + row * VALUE_DIM, 1, acc, exists, VALUE_DIM, BLOCK_VALUE)
    tl.store(lse_ptr + row, m * (factor / LOG2E) + tl.log(l), mask=exists)
