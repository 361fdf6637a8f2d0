"""What the Triton kernels share: where the tokens of regions lie in the map, and loads.

A list of regions is read as one flat sequence of tokens, region after region, so that small regions fill a block
together. Strides are tuples: batch, height, width, heads, head_dim.
"""

import triton
import triton.language as tl

__all__ = ["LOG2E", "load_rows", "store_rows", "token_positions"]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def token_positions(flat, list_ptr, listed, map_size, size, columns):
    """Row, column and existence of tokens of a list of regions.

    Args:
        flat: positions in the sequence of tokens; those past its end do not exist.
        list_ptr: the regions, `listed` of them.
        map_size: height and width of the map; a region may reach over its bottom and right.
        size: rows and columns of a region.
        columns: regions side by side.
    """
    tokens = size[0] * size[1]
    place = flat // tokens
    token = flat - place * tokens
    exists = place < listed
    region = tl.load(list_ptr + place, mask=exists, other=0).to(tl.int32)
    y = (region // columns) * size[0] + token // size[1]
    x = (region % columns) * size[1] + token % size[1]
    return y, x, exists & (y < map_size[0]) & (x < map_size[1])


@triton.jit
def load_rows(ptr, y, x, exists, strides, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """``[tokens, BLOCK]`` of one image and head; zero past ``DIM`` and where a token does not exist."""
    column = tl.arange(0, BLOCK)
    row = y.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[2]
    pointers = ptr + row[:, None] + column[None, :] * strides[4]
    return tl.load(pointers, mask=exists[:, None] & (column[None, :] < DIM), other=0.0)


@triton.jit
def store_rows(ptr, y, x, exists, strides, values, DIM: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    row = y.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[2]
    pointers = ptr + row[:, None] + column[None, :] * strides[4]
    tl.store(pointers, values.to(ptr.dtype.element_ty), mask=exists[:, None] & (column[None, :] < DIM))
