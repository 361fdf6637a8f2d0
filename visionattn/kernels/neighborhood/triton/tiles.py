"""Tile shapes of the Triton kernels: the legal ones, and the one to use.

A tile holds 16 to 128 positions as a box of powers of two. A larger box loads fewer keys for each query but computes
more scores that a mask then discards, so the best shape depends on the window, the map and the dilation. The choice is
the least of a small estimate of time; `VISIONATTN_AUTOTUNE=1` measures the first few of the list instead.
"""

import bisect
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from visionattn.kernels.neighborhood.geometry import axis_groups, axis_windows

__all__ = [
    "KERNELS",
    "Geometry",
    "Tile",
    "blocks_of",
    "field_bits",
    "halo",
    "legal_tiles",
    "shared_bytes",
    "tile_counts",
]

KERNELS = ("forward", "query", "key", "bias")  # that work in tiles; "query" and "key" are the backward pass
SHAPES = {  # by rank; positions of a tile along each axis
    1: ((16,), (32,), (64,), (128,)),
    2: ((4, 4), (4, 8), (8, 8), (4, 16), (8, 16), (16, 8)),
    3: ((2, 2, 4), (2, 4, 4), (4, 4, 4), (2, 4, 8), (4, 4, 8), (2, 8, 8)),
}
# By bytes of an element: up to this width (columns of keys and values together), the largest tile, and the positions
# of the halo per step. Larger ones spill registers.
LIMITS = {
    2: ((128, 128, (32, 64)), (256, 64, (32,)), (512, 32, (32,))),
    4: ((128, 64, (32,)), (256, 32, (16,)), (512, 16, (16,))),
}
# The same for single kernels that would spill at that width, by bytes of an element and kernel.
TIGHTER = {
    (2, "key"): {128: (128, (32,))},
    (2, "bias"): {512: (16, (32,))},
    (4, "query"): {256: (16, (16,))},
    (4, "key"): {128: (32, (32,))},
}
SHARED_LIMIT = 99 * 1024  # of sm_86, sm_89 and sm_120; sm_80, sm_90 and sm_100 have more

# Picoseconds on a whole H100, from the instructions that the compiled kernels issue and the chip's throughputs.
SCORE = 0.45  # one score: exponential, mask, conversions
SCORE_OF_KERNEL = {"forward": 1.0, "query": 1.2, "key": 1.3, "bias": 1.2}
FLOP = {2: 0.002, 4: 0.03}  # by bytes of an element; float32 products run outside the tensor cores
BYTE = 0.2  # through the L2 cache
STEP = 110.0  # one step of the walk, for each warp: positions, addresses, rescaling
TILE = 700.0  # one program, for each warp: its own positions and windows, its stores


@dataclass(frozen=True)
class Geometry:
    """A problem on three axes; axes that the map lacks come last, with length 1."""

    lengths: tuple[int, int, int]
    kernel: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation: tuple[int, int, int]
    causal: tuple[bool, bool, bool]

    @classmethod
    def of(cls, lengths, kernel, stride, dilation, causal) -> "Geometry":
        """From values per axis of a map of rank 1 to 3."""
        more = 3 - len(lengths)
        rows = ((tuple(lengths), 1), (kernel, 1), (stride, 1), (dilation, 1), (causal, False))
        return cls(*(tuple(row) + (fill,) * more for row, fill in rows))

    @property
    def rank(self) -> int:
        return max((axis + 1 for axis, length in enumerate(self.lengths) if length > 1), default=1)


@dataclass(frozen=True)
class Tile:
    """How one kernel runs: the box of positions a program holds, and how it walks their halo."""

    shape: tuple[int, int, int]
    block: int
    warps: int
    stages: int
    halo: tuple[int, int, int]

    @property
    def size(self) -> int:
        return prod(self.shape)


@lru_cache(maxsize=4096)
def _axis_halo(length: int, kernel: int, stride: int, dilation: int, causal: bool, tile: int, keys: bool) -> int:
    """Most keys that a tile of queries needs on one axis, or most queries that reach a tile of keys."""
    longest = 1
    for group in axis_groups(length, dilation):
        windows = axis_windows(group.length, kernel, stride, causal)
        starts, ends = windows.T.tolist()
        for first in range(0, group.length, tile):
            last = min(first + tile, group.length) - 1
            if keys:
                longest = max(longest, ends[last] - starts[first])
            else:
                longest = max(longest, bisect.bisect_right(starts, last) - bisect.bisect_right(ends, first))
    return longest


