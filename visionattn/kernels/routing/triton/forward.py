"""Forward pass of the Triton backend: each program processes a block of queries of one region and iterates over the
tokens of its selected regions.

Keys and values are read in place by the index of their region, without gathered copies. The softmax is the online
softmax of FlashAttention (arXiv 2205.14135, 2307.08691).
"""

import triton
import triton.language as tl

from visionattn.kernels.routing.triton.common import LOG2E, load_rows, store_rows, token_positions

__all__ = ["forward_kernel"]


@triton.jit
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    key_regions_ptr,  # int64 [batch, regions, topk]
    padding_ptr,  # bool [batch or 1, key height, key width]
    out_ptr,
    lse_ptr,  # [batch, heads, height, width], base 2
    q_strides,
    k_strides,
    v_strides,
    out_strides,
    padding_stride,  # between images, 0 for a shared mask
    query_map,
    key_map,
    query_size,
    key_size,
    regions,  # number of rows and columns of regions
    heads,
    topk,
    blocks,  # blocks of queries per region
    scale,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    HAS_PADDING: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Heads are the fastest dimension, because they read the same regions.
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    block, rest = rest % blocks, rest // blocks
    count = regions[0] * regions[1]
    region, batch = rest % count, (rest // count).to(tl.int64)

    token = block * BLOCK_M + tl.arange(0, BLOCK_M)
    qy = (region // regions[1]) * query_size[0] + token // query_size[1]
    qx = (region % regions[1]) * query_size[1] + token % query_size[1]
    q_exists = (token < query_size[0] * query_size[1]) & (qy < query_map[0]) & (qx < query_map[1])
    head64 = head.to(tl.int64)
    q_base = q_ptr + batch * q_strides[0] + head64 * q_strides[3]
    k_base = k_ptr + batch * k_strides[0] + head64 * k_strides[3]
    v_base = v_ptr + batch * v_strides[0] + head64 * v_strides[3]
    list_ptr = key_regions_ptr + (batch * count + region) * topk

    q = load_rows(q_base, qy, qx, q_exists, q_strides, DIM, BLOCK_DIM)
    m = tl.full([BLOCK_M], -1e38, tl.float32)  # finite for blocks without attended keys
    l = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_VALUE], tl.float32)
    for start in range(0, topk * key_size[0] * key_size[1], BLOCK_N):
        flat = start + tl.arange(0, BLOCK_N)
        ky, kx, k_exists = token_positions(flat, list_ptr, topk, key_map, key_size, regions[1])
        allowed = k_exists
        if HAS_PADDING:
            place = padding_ptr + batch * padding_stride + ky.to(tl.int64) * key_map[1] + kx
            allowed = k_exists & (tl.load(place, mask=k_exists, other=1) == 0)
        k = load_rows(k_base, ky, kx, k_exists, k_strides, DIM, BLOCK_DIM)
        v = load_rows(v_base, ky, kx, k_exists, v_strides, VALUE_DIM, BLOCK_VALUE)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
        s = tl.where(allowed[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - m_new[:, None])
        alpha = tl.exp2(m - m_new)
        l = l * alpha + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc * alpha[:, None], input_precision=PRECISION)
        m = m_new

    some = l > 0  # False if all selected keys are padding
    lse = tl.where(some, m + tl.log2(tl.where(some, l, 1.0)), 0.0)
    acc = acc / tl.where(some, l, 1.0)[:, None]
    out_base = out_ptr + batch * out_strides[0] + head64 * out_strides[3]
    store_rows(out_base, qy, qx, q_exists, out_strides, acc, VALUE_DIM, BLOCK_VALUE)
    image = (batch * heads + head) * query_map[0]
    tl.store(lse_ptr + (image + qy) * query_map[1] + qx, lse, mask=q_exists)
