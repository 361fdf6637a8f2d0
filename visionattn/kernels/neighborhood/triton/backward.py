"""Backward pass of the Triton backend, which recomputes the scores. There are no atomics, so it is deterministic.

There are three kernels. `query_kernel` iterates over the halo like the forward pass and computes the gradient of the
queries and ``delta``, the per-query term of the softmax gradient. `key_kernel` processes a tile of keys and iterates
over the queries whose windows contain them, which are also an interval per axis. `bias_kernel` in
`triton.reductions` sums over the map.
"""

import triton
import triton.language as tl

from visionattn.kernels.neighborhood.triton.common import (
    LOG2E,
    RUNTIME,
    bias_offsets,
    dot,
    first_query,
    group_of,
    inside,
    last_query,
    load_rows,
    locate,
    masked_bias,
    pack,
    pair_bias,
    rows_of,
    store_rows,
    token_of,
    unflatten,
    window_end,
    window_start,
)

__all__ = ["key_kernel", "key_step", "query_kernel"]


@triton.jit(do_not_specialize=RUNTIME)
def query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rpb_ptr,
    extra_k_ptr,
    extra_v_ptr,
    out_ptr,
    lse_ptr,
    grad_out_ptr,
    grad_lse_ptr,  # contiguous, or None
    grad_q_ptr,
    delta_ptr,
    q_strides,  # batch, three axes, heads, head_dim, three axes times dilation; same below
    k_strides,
    v_strides,
    extra_k_strides,  # batch, extra, heads, head_dim
    extra_v_strides,
    grad_out_strides,
    grad_q_strides,
    length0,
    length1,
    length2,
    dilation0,
    dilation1,
    dilation2,
    tiles0,
    tiles1,
    tiles2,
    heads,
    extra,
    scale,
    REPEAT: tl.constexpr,
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
    HAS_GRAD_LSE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    lengths, dilation, tiles = (length0, length1, length2), (dilation0, dilation1, dilation2), (tiles0, tiles1, tiles2)
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    index2, rest = rest % tiles[2], rest // tiles[2]
    index1, rest = rest % tiles[1], rest // tiles[1]
    index0, batch = rest % tiles[0], rest // tiles[0]
    g0, first0, n0 = locate(index0, lengths[0], dilation[0], TILE[0])
    g1, first1, n1 = locate(index1, lengths[1], dilation[1], TILE[1])
    g2, first2, n2 = locate(index2, lengths[2], dilation[2], TILE[2])
    if (first0 >= n0) | (first1 >= n1) | (first2 >= n2):
        return

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
    final = tl.minimum(first0 + (TILE[0] - 1), n0 - 1)
    final_start = window_start(final, n0, KERNEL[0], STRIDE[0], CAUSAL[0])
    keys = (window_end(final, final_start, KERNEL[0], CAUSAL[0]) - origin0) * (HALO[1] * HALO[2])

    head_kv = head // REPEAT
    q_base = group_of(q_ptr, batch, g0, g1, g2, head, q_strides)
    k_base = group_of(k_ptr, batch, g0, g1, g2, head_kv, k_strides)
    v_base = group_of(v_ptr, batch, g0, g1, g2, head_kv, v_strides)
    grad_base = group_of(grad_out_ptr, batch, g0, g1, g2, head, grad_out_strides)
    q = load_rows(rows_of(q_base, p0, p1, p2, q_strides, WIDE), q_strides[5], DIM, BLOCK_DIM)
    grad_out = load_rows(
        rows_of(grad_base, p0, p1, p2, grad_out_strides, WIDE), grad_out_strides[5], VALUE_DIM, BLOCK_VALUE
    )
    row = token_of(batch, lengths, g0, g1, g2, p0, p1, p2, dilation) * heads + head
    out = load_rows(out_ptr + row * VALUE_DIM, 1, VALUE_DIM, BLOCK_VALUE)
    delta = tl.sum(out.to(tl.float32) * grad_out.to(tl.float32), 1)
    if HAS_GRAD_LSE:  # its gradient for each score is the probability, like that of -delta
        delta -= tl.load(grad_lse_ptr + row).to(tl.float32)
    tl.store(delta_ptr + row, delta, mask=exists)
    lse = tl.load(lse_ptr + row) * LOG2E
    if HAS_RPB:
        table = rpb_ptr + head * ((2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1) * (2 * KERNEL[2] - 1))
        query_offset = bias_offsets(p0 - origin0, p1 - origin1, p2 - origin2, KERNEL)
    grad_q = tl.full([TILE[0] * TILE[1] * TILE[2], BLOCK_DIM], 0, tl.float32)
    for chunk in range(0, keys, BLOCK):
        j0, j1, j2 = unflatten(chunk + tl.arange(0, BLOCK), HALO)
        x0 = tl.minimum(origin0 + j0, n0 - 1)
        x1 = tl.minimum(origin1 + j1, n1 - 1)
        x2 = tl.minimum(origin2 + j2, n2 - 1)
        k = load_rows(rows_of(k_base, x0, x1, x2, k_strides, WIDE), k_strides[5], DIM, BLOCK_DIM)
        v = load_rows(rows_of(v_base, x0, x1, x2, v_strides, WIDE), v_strides[5], VALUE_DIM, BLOCK_VALUE)
        s = dot(q, tl.trans(k), None, PRECISION) * scale
        allowed = inside(low[:, None], high[:, None], pack(j0, j1, j2, BITS)[None, :], BITS)
        if HAS_RPB:
            offset = bias_offsets(j0, j1, j2, KERNEL)
            s += masked_bias(table, offset[None, :], query_offset[:, None], allowed, KERNEL)
        else:
            s = tl.where(allowed, s, float("-inf"))
        p = tl.exp2(s * LOG2E - lse[:, None])
        grad_p = dot(grad_out, tl.trans(v), None, PRECISION)
        grad_s = p * (grad_p - delta[:, None])
        grad_q = dot(grad_s.to(k.dtype), k, grad_q, PRECISION)
    if HAS_EXTRA:
        k_base = extra_k_ptr + batch.to(tl.int64) * extra_k_strides[0] + head_kv.to(tl.int64) * extra_k_strides[2]
        v_base = extra_v_ptr + batch.to(tl.int64) * extra_v_strides[0] + head_kv.to(tl.int64) * extra_v_strides[2]
        for chunk in range(0, extra, BLOCK):
            j = chunk + tl.arange(0, BLOCK)
            x = tl.minimum(j, extra - 1)
            k = load_rows(k_base + x * extra_k_strides[1], extra_k_strides[3], DIM, BLOCK_DIM)
            v = load_rows(v_base + x * extra_v_strides[1], extra_v_strides[3], VALUE_DIM, BLOCK_VALUE)
            s = dot(q, tl.trans(k), None, PRECISION) * scale
            s = tl.where((j < extra)[None, :], s, float("-inf"))
            p = tl.exp2(s * LOG2E - lse[:, None])
            grad_p = dot(grad_out, tl.trans(v), None, PRECISION)
            grad_s = p * (grad_p - delta[:, None])
            grad_q = dot(grad_s.to(k.dtype), k, grad_q, PRECISION)
    grad_base = group_of(grad_q_ptr, batch, g0, g1, g2, head, grad_q_strides)
    grad_rows = rows_of(grad_base, p0, p1, p2, grad_q_strides, WIDE)
    store_rows(grad_rows, grad_q_strides[5], grad_q * scale, exists, DIM, BLOCK_DIM)


