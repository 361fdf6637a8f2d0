"""Backward pass of the Triton backend, without atomics: one kernel over queries, one over keys.

The first iterates over the keys of the selected regions, like the forward pass. The second iterates over the queries of
the regions that selected a key region; `index_kernel` lists them. The gradient of each key is written by one program,
so the result does not depend on the order of the programs. Small maps are processed as a whole, as in the forward pass.
"""

import triton
import triton.language as tl

from visionattn.kernels.routing.triton.common import (
    SCALARS,
    listed_tokens,
    load_numbers,
    load_rows,
    own_tokens,
    program,
    region_bits,
    region_shift,
    selects,
    store_numbers,
    store_rows,
)

__all__ = ["index_kernel", "key_kernel", "query_kernel"]

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["topk"])
def index_kernel(
    key_regions_ptr,  # int64 [batch, regions, topk]
    selecting_ptr,  # int32 [batch, regions, regions]: query regions that selected a key region, in ascending order
    counts_ptr,  # int32 [batch, regions]: number of them
    topk,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """List the query regions that selected the key region of this program."""
    region, batch = tl.program_id(0) % COUNT, (tl.program_id(0) // COUNT).to(tl.int64)
    row = batch * COUNT + region
    found = 0
    for start in range(0, COUNT * topk, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        chosen = tl.load(key_regions_ptr + batch * COUNT * topk + entry, mask=entry < COUNT * topk, other=-1)
        hit = (chosen == region).to(tl.int32)
        place = found + tl.cumsum(hit, 0) - 1
        # Without the limit, lists with duplicates, which are invalid arguments, would be written past the row.
        tl.store(selecting_ptr + row * COUNT + place, entry // topk, mask=(hit != 0) & (place < COUNT))
        found += tl.sum(hit, 0)
    tl.store(counts_ptr + row, tl.minimum(found, COUNT))


@triton.jit
def add_to_queries(
    q, grad, lse, delta, dq, start, list_ptr, bits, k_base, v_base, padding_base, k_strides, v_strides,
    key_height, key_width, key_size_y, key_size_x, key_tokens, key_by_x, key_by_tokens, topk, scale,
    COLUMNS: tl.constexpr, COUNT: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, ALIGNED: tl.constexpr,
    EXACT: tl.constexpr, MASKED: tl.constexpr, HAS_PADDING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the contribution of a block of keys to the gradients of queries."""
    index, exists, region = listed_tokens(
        start + tl.arange(0, BLOCK_N), list_ptr, topk, key_height, key_width, key_size_y, key_size_x, key_tokens,
        key_by_x, key_by_tokens, COLUMNS, COUNT, WHOLE, EXACT,
    )  # fmt: skip
    if HAS_PADDING:
        exists = exists & (tl.load(padding_base + index, mask=exists, other=1) == 0)
    k = load_rows(k_base, index, exists, k_strides, DIM, BLOCK_DIM, EXACT)
    v = load_rows(v_base, index, exists, v_strides, VALUE_DIM, BLOCK_VALUE, EXACT)
    p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale - lse[:, None])
    if WHOLE:
        first, shift = region_shift(start, region, key_by_tokens, BLOCK_N, ALIGNED)
        p = tl.where(selects(bits[:, None], first, shift[None, :]), p, 0.0)
    if MASKED:
        p = tl.where(exists[None, :], p, 0.0)
    dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=SCALARS)
def query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    out_ptr,
    key_regions_ptr,
    padding_ptr,
    lse_ptr,
    delta_ptr,  # [batch, heads, tokens]: sum of the output times its gradient, also for the kernel over keys
    dq_ptr,
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    out_strides,
    dq_strides,
    padding_image,
    query_height,
    query_width,
    query_size_y,
    query_size_x,
    query_tokens,
    query_by_x,
    query_by_tokens,
    key_height,
    key_width,
    key_size_y,
    key_size_x,
    key_tokens,
    key_by_x,
    key_by_tokens,
    topk,
    scale,  # times log2(e)
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    EXACT_Q: tl.constexpr,
    EXACT_K: tl.constexpr,
    MASKED_K: tl.constexpr,
    SINGLE: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    HAS_DELTA: tl.constexpr,  # whether `delta_ptr` has been written before
    PRECISION: tl.constexpr,
):
    head, region, batch, block = program(HEADS, COUNT, WHOLE)
    list_ptr = key_regions_ptr + (batch * COUNT + region) * topk
    index, exists, region = own_tokens(
        region, block * BLOCK_M + tl.arange(0, BLOCK_M), list_ptr, query_height, query_width, query_size_y,
        query_size_x, query_tokens, query_by_x, query_by_tokens, COLUMNS, COUNT, WHOLE,
    )  # fmt: skip
    bits = region_bits(list_ptr, region, exists, topk) if WHOLE else 0
    q = load_rows(
        q_ptr + batch * q_strides[0] + head * q_strides[2], index, exists, q_strides, DIM, BLOCK_DIM, EXACT_Q
    )  # fmt: skip
    grad = load_rows(
        grad_ptr + batch * grad_strides[0] + head * grad_strides[2], index, exists, grad_strides,
        VALUE_DIM, BLOCK_VALUE, EXACT_Q,
    )  # fmt: skip
    rows = (batch * HEADS + head) * query_height * query_width
    if HAS_DELTA:
        delta = load_numbers(delta_ptr + rows, index, exists, EXACT_Q)
    else:
        out = load_rows(
            out_ptr + batch * out_strides[0] + head * out_strides[2], index, exists, out_strides,
            VALUE_DIM, BLOCK_VALUE, EXACT_Q,
        )  # fmt: skip
        delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
        store_numbers(delta_ptr + rows, index, exists, delta, EXACT_Q)
    lse = load_numbers(lse_ptr + rows, index, exists, EXACT_Q)
    k_base = k_ptr + batch * k_strides[0] + head * k_strides[2]
    v_base = v_ptr + batch * v_strides[0] + head * v_strides[2]
    padding_base = padding_ptr + batch * padding_image
    dq = tl.zeros([BLOCK_M, BLOCK_DIM], tl.float32)
    if SINGLE:
        dq = add_to_queries(
            q, grad, lse, delta, dq, 0, list_ptr, bits, k_base, v_base, padding_base, k_strides, v_strides,
            key_height, key_width, key_size_y, key_size_x, key_tokens, key_by_x, key_by_tokens, topk, scale,
            COLUMNS, COUNT, DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_N, WHOLE, ALIGNED,
            EXACT_K, MASKED_K, HAS_PADDING, PRECISION,
        )  # fmt: skip
    else:
        for start in range(0, (COUNT if WHOLE else topk) * key_tokens, BLOCK_N):
            dq = add_to_queries(
                q, grad, lse, delta, dq, start, list_ptr, bits, k_base, v_base, padding_base, k_strides, v_strides,
                key_height, key_width, key_size_y, key_size_x, key_tokens, key_by_x, key_by_tokens, topk, scale,
                COLUMNS, COUNT, DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_N, WHOLE, ALIGNED,
                EXACT_K, MASKED_K, HAS_PADDING, PRECISION,
            )  # fmt: skip
    dq_base = dq_ptr + batch * dq_strides[0] + head * dq_strides[2]
    store_rows(dq_base, index, exists, dq_strides, dq * (scale * LN2), DIM, BLOCK_DIM, EXACT_Q)


@triton.jit(do_not_specialize=SCALARS)
def key_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    key_regions_ptr,  # used for whole maps
    selecting_ptr,  # these two are used otherwise, see `index_kernel`
    counts_ptr,
    padding_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    dk_strides,
    dv_strides,
    padding_image,
    query_height,
    query_width,
    query_size_y,
    query_size_x,
    query_tokens,
    query_by_x,
    query_by_tokens,
    key_height,
    key_width,
    key_size_y,
    key_size_x,
    key_tokens,
    key_by_x,
    key_by_tokens,
    topk,
    scale,  # times log2(e)
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
    EXACT_Q: tl.constexpr,
    EXACT_K: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    PRECISION: tl.constexpr,
):
    head, region, batch, block = program(HEADS, COUNT, WHOLE)
    row = batch * COUNT + region
    start = block * BLOCK_N
    index, exists, region = own_tokens(
        region, start + tl.arange(0, BLOCK_N), key_regions_ptr, key_height, key_width, key_size_y, key_size_x,
        key_tokens, key_by_x, key_by_tokens, COLUMNS, COUNT, WHOLE,
    )  # fmt: skip
    allowed = exists
    if HAS_PADDING:
        place = padding_ptr + batch * padding_image + index
        allowed = exists & (tl.load(place, mask=exists, other=1) == 0)
    if WHOLE:
        first, shift = region_shift(start, region, key_by_tokens, BLOCK_N, False)
        list_ptr, listed = key_regions_ptr + batch * COUNT * topk, COUNT
    else:
        list_ptr, listed = selecting_ptr + row * COUNT, tl.load(counts_ptr + row)
    q_base = q_ptr + batch * q_strides[0] + head * q_strides[2]
    grad_base = grad_ptr + batch * grad_strides[0] + head * grad_strides[2]
    k = load_rows(
        k_ptr + batch * k_strides[0] + head * k_strides[2], index, allowed, k_strides, DIM, BLOCK_DIM, EXACT_K
    )  # fmt: skip
    v = load_rows(
        v_ptr + batch * v_strides[0] + head * v_strides[2], index, allowed, v_strides, VALUE_DIM, BLOCK_VALUE, EXACT_K
    )  # fmt: skip
    lse_row = (batch * HEADS + head) * query_height * query_width
    dk = tl.zeros([BLOCK_N, BLOCK_DIM], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_VALUE], tl.float32)
    for begin in range(0, listed * query_tokens, BLOCK_M):
        queries, real, of_query = listed_tokens(
            begin + tl.arange(0, BLOCK_M), list_ptr, listed, query_height, query_width, query_size_y, query_size_x,
            query_tokens, query_by_x, query_by_tokens, COLUMNS, COUNT, WHOLE, EXACT_Q,
        )  # fmt: skip
        q = load_rows(q_base, queries, real, q_strides, DIM, BLOCK_DIM, EXACT_Q)
        grad = load_rows(grad_base, queries, real, grad_strides, VALUE_DIM, BLOCK_VALUE, EXACT_Q)
        # Queries that do not exist are zero, and so are their contributions.
        lse = load_numbers(lse_ptr + lse_row, queries, real, EXACT_Q)
        delta = load_numbers(delta_ptr + lse_row, queries, real, EXACT_Q)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [keys, queries]
        p = tl.exp2(s * scale - lse[None, :])
        if WHOLE:
            bits = region_bits(list_ptr, of_query, real, topk)
            p = tl.where(selects(bits[None, :], first, shift[:, None]), p, 0.0)
        if HAS_PADDING:
            p = tl.where(allowed[:, None], p, 0.0)
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk_base = dk_ptr + batch * dk_strides[0] + head * dk_strides[2]
    store_rows(dk_base, index, exists, dk_strides, dk * (scale * LN2), DIM, BLOCK_DIM, EXACT_K)
    dv_base = dv_ptr + batch * dv_strides[0] + head * dv_strides[2]
    store_rows(dv_base, index, exists, dv_strides, dv, VALUE_DIM, BLOCK_VALUE, EXACT_K)
