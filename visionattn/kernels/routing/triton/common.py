"""Functions shared by the Triton kernels: positions of the tokens of regions in the map, loads and stores.

A list of regions is read as one flat sequence of tokens, region after region, so that small regions can share a block.
Strides are tuples: batch, height, width, heads, head_dim.
"""

import triton
import triton.language as tl

__all__ = ["LOG2E", "load_rows", "store_rows", "token_positions"]

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def token_positions(flat, list_ptr, listed, map_size, size, columns):
    """Row, column and validity of the tokens of a list of regions.

    Args:
        flat: positions in the sequence of tokens; those past its end are invalid.
        list_ptr: the list of `listed` regions.
        map_size: height and width of the map; regions may extend past its bottom and right.
        size: height and width of a region.
        columns: number of regions per row.
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
    """Load ``[tokens, BLOCK]`` of one image and head; zero from column ``DIM`` on and for invalid tokens."""
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