@triton.jit
def key_step(s, q, v, grad_out, lse, delta, grad_k, grad_v, PRECISION: tl.constexpr):
    """Accumulate the gradients of keys ``[N]`` from queries ``[M]``; ``s [N, M]`` are the transposed scores."""
    p = tl.exp2(s * LOG2E - (lse * LOG2E)[None, :])
    grad_v = dot(p.to(grad_out.dtype), grad_out, grad_v, PRECISION)
    grad_p = dot(v, tl.trans(grad_out), None, PRECISION)
    grad_s = p * (grad_p - delta[None, :])
    grad_k = dot(grad_s.to(q.dtype), q, grad_k, PRECISION)
    return grad_k, grad_v


@triton.jit
def _clip(start, end, first, TILE: tl.constexpr):
    """First and last key of a window within a key tile, or ``TILE`` and 0 if they do not overlap."""
    meets = (end > first) & (start < first + TILE)
    low = tl.where(meets, tl.maximum(start - first, 0), TILE)
    return low, tl.where(meets, tl.minimum(end - 1 - first, TILE), 0)


@triton.jit(do_not_specialize=RUNTIME)
def key_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rpb_ptr,
    lse_ptr,
    delta_ptr,
    grad_out_ptr,
    grad_k_ptr,
    grad_v_ptr,
    q_strides,
    k_strides,
    v_strides,
    grad_out_strides,
    grad_k_strides,
    grad_v_strides,
    length0,
    length1,
    length2,
    dilation0,
    dilation1,
    dilation2,
    tiles0,
    tiles1,
    tiles2,
    heads,
    scale,
    REPEAT: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    CAUSAL: tl.constexpr,
    TILE: tl.constexpr,
    HALO: tl.constexpr,  # maximum number of queries per axis whose windows overlap the tile
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RPB: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    lengths, dilation, tiles = (length0, length1, length2), (dilation0, dilation1, dilation2), (tiles0, tiles1, tiles2)
    pid = tl.program_id(0)
    heads_kv = heads // REPEAT
    head_kv, rest = pid % heads_kv, pid // heads_kv
    index2, rest = rest % tiles[2], rest // tiles[2]
    index1, rest = rest % tiles[1], rest // tiles[1]
    index0, batch = rest % tiles[0], rest // tiles[0]
    g0, first0, n0 = locate(index0, lengths[0], dilation[0], TILE[0])
    g1, first1, n1 = locate(index1, lengths[1], dilation[1], TILE[1])
    g2, first2, n2 = locate(index2, lengths[2], dilation[2], TILE[2])
    if (first0 >= n0) | (first1 >= n1) | (first2 >= n2):
        return

    t0, t1, t2 = unflatten(tl.arange(0, TILE[0] * TILE[1] * TILE[2]), TILE)
    exists = (first0 + t0 < n0) & (first1 + t1 < n1) & (first2 + t2 < n2)
    x0, x1, x2 = tl.minimum(first0 + t0, n0 - 1), tl.minimum(first1 + t1, n1 - 1), tl.minimum(first2 + t2, n2 - 1)
    keys = pack(t0, t1, t2, BITS)
    k_base = group_of(k_ptr, batch, g0, g1, g2, head_kv, k_strides)
    v_base = group_of(v_ptr, batch, g0, g1, g2, head_kv, v_strides)
    k = load_rows(rows_of(k_base, x0, x1, x2, k_strides, WIDE), k_strides[5], DIM, BLOCK_DIM)
    v = load_rows(rows_of(v_base, x0, x1, x2, v_strides, WIDE), v_strides[5], VALUE_DIM, BLOCK_VALUE)

    origin0 = first_query(first0, n0, KERNEL[0], STRIDE[0], CAUSAL[0])
    origin1 = first_query(first1, n1, KERNEL[1], STRIDE[1], CAUSAL[1])
    origin2 = first_query(first2, n2, KERNEL[2], STRIDE[2], CAUSAL[2])
    final = tl.minimum(first0 + (TILE[0] - 1), n0 - 1)
    rows = last_query(final, n0, KERNEL[0], STRIDE[0], CAUSAL[0]) - origin0 + 1
    key_offset = bias_offsets(t0, t1, t2, KERNEL)
    grad_k = tl.full([TILE[0] * TILE[1] * TILE[2], BLOCK_DIM], 0, tl.float32)
    grad_v = tl.full([TILE[0] * TILE[1] * TILE[2], BLOCK_VALUE], 0, tl.float32)
    for repeat in range(0, REPEAT):
        head = head_kv * REPEAT + repeat
        q_base = group_of(q_ptr, batch, g0, g1, g2, head, q_strides)
        grad_base = group_of(grad_out_ptr, batch, g0, g1, g2, head, grad_out_strides)
        if HAS_RPB:
            table = rpb_ptr + head * ((2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1) * (2 * KERNEL[2] - 1))
        for chunk in range(0, rows * (HALO[1] * HALO[2]), BLOCK):
            i0, i1, i2 = unflatten(chunk + tl.arange(0, BLOCK), HALO)
            i0, i1, i2 = origin0 + i0, origin1 + i1, origin2 + i2
            p0, p1, p2 = tl.minimum(i0, n0 - 1), tl.minimum(i1, n1 - 1), tl.minimum(i2, n2 - 1)
            start0 = window_start(p0, n0, KERNEL[0], STRIDE[0], CAUSAL[0])
            start1 = window_start(p1, n1, KERNEL[1], STRIDE[1], CAUSAL[1])
            start2 = window_start(p2, n2, KERNEL[2], STRIDE[2], CAUSAL[2])
            low0, high0 = _clip(start0, window_end(p0, start0, KERNEL[0], CAUSAL[0]), first0, TILE[0])
            low1, high1 = _clip(start1, window_end(p1, start1, KERNEL[1], CAUSAL[1]), first1, TILE[1])
            low2, high2 = _clip(start2, window_end(p2, start2, KERNEL[2], CAUSAL[2]), first2, TILE[2])
            low0 = tl.where((i0 < n0) & (i1 < n1) & (i2 < n2), low0, TILE[0])
            low, high = pack(low0, low1, low2, BITS), pack(high0, high1, high2, BITS)
            allowed = inside(low[None, :], high[None, :], keys[:, None], BITS)
            q = load_rows(rows_of(q_base, p0, p1, p2, q_strides, WIDE), q_strides[5], DIM, BLOCK_DIM)
            grad_out = load_rows(
                rows_of(grad_base, p0, p1, p2, grad_out_strides, WIDE), grad_out_strides[5], VALUE_DIM, BLOCK_VALUE
            )
            row = token_of(batch, lengths, g0, g1, g2, p0, p1, p2, dilation) * heads + head
            s = dot(k, tl.trans(q), None, PRECISION) * scale
            if HAS_RPB:
                query_offset = bias_offsets(p0 - first0, p1 - first1, p2 - first2, KERNEL)
                s += pair_bias(table, key_offset[:, None], query_offset[None, :], KERNEL)
            s = tl.where(allowed, s, float("-inf"))
            lse, delta = tl.load(lse_ptr + row), tl.load(delta_ptr + row)
            grad_k, grad_v = key_step(s, q, v, grad_out, lse, delta, grad_k, grad_v, PRECISION)
    grad_base = group_of(grad_k_ptr, batch, g0, g1, g2, head_kv, grad_k_strides)
    grad_rows = rows_of(grad_base, x0, x1, x2, grad_k_strides, WIDE)
    store_rows(grad_rows, grad_k_strides[5], grad_k * scale, exists, DIM, BLOCK_DIM)
    grad_base = group_of(grad_v_ptr, batch, g0, g1, g2, head_kv, grad_v_strides)
    grad_rows = rows_of(grad_base, x0, x1, x2, grad_v_strides, WIDE)
    store_rows(grad_rows, grad_v_strides[5], grad_v, exists, VALUE_DIM, BLOCK_VALUE)
