"""Gradients that are sums over the map: those of the bias table and of the additional keys and values.

Both are reduced in two stages. Each program sums over a share of the queries into separate memory, and PyTorch adds the
shares, whose number is bounded for any map.
"""

import triton
import triton.language as tl

from visionattn.kernels.neighborhood.triton.backward import key_step
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
    window_start,
)

__all__ = ["bias_kernel", "extra_kernel"]


@triton.jit
def _add_diagonals(
    partial,
    acc,
    shift0,
    shift1,
    shift2,
    chunk,
    KERNEL: tl.constexpr,
    TILE: tl.constexpr,
    HALO: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TABLE: tl.constexpr,
):
    """Add ``acc [queries of a tile, keys of a chunk]`` to the table entries of the offsets of the pairs.

    For each query, an entry of the table corresponds to at most one key; a gather aligns them, and the rows are summed.
    ``shift``: first key of the halo minus first query of the tile.
    """
    t0, t1, t2 = unflatten(tl.arange(0, TILE[0] * TILE[1] * TILE[2]), TILE)
    TABLE: tl.constexpr = (2 * KERNEL[0] - 1, 2 * KERNEL[1] - 1, 2 * KERNEL[2] - 1)
    ENTRIES: tl.constexpr = (2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1) * (2 * KERNEL[2] - 1)
    for first in range(0, ENTRIES, BLOCK_TABLE):
        entry = first + tl.arange(0, BLOCK_TABLE)
        o0, o1, o2 = unflatten(entry, TABLE)
        j0 = (o0 - (KERNEL[0] - 1) - shift0)[None, :] + t0[:, None]
        j1 = (o1 - (KERNEL[1] - 1) - shift1)[None, :] + t1[:, None]
        j2 = (o2 - (KERNEL[2] - 1) - shift2)[None, :] + t2[:, None]
        key = (j0 * HALO[1] + j1) * HALO[2] + j2 - chunk
        found = (j0 >= 0) & (j1 >= 0) & (j2 >= 0) & (j0 < HALO[0]) & (j1 < HALO[1]) & (j2 < HALO[2])
        found = found & (key >= 0) & (key < BLOCK) & (entry < ENTRIES)[None, :]
        values = tl.gather(acc, tl.where(found, key, 0), axis=1)
        total = tl.sum(tl.where(found, values, 0.0), 0)
        pointers = partial + entry
        tl.store(pointers, tl.load(pointers, mask=entry < ENTRIES) + total, mask=entry < ENTRIES)


