"""Backward pass of the Triton backend, without atomics: one kernel over query regions, one over key regions.

The first iterates over the keys of the selected regions, like the forward pass. The second iterates over the query
regions that selected a key region, which an inverted index provides, built once by sorting. The gradient of each key is
written by one program, so the result does not depend on the order of the programs.
"""

import triton
import triton.language as tl

from visionattn.kernels.routing.triton.common import LOG2E, load_rows, store_rows, token_positions

__all__ = ["key_kernel", "query_kernel"]


@triton.jit
def query_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    key_regions_ptr,
    padding_ptr,
    lse_ptr,
    delta_ptr,  # [batch, heads, height, width]: sum of the output times its gradient
    dq_ptr,
    q_strides,
    k_strides,
    v_strides,
    grad_strides,
    dq_strides,
    padding_stride,
    query_map,
    key_map,
    query_size,
    key_size,
    regions,
    heads,
    topk,
    blocks,
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
    k_base = k_ptr + batch * k_strides[0] + head64 * k_strides[3]
    v_base = v_ptr + batch * v_strides[0] + head64 * v_strides[3]
    list_ptr = key_regions_ptr + (batch * count + region) * topk

    q = load_rows(q_ptr + batch * q_strides[0] + head64 * q_strides[3], qy, qx, q_exists, q_strides, DIM, BLOCK_DIM)
    grad_base = grad_ptr + batch * grad_strides[0] + head64 * grad_strides[3]
    grad = load_rows(grad_base, qy, qx, q_exists, grad_strides, VALUE_DIM, BLOCK_VALUE)
    rows = ((batch * heads + head) * query_map[0] + qy) * query_map[1] + qx
    lse = tl.load(lse_ptr + rows, mask=q_exists, other=0.0)
    delta = tl.load(delta_ptr + rows, mask=q_exists, other=0.0)
    dq = tl.zeros([BLOCK_M, BLOCK_DIM], tl.float32)
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
        p = tl.exp2(tl.where(allowed[None, :], s, float("-inf")) - lse[:, None])
        dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    dq_base = dq_ptr + batch * dq_strides[0] + head64 * dq_strides[3]
    store_rows(dq_base, qy, qx, q_exists, dq_strides, dq * scale, DIM, BLOCK_DIM)


@triton.jit
def key_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    selecting_ptr,  # int32 [batch, regions * topk]: query regions, sorted by the key region they selected
    offsets_ptr,  # int64 [batch, regions + 1]: start of the entries of each key region
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
    padding_stride,
    query_map,
    key_map,
    query_size,
    key_size,
    regions,
    heads,
    topk,
    blocks,  # blocks of keys per region
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
    pid = tl.program_id(0)
    head, rest = pid % heads, pid // heads
    block, rest = rest % blocks, rest // blocks
    count = regions[0] * regions[1]
    region, batch = rest % count, (rest // count).to(tl.int64)

    token = block * BLOCK_N + tl.arange(0, BLOCK_N)
    ky = (region // regions[1]) * key_size[0] + token // key_size[1]
    kx = (region % regions[1]) * key_size[1] + token % key_size[1]
    k_exists = (token < key_size[0] * key_size[1]) & (ky < key_map[0]) & (kx < key_map[1])
    allowed = k_exists
    if HAS_PADDING:
        place = padding_ptr + batch * padding_stride + ky.to(tl.int64) * key_map[1] + kx
        allowed = k_exists & (tl.load(place, mask=k_exists, other=1) == 0)
    head64 = head.to(tl.int64)
    q_base = q_ptr + batch * q_strides[0] + head64 * q_strides[3]
    grad_base = grad_ptr + batch * grad_strides[0] + head64 * grad_strides[3]
    k = load_rows(k_ptr + batch * k_strides[0] + head64 * k_strides[3], ky, kx, k_exists, k_strides, DIM, BLOCK_DIM)
    v_base = v_ptr + batch * v_strides[0] + head64 * v_strides[3]
    v = load_rows(v_base, ky, kx, k_exists, v_strides, VALUE_DIM, BLOCK_VALUE)
    first = tl.load(offsets_ptr + batch * (count + 1) + region)
    listed = (tl.load(offsets_ptr + batch * (count + 1) + region + 1) - first).to(tl.int32)
    list_ptr = selecting_ptr + batch * count * topk + first

    dk = tl.zeros([BLOCK_N, BLOCK_DIM], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_VALUE], tl.float32)
    for start in range(0, listed * query_size[0] * query_size[1], BLOCK_M):
        flat = start + tl.arange(0, BLOCK_M)
        qy, qx, q_exists = token_positions(flat, list_ptr, listed, query_map, query_size, regions[1])
        q = load_rows(q_base, qy, qx, q_exists, q_strides, DIM, BLOCK_DIM)
        grad = load_rows(grad_base, qy, qx, q_exists, grad_strides, VALUE_DIM, BLOCK_VALUE)
        rows = ((batch * heads + head) * query_map[0] + qy) * query_map[1] + qx
        lse = tl.load(lse_ptr + rows, mask=q_exists, other=0.0)
        delta = tl.load(delta_ptr + rows, mask=q_exists, other=0.0)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E)  # [keys, queries]
        pair = allowed[:, None] & q_exists[None, :]
        p = tl.exp2(tl.where(pair, s, float("-inf")) - lse[None, :])
        dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk_base = dk_ptr + batch * dk_strides[0] + head64 * dk_strides[3]
    store_rows(dk_base, ky, kx, k_exists, dk_strides, dk * scale, DIM, BLOCK_DIM)
    dv_base = dv_ptr + batch * dv_strides[0] + head64 * dv_strides[3]
    store_rows(dv_base, ky, kx, k_exists, dv_strides, dv, VALUE_DIM, BLOCK_VALUE)