def halo(geometry: Geometry, shape: tuple[int, int, int], kernel: str) -> tuple[int, int, int]:
    """Extent of the halo of a tile: keys per axis, or queries for the kernel that holds keys."""
    g = geometry
    axes = zip(g.lengths, g.kernel, g.stride, g.dilation, g.causal, shape, strict=True)
    return tuple(_axis_halo(*axis, kernel != "key") for axis in axes)


def tile_counts(geometry: Geometry, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tiles of each axis, over all dilation groups; those of shorter groups may be empty."""
    counts = []
    for length, dilation, tile in zip(geometry.lengths, geometry.dilation, shape, strict=True):
        longest = -(-length // dilation)
        counts.append(dilation * -(-longest // tile))
    return tuple(counts)


def blocks_of(dim: int) -> int:
    """Columns of a block that holds ``dim`` of them: a power of two, and at least what a tensor core takes."""
    return max(16, 1 << (dim - 1).bit_length())


def field_bits(most: tuple[int, int, int]) -> tuple[int, int, int]:
    """Bits of the fields that hold numbers up to ``most``, with one free on top.

    Raises:
        ValueError: if they do not fit into 31 bits together.
    """
    bits = tuple(max(value, 1).bit_length() + 1 for value in most)
    if sum(bits) > 31:
        raise ValueError(f"a halo of {most} keys is too large for the Triton backend; use backend='torch'")
    return bits


def shared_bytes(shape: tuple, block: int, dim: int, value_dim: int, itemsize: int, kernel: str, stages: int) -> int:
    """Estimated shared memory: the tile's own rows, and as many halo blocks as are under way."""
    width = blocks_of(dim) + blocks_of(value_dim)
    size = prod(shape)
    own = size * (blocks_of(dim) if kernel == "forward" else width) * itemsize
    scores = size * block * (4 if kernel == "bias" else itemsize)
    return own + max(stages - 1, 1) * block * width * itemsize + scores


def _warps(size: int, width: int, itemsize: int, kernel: str) -> int:
    """Warps for a tile; more where each row is wide, and in float32, whose products run in registers."""
    if itemsize == 4:
        wide = kernel != "key" and (128 < width <= 256 or (kernel == "bias" and width > 64))
        return 8 if size == 64 or wide else 4
    if width > 256 or (width > 64 and size >= 64):
        return 8
    return max(1 if width <= 64 else 4, size // 16)


def _estimate(geometry: Geometry, tile: Tile, kernel: str, dim: int, value_dim: int, itemsize: int) -> float:
    """Relative time of one head of one image."""
    width = blocks_of(dim) + blocks_of(value_dim)
    positions = tile.block * -(-prod(tile.halo) // tile.block)
    count = prod(tile_counts(geometry, tile.shape))
    products = {"forward": 1, "query": 1.5, "key": 2, "bias": 1}[kernel]
    issue = tile.size * positions * (SCORE * SCORE_OF_KERNEL[kernel] + 2 * products * width * FLOP[itemsize])
    issue += tile.warps * (positions // tile.block * STEP + TILE)
    loads = (positions + 2 * tile.size) * width * itemsize * BYTE
    return count * (max(issue, loads) + min(issue, loads) / 4)  # they overlap, if not perfectly


@lru_cache(maxsize=4096)
def legal_tiles(geometry: Geometry, kernel: str, dim: int, value_dim: int, itemsize: int) -> tuple[Tile, ...]:
    """All tiles that one kernel can use, the best by estimate first."""
    width = blocks_of(dim) + blocks_of(value_dim)
    step, *limits = next(limits for limits in LIMITS[itemsize] if width <= limits[0])
    largest, blocks = TIGHTER.get((itemsize, kernel), {}).get(step, limits)
    tiles = []
    for shape in SHAPES[geometry.rank]:
        shape = (*shape, 1, 1)[:3]
        for block in blocks:
            stages = 3 if block == 32 and width <= 128 and itemsize == 2 else 2
            if itemsize == 4 and (width <= 32 or (kernel == "key" and 128 < width <= 256)):
                stages = 1  # loads under way take registers, and these would spill
            fits = shared_bytes(shape, block, dim, value_dim, itemsize, kernel, stages) <= SHARED_LIMIT
            small = block == blocks[0] or prod(shape) * block * max(width, 64) <= 1 << 18
            if prod(shape) <= largest and small and fits:
                extent = halo(geometry, shape, kernel)
                tiles.append(Tile(shape, block, _warps(prod(shape), width, itemsize, kernel), stages, extent))
    order = {tile: _estimate(geometry, tile, kernel, dim, value_dim, itemsize) for tile in tiles}
    return tuple(sorted(tiles, key=order.__getitem__))
