"""Means of queries and keys over the regions of a map, for the routing."""

import triton
import triton.language as tl

from visionattn.kernels.routing.triton.common import locate

__all__ = ["means_kernel"]


@triton.jit(do_not_specialize=["padding_image", "height", "width", "size_y", "size_x", "tokens", "by_x"])
def means_kernel(
    q_ptr,
    k_ptr,
    padding_ptr,  # uint8 [batch or 1, tokens]
    q_means_ptr,  # float32 [batch, regions, channels]
    k_means_ptr,
    counts_ptr,  # int32 [batch, regions]: tokens of the region that are not padding
    q_strides,  # image, token, channel
    k_strides,
    padding_image,
    height,
    width,
    size_y,
    size_x,
    tokens,
    by_x,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    HAS_PADDING: tl.constexpr,
):
    """Means of one region over some channels; zero for regions without tokens."""
    region, batch = tl.program_id(0) % COUNT, (tl.program_id(0) // COUNT).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    q_base, k_base = q_ptr + batch * q_strides[0], k_ptr + batch * k_strides[0]
    q_sum = tl.zeros([BLOCK, BLOCK_CHANNELS], tl.float32)
    k_sum = tl.zeros([BLOCK, BLOCK_CHANNELS], tl.float32)
    found = tl.zeros([BLOCK], tl.int32)
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        index, inside = locate(region, token, height, width, size_y, size_x, by_x, COLUMNS)
        exists = inside & (token < tokens)
        if HAS_PADDING:
            place = padding_ptr + batch * padding_image + index
            exists = exists & (tl.load(place, mask=exists, other=1) == 0)
        mask = exists[:, None] & (channel[None, :] < CHANNELS)
        row = index.to(tl.int64)[:, None]
        q_sum += tl.load(q_base + row * q_strides[1] + channel[None, :] * q_strides[2], mask=mask, other=0.0)
        k_sum += tl.load(k_base + row * k_strides[1] + channel[None, :] * k_strides[2], mask=mask, other=0.0)
        found += exists.to(tl.int32)
    count = tl.sum(found, 0)
    share = 1 / tl.maximum(count, 1).to(tl.float32)
    place = (batch * COUNT + region) * CHANNELS + channel
    tl.store(q_means_ptr + place, tl.sum(q_sum, 0) * share, mask=channel < CHANNELS)
    tl.store(k_means_ptr + place, tl.sum(k_sum, 0) * share, mask=channel < CHANNELS)
    if tl.program_id(1) == 0:
        tl.store(counts_ptr + batch * COUNT + region, count)
