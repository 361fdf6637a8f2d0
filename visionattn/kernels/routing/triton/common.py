"""Functions shared by the Triton kernels: positions of the tokens of regions in the map, loads, stores, masks.

Tokens of a map are numbered in row-major order, tokens of a region in row-major order within the region. Sizes that
vary between images are not constants of the kernels, so that no kernel is compiled for them; they are divided by with
host-made reciprocals. Strides are tuples: image, token, head, dim.

Small maps are processed as a whole (``WHOLE``): a block contains queries of several regions, the keys of all regions
are visited, in the order of regions, and a word of bits per query selects its regions.
"""

import triton
import triton.language as tl

__all__ = [
    "LOG2E",
    "SCALARS",
    "SHIFT",
    "divide",
    "listed_tokens",
    "load_numbers",
    "load_rows",
    "locate",
    "own_tokens",
    "program",
    "region_bits",
    "region_shift",
    "selects",
    "store_numbers",
    "store_rows",
]

LOG2E = tl.constexpr(1.4426950408889634)
SHIFT = tl.constexpr(44)

SCALARS = [
    *("query_height", "query_width", "query_size_y", "query_size_x", "query_tokens", "query_by_x", "query_by_tokens"),
    *("key_height", "key_width", "key_size_y", "key_size_x", "key_tokens", "key_by_x", "key_by_tokens"),
    *("padding_image", "topk"),
]
"""Arguments of the kernels that are not specialized for their values, since they vary between images."""


@triton.jit
def divide(n, reciprocal):
    """Quotient of nonnegative integers and a divisor given by `launch.reciprocal`."""
    return ((tl.cast(n, tl.uint32).to(tl.uint64) * reciprocal.to(tl.uint64)) >> SHIFT).to(tl.int32)


@triton.jit
def program(HEADS: tl.constexpr, COUNT: tl.constexpr, WHOLE: tl.constexpr):
    """Head, region (0 for whole maps), image and block of a program; heads are the fastest, as they share regions."""
    index = tl.program_id(0)
    head, rest = (index % HEADS).to(tl.int64), index // HEADS
    if WHOLE:
        return head, 0, rest.to(tl.int64), tl.program_id(1)
    else:
        return head, rest % COUNT, (rest // COUNT).to(tl.int64), tl.program_id(1)


@triton.jit
def locate(region, token, height, width, size_y, size_x, by_x, COLUMNS: tl.constexpr):
    """Number of a token in the map, and whether it is inside; regions may extend past the bottom and right."""
    row, token_y = region // COLUMNS, divide(token, by_x)
    y = row * size_y + token_y
    x = (region - row * COLUMNS) * size_x + token - token_y * size_x
    return y * width + x, (y < height) & (x < width)


@triton.jit
def listed_tokens(
    flat, list_ptr, listed, height, width, size_y, size_x, tokens, by_x, by_tokens,
    COLUMNS: tl.constexpr, COUNT: tl.constexpr, WHOLE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Number in the map, validity, and region of tokens of a list of regions, or of all regions for whole maps.

    Args:
        flat: positions in the sequence of all tokens of the `listed` regions, region after region, so that small
            regions share a block; those past its end are invalid.
        list_ptr: the list of regions. Those out of range, which are invalid arguments, are clamped, so that no memory
            outside of the map is read.
        EXACT: whether all positions exist.
    """
    region = divide(flat, by_tokens)
    token = flat - region * tokens
    if WHOLE:
        exists = region < COUNT
    else:
        exists = region < listed
        if EXACT:
            region = tl.load(list_ptr + region).to(tl.int32)
        else:
            region = tl.load(list_ptr + region, mask=exists, other=0).to(tl.int32)
        region = tl.minimum(tl.maximum(region, 0), COUNT - 1)
    index, inside = locate(region, token, height, width, size_y, size_x, by_x, COLUMNS)
    return index, exists & inside, region


@triton.jit
def own_tokens(
    region, slot, list_ptr, height, width, size_y, size_x, tokens, by_x, by_tokens,
    COLUMNS: tl.constexpr, COUNT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """As `listed_tokens`, for the tokens of the region of a program."""
    if WHOLE:
        return listed_tokens(
            slot, list_ptr, COUNT, height, width, size_y, size_x, tokens, by_x, by_tokens, COLUMNS, COUNT, WHOLE, False
        )
    else:
        index, inside = locate(region, slot, height, width, size_y, size_x, by_x, COLUMNS)
        return index, (slot < tokens) & inside, region


@triton.jit
def region_bits(list_ptr, region, exists, topk):
    """A bit for each region that the region of a query selects; for at most 64 regions."""
    bits = tl.zeros(region.shape, tl.uint64)
    for place in range(topk):
        chosen = tl.load(list_ptr + region * topk + place, mask=exists, other=0)
        bits |= tl.full(region.shape, 1, tl.uint64) << chosen.to(tl.uint64)
    return bits


@triton.jit
def region_shift(start, region, by_tokens, BLOCK: tl.constexpr, ALIGNED: tl.constexpr):
    """The first region of a block of keys of a whole map, and the number of regions between it and that of each key.

    Args:
        ALIGNED: whether each block starts with a region, so that these numbers are the same for all blocks.
    """
    first = divide(start, by_tokens)
    if ALIGNED:
        return first, divide(tl.arange(0, BLOCK), by_tokens)
    else:
        return first, region - first


@triton.jit
def selects(bits, first, shift):
    """Whether a query, by its bits, selects the region ``first + shift``, for shifts below 32."""
    word = (bits >> first.to(tl.uint64)).to(tl.uint32)
    return ((word >> shift.to(tl.uint32)) & 1) != 0


@triton.jit
def load_rows(ptr, index, exists, strides, DIM: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    """Load ``[tokens, BLOCK]`` of one image and head; zero from column ``DIM`` on and for tokens that do not exist."""
    column = tl.arange(0, BLOCK)
    pointers = ptr + (index.to(tl.int64) * strides[1])[:, None] + column[None, :] * strides[3]
    if EXACT and DIM == BLOCK:
        return tl.load(pointers)
    elif EXACT:
        return tl.load(pointers, mask=column[None, :] < DIM, other=0.0)
    elif DIM == BLOCK:
        return tl.load(pointers, mask=exists[:, None], other=0.0)
    else:
        return tl.load(pointers, mask=exists[:, None] & (column[None, :] < DIM), other=0.0)


@triton.jit
def store_rows(ptr, index, exists, strides, values, DIM: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr):
    """Store ``[tokens, BLOCK]`` as `load_rows` loads it."""
    column = tl.arange(0, BLOCK)
    pointers = ptr + (index.to(tl.int64) * strides[1])[:, None] + column[None, :] * strides[3]
    values = values.to(ptr.dtype.element_ty)
    if EXACT and DIM == BLOCK:
        tl.store(pointers, values)
    elif EXACT:
        tl.store(pointers, values, mask=column[None, :] < DIM)
    elif DIM == BLOCK:
        tl.store(pointers, values, mask=exists[:, None])
    else:
        tl.store(pointers, values, mask=exists[:, None] & (column[None, :] < DIM))


@triton.jit
def load_numbers(ptr, index, exists, EXACT: tl.constexpr):
    """Load a number of each token; zero for tokens that do not exist."""
    if EXACT:
        return tl.load(ptr + index)
    else:
        return tl.load(ptr + index, mask=exists, other=0.0)


@triton.jit
def store_numbers(ptr, index, exists, values, EXACT: tl.constexpr):
    if EXACT:
        tl.store(ptr + index, values)
    else:
        tl.store(ptr + index, values, mask=exists)
