"""Forward pass of the Triton backend: each program processes a block of queries and iterates over their keys.

The queries are those of one region, and the keys those of its selected regions, which are read in place by the index
of their region, without gathered copies. Small maps are processed as a whole, with a mask of regions (see `common`).
The softmax is the online softmax of FlashAttention (arXiv 2205.14135, 2307.08691).
"""

import triton
import triton.language as tl

from visionattn.kernels.routing.triton.common import (
    SCALARS,
    listed_tokens,
    load_rows,
    own_tokens,
    program,
    region_bits,
    region_shift,
    selects,
    store_numbers,
    store_rows,
)

__all__ = ["forward_kernel"]


@triton.jit
def attend(
    q, m, l, acc, start, list_ptr, bits, k_base, v_base, padding_base, k_strides, v_strides,
    key_height, key_width, key_size_y, key_size_x, key_tokens, key_by_x, key_by_tokens, topk, scale,
    COLUMNS: tl.constexpr, COUNT: tl.constexpr, DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, ALIGNED: tl.constexpr,
    EXACT: tl.constexpr, MASKED: tl.constexpr, HAS_PADDING: tl.constexpr, LATE_SCALE: tl.constexpr,
    FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a block of keys to the maximum, the sum and the output."""
    flat = start + tl.arange(0, BLOCK_N)
    index, exists, region = listed_tokens(
        flat, list_ptr, topk, key_height, key_width, key_size_y, key_size_x, key_tokens, key_by_x, key_by_tokens,
        COLUMNS, COUNT, WHOLE, EXACT,
    )  # fmt: skip
    if HAS_PADDING:
        exists = exists & (tl.load(padding_base + index, mask=exists, other=1) == 0)
    k = load_rows(k_base, index, exists, k_strides, DIM, BLOCK_DIM, EXACT)
    v = load_rows(v_base, index, exists, v_strides, VALUE_DIM, BLOCK_VALUE, EXACT)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if not LATE_SCALE:
        s *= scale
    if WHOLE:
        first, shift = region_shift(start, region, key_by_tokens, BLOCK_N, ALIGNED)
        s = tl.where(selects(bits[:, None], first, shift[None, :]), s, float("-inf"))
    if MASKED:
        s = tl.where(exists[None, :], s, float("-inf"))
    m_new = tl.max(s, 1) * (scale if LATE_SCALE else 1.0)
    if not FIRST or WHOLE or MASKED:
        m_new = tl.maximum(m, m_new)
    p = tl.exp2(s * (scale if LATE_SCALE else 1.0) - m_new[:, None])
    if FIRST:
        return m_new, tl.sum(p, 1), tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    else:
        alpha = tl.exp2(m - m_new)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        return m_new, l * alpha + tl.sum(p, 1), acc


@triton.jit(do_not_specialize=SCALARS)
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    key_regions_ptr,  # int64 [batch, regions, topk]
    padding_ptr,  # uint8 [batch or 1, key tokens]
    out_ptr,
    lse_ptr,  # [batch, heads, tokens], base 2
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    padding_image,  # elements between images, 0 for a shared mask
    query_height,
    query_width,
    query_size_y,  # size of a region
    query_size_x,
    query_tokens,  # of a region
    query_by_x,  # reciprocals of the width of a region and of the number of its tokens, see `launch.reciprocal`
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
    COLUMNS: tl.constexpr,  # of regions
    COUNT: tl.constexpr,  # of regions
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WHOLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    EXACT_Q: tl.constexpr,  # no block has queries that do not exist
    EXACT_K: tl.constexpr,  # no block has keys that do not exist
    MASKED_K: tl.constexpr,  # whether scores must be masked by key
    SINGLE: tl.constexpr,  # all keys in one block
    HAS_PADDING: tl.constexpr,
    LATE_SCALE: tl.constexpr,  # multiply differences of scores, in one instruction with the subtraction
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
    k_base = k_ptr + batch * k_strides[0] + head * k_strides[2]
    v_base = v_ptr + batch * v_strides[0] + head * v_strides[2]
    padding_base = padding_ptr + batch * padding_image
    m = tl.full([BLOCK_M], -1e37, tl.float32)  # finite for blocks without attended keys
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_VALUE], tl.float32)
    if SINGLE:
        m, l, acc = attend(
            q, m, l, acc, 0, list_ptr, bits, k_base, v_base, padding_base, k_strides, v_strides,
            key_height, key_width, key_size_y, key_size_x, key_tokens, key_by_x, key_by_tokens, topk, scale,
            COLUMNS, COUNT, DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_N, WHOLE, ALIGNED,
            EXACT_K, MASKED_K, HAS_PADDING, LATE_SCALE, True, PRECISION,
        )  # fmt: skip
    else:
        for start in range(0, (COUNT if WHOLE else topk) * key_tokens, BLOCK_N):
            m, l, acc = attend(
                q, m, l, acc, start, list_ptr, bits, k_base, v_base, padding_base, k_strides, v_strides,
                key_height, key_width, key_size_y, key_size_x, key_tokens, key_by_x, key_by_tokens, topk, scale,
                COLUMNS, COUNT, DIM, VALUE_DIM, BLOCK_DIM, BLOCK_VALUE, BLOCK_N, WHOLE, ALIGNED,
                EXACT_K, MASKED_K, HAS_PADDING, LATE_SCALE, False, PRECISION,
            )  # fmt: skip
    some = l > 0  # False if all selected keys are padding
    total = tl.where(some, l, 1.0)
    out_base = out_ptr + batch * out_strides[0] + head * out_strides[2]
    acc *= (1 / total)[:, None]
    store_rows(out_base, index, exists, out_strides, acc, VALUE_DIM, BLOCK_VALUE, EXACT_Q)
    lse = tl.where(some, m + tl.log2(total), 0.0)
    store_numbers(lse_ptr + (batch * HEADS + head) * query_height * query_width, index, exists, lse, EXACT_Q)