@triton.jit(do_not_specialize=RUNTIME)
def bias_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    rpb_ptr,
    lse_ptr,
    delta_ptr,
    grad_out_ptr,
    partial_ptr,  # [splits, chunks, heads, table], zeros
    q_strides,
    k_strides,
    v_strides,
    grad_out_strides,
    length0,
    length1,
    length2,
    dilation0,
    dilation1,
    dilation2,
    tiles0,
    tiles1,
    tiles2,
    batch_size,
    heads,
    scale,
    chunks,
    share,  # tiles of images per program
    REPEAT: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    TILE: tl.constexpr,
    HALO: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_TABLE: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Process one chunk of the halo for the tiles of one share, iterating over images, then over tiles of the map.

    Gradients of scores are accumulated in place while tiles have the same offset to their halos, and are added to the
    table when the offset changes.
    """
    lengths, dilation, tiles = (length0, length1, length2), (dilation0, dilation1, dilation2), (tiles0, tiles1, tiles2)
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    index, split = rest % chunks, rest // chunks
    chunk = index * BLOCK
    ENTRIES: tl.constexpr = (2 * KERNEL[0] - 1) * (2 * KERNEL[1] - 1) * (2 * KERNEL[2] - 1)
    partial = partial_ptr + pid.to(tl.int64) * ENTRIES
    table = rpb_ptr + head * ENTRIES
    head_kv = head // REPEAT
    t0, t1, t2 = unflatten(tl.arange(0, TILE[0] * TILE[1] * TILE[2]), TILE)
    j0, j1, j2 = unflatten(chunk + tl.arange(0, BLOCK), HALO)
    keys = pack(j0, j1, j2, BITS)
    key_offset = bias_offsets(j0, j1, j2, KERNEL)
    acc = tl.full([TILE[0] * TILE[1] * TILE[2], BLOCK], 0, tl.float32)
    shift0, shift1, shift2 = split * 0, split * 0, split * 0
    begin = split.to(tl.int64) * share
    end = tl.minimum(begin + share, batch_size.to(tl.int64) * tiles[0] * tiles[1] * tiles[2])
    for item in range(begin, end):
        batch, rest = (item % batch_size), (item // batch_size).to(tl.int32)
        index2, rest = rest % tiles[2], rest // tiles[2]
        index1, index0 = rest % tiles[1], rest // tiles[1]
        g0, first0, n0 = locate(index0, lengths[0], dilation[0], TILE[0])
        g1, first1, n1 = locate(index1, lengths[1], dilation[1], TILE[1])
        g2, first2, n2 = locate(index2, lengths[2], dilation[2], TILE[2])
        exists = (first0 + t0 < n0) & (first1 + t1 < n1) & (first2 + t2 < n2)
        p0, p1, p2 = tl.minimum(first0 + t0, n0 - 1), tl.minimum(first1 + t1, n1 - 1), tl.minimum(first2 + t2, n2 - 1)
        start0 = window_start(p0, n0, KERNEL[0], STRIDE[0], False)
        start1 = window_start(p1, n1, KERNEL[1], STRIDE[1], False)
        start2 = window_start(p2, n2, KERNEL[2], STRIDE[2], False)
        origin0 = window_start(first0, n0, KERNEL[0], STRIDE[0], False)
        origin1 = window_start(first1, n1, KERNEL[1], STRIDE[1], False)
        origin2 = window_start(first2, n2, KERNEL[2], STRIDE[2], False)
        if (origin0 - first0 != shift0) | (origin1 - first1 != shift1) | (origin2 - first2 != shift2):
            _add_diagonals(partial, acc, shift0, shift1, shift2, chunk, KERNEL, TILE, HALO, BLOCK, BLOCK_TABLE)
            acc = tl.full([TILE[0] * TILE[1] * TILE[2], BLOCK], 0, tl.float32)
        shift0, shift1, shift2 = origin0 - first0, origin1 - first1, origin2 - first2
        low = pack(start0 - origin0, start1 - origin1, start2 - origin2, BITS)
        high = low + pack(KERNEL[0] - 1, KERNEL[1] - 1, KERNEL[2] - 1, BITS)
        allowed = inside(low[:, None], high[:, None], keys[None, :], BITS) & exists[:, None]

        q_base = group_of(q_ptr, batch, g0, g1, g2, head, q_strides)
        k_base = group_of(k_ptr, batch, g0, g1, g2, head_kv, k_strides)
        v_base = group_of(v_ptr, batch, g0, g1, g2, head_kv, v_strides)
        grad_base = group_of(grad_out_ptr, batch, g0, g1, g2, head, grad_out_strides)
        q = load_rows(rows_of(q_base, p0, p1, p2, q_strides, WIDE), q_strides[5], DIM, BLOCK_DIM)
        grad_out = load_rows(
            rows_of(grad_base, p0, p1, p2, grad_out_strides, WIDE), grad_out_strides[5], VALUE_DIM, BLOCK_VALUE
        )
        x0 = tl.minimum(origin0 + j0, n0 - 1)
        x1 = tl.minimum(origin1 + j1, n1 - 1)
        x2 = tl.minimum(origin2 + j2, n2 - 1)
        k = load_rows(rows_of(k_base, x0, x1, x2, k_strides, WIDE), k_strides[5], DIM, BLOCK_DIM)
        v = load_rows(rows_of(v_base, x0, x1, x2, v_strides, WIDE), v_strides[5], VALUE_DIM, BLOCK_VALUE)
        row = token_of(batch, lengths, g0, g1, g2, p0, p1, p2, dilation) * heads + head
        lse, delta = tl.load(lse_ptr + row), tl.load(delta_ptr + row)
        query_offset = bias_offsets(p0 - origin0, p1 - origin1, p2 - origin2, KERNEL)
        s = dot(q, tl.trans(k), None, PRECISION) * scale
        s += masked_bias(table, key_offset[None, :], query_offset[:, None], allowed, KERNEL)
        p = tl.exp2(s * LOG2E - (lse * LOG2E)[:, None])
        acc += p * (dot(grad_out, tl.trans(v), None, PRECISION) - delta[:, None])
    _add_diagonals(partial, acc, shift0, shift1, shift2, chunk, KERNEL, TILE, HALO, BLOCK, BLOCK_TABLE)


@triton.jit(do_not_specialize=RUNTIME)
def extra_kernel(
    q_ptr,
    extra_k_ptr,
    extra_v_ptr,
    lse_ptr,
    delta_ptr,
    grad_out_ptr,
    partial_k_ptr,  # [splits, batch, extra, heads_kv, head_dim], float32
    partial_v_ptr,
    q_strides,
    extra_k_strides,  # batch, extra, heads, head_dim
    extra_v_strides,
    grad_out_strides,
    length0,
    length1,
    length2,
    batch_size,
    heads,
    extra,
    scale,
    blocks,  # of additional keys
    share,  # queries per program
    REPEAT: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_EXTRA: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Process a block of additional keys of one image and head with the queries of one share of the map."""
    pid = tl.program_id(0)
    heads_kv = heads // REPEAT
    head_kv, rest = pid % heads_kv, pid // heads_kv
    block, rest = rest % blocks, rest // blocks
    batch, split = rest % batch_size, rest // batch_size
    j = block * BLOCK_EXTRA + tl.arange(0, BLOCK_EXTRA)
    x = tl.minimum(j, extra - 1)
    k_base = extra_k_ptr + batch.to(tl.int64) * extra_k_strides[0] + head_kv.to(tl.int64) * extra_k_strides[2]
    v_base = extra_v_ptr + batch.to(tl.int64) * extra_v_strides[0] + head_kv.to(tl.int64) * extra_v_strides[2]
    k = load_rows(k_base + x * extra_k_strides[1], extra_k_strides[3], DIM, BLOCK_DIM)
    v = load_rows(v_base + x * extra_v_strides[1], extra_v_strides[3], VALUE_DIM, BLOCK_VALUE)
    grad_k = tl.zeros([BLOCK_EXTRA, BLOCK_DIM], tl.float32)
    grad_v = tl.zeros([BLOCK_EXTRA, BLOCK_VALUE], tl.float32)
    tokens = length0 * length1 * length2
    end = tl.minimum((split + 1) * share, tokens)
    zero = pid * 0
    for repeat in range(0, REPEAT):
        head = head_kv * REPEAT + repeat
        q_base = group_of(q_ptr, batch, zero, zero, zero, head, q_strides)
        grad_base = group_of(grad_out_ptr, batch, zero, zero, zero, head, grad_out_strides)
        for first in range(split * share, end, BLOCK):
            token = first + tl.arange(0, BLOCK)
            here = token < end
            token = tl.minimum(token, tokens - 1)
            line = token // length2
            x0, x1 = (line // length1).to(tl.int64), (line % length1).to(tl.int64)
            x2 = (token % length2).to(tl.int64)
            q = load_rows(
                q_base + (x0 * q_strides[1] + x1 * q_strides[2] + x2 * q_strides[3]), q_strides[5], DIM, BLOCK_DIM
            )
            grad_rows = x0 * grad_out_strides[1] + x1 * grad_out_strides[2] + x2 * grad_out_strides[3]
            grad_out = load_rows(grad_base + grad_rows, grad_out_strides[5], VALUE_DIM, BLOCK_VALUE)
            row = (batch.to(tl.int64) * tokens + token) * heads + head
            lse, delta = tl.load(lse_ptr + row), tl.load(delta_ptr + row)
            s = dot(k, tl.trans(q), None, PRECISION) * scale
            s = tl.where(here[None, :], s, float("-inf"))
            grad_k, grad_v = key_step(s, q, v, grad_out, lse, delta, grad_k, grad_v, PRECISION)
    row = ((split.to(tl.int64) * batch_size + batch) * extra + x) * heads_kv + head_kv
    store_rows(partial_k_ptr + row * DIM, 1, grad_k * scale, j < extra, DIM, BLOCK_DIM)
    store_rows(partial_v_ptr + row * VALUE_DIM, 1, grad_v, j < extra, VALUE_DIM, BLOCK_VALUE)
