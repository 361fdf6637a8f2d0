"""Tile shapes of the Triton kernels: the legal ones, and the selection of the best.

A tile has 16 to 128 positions in a box with sides that are powers of two. A larger box loads fewer keys per query but
computes more masked scores, so the best shape depends on the window, the map and the dilation. It is selected by an
estimate of the time; `VISIONATTN_AUTOTUNE=1` times the best candidates instead.
"""

import bisect
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from visionattn.kernels.neighborhood.geometry import axis_groups, axis_windows

__all__ = [
    "KERNELS",
    "PARTIAL_BYTES",
    "Geometry",
    "Tile",
    "blocks_of",
    "field_bits",
    "halo",
    "legal_tiles",
    "shared_bytes",
    "tile_counts",
]

KERNELS = ("forward", "query", "key", "bias")  # kernels with tiles; "query" and "key" are the backward pass
SHAPES = {  # by rank: positions of a tile along each axis
    1: ((16,), (32,), (64,), (128,)),
    2: ((4, 4), (4, 8), (8, 8), (4, 16), (8, 16), (16, 8)),
    3: ((2, 2, 4), (2, 4, 4), (4, 4, 4), (2, 4, 8), (4, 4, 8), (2, 8, 8)),
}
# By bytes per element: up to this width (columns of keys and values together), the largest tile and the number of halo
# positions per step. Larger ones spill registers.
LIMITS = {
    2: ((128, 128, (32, 64)), (256, 64, (32,)), (512, 32, (32,))),
    4: ((128, 64, (32,)), (256, 32, (16,)), (512, 16, (16,))),
}
# The same for individual kernels that would spill at that width, by bytes per element and kernel.
TIGHTER = {
    (2, "key"): {128: (128, (32,))},
    (2, "bias"): {512: (16, (32,))},
    (4, "query"): {256: (16, (16,))},
    (4, "key"): {128: (32, (32,))},
}
PARTIAL_BYTES = 1 << 26  # limit of the partial sums of a reduction in two stages
SHARED_LIMIT = 99 * 1024  # the limit of sm_86, sm_89 and sm_120; sm_80, sm_90 and sm_100 have more

# Picoseconds on a full H100, from the instructions of the compiled kernels and the throughput of the hardware.
SCORE = 0.45  # per score: exponential, mask, conversions
SCORE_OF_KERNEL = {"forward": 1.0, "query": 1.2, "key": 1.3, "bias": 1.2}
FLOP = {2: 0.002, 4: 0.03}  # by bytes per element; float32 products do not use tensor cores
BYTE = 0.2  # per byte through the L2 cache
STEP = 110.0  # per step and warp: positions, addresses, rescaling
TILE = 700.0  # per program and warp: positions, windows and stores


@dataclass(frozen=True)
class Geometry:
    """A problem on three axes; missing axes come last, with length 1."""

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
    """Configuration of a kernel: the box of positions of a program, and the steps over its halo."""

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
    """Maximum number of keys of a tile of queries on one axis, or of queries that attend to a tile of keys."""
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
    """Extent of the halo of a tile: keys per axis, or queries for the kernel with tiles of keys."""
    g = geometry
    axes = zip(g.lengths, g.kernel, g.stride, g.dilation, g.causal, shape, strict=True)
    return tuple(_axis_halo(*axis, kernel != "key") for axis in axes)


def tile_counts(geometry: Geometry, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Number of tiles of each axis over all dilation groups; tiles of shorter groups may be empty."""
    counts = []
    for length, dilation, tile in zip(geometry.lengths, geometry.dilation, shape, strict=True):
        longest = -(-length // dilation)
        counts.append(dilation * -(-longest // tile))
    return tuple(counts)


def blocks_of(dim: int) -> int:
    """Columns of a block for ``dim`` channels: a power of two, and at least the minimum of tensor cores."""
    return max(16, 1 << (dim - 1).bit_length())


def field_bits(most: tuple[int, int, int]) -> tuple[int, int, int]:
    """Bits of the fields for numbers up to ``most``, plus one unused top bit each.

    Raises:
        ValueError: the fields do not fit into 31 bits.
    """
    bits = tuple(max(value, 1).bit_length() + 1 for value in most)
    if sum(bits) > 31:
        raise ValueError(f"a halo of {most} keys is too large for the Triton backend; use backend='torch'")
    return bits


def shared_bytes(shape: tuple, block: int, dim: int, value_dim: int, itemsize: int, kernel: str, stages: int) -> int:
    """Estimated shared memory: the rows of the tile, and the halo blocks in flight."""
    width = blocks_of(dim) + blocks_of(value_dim)
    size = prod(shape)
    own = size * (blocks_of(dim) if kernel == "forward" else width) * itemsize
    scores = size * block * (4 if kernel == "bias" else itemsize)
    return own + max(stages - 1, 1) * block * width * itemsize + scores


def _warps(size: int, width: int, itemsize: int, kernel: str) -> int:
    """Number of warps for a tile; more for wide rows, and for float32, whose products run in registers."""
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
    return count * (max(issue, loads) + min(issue, loads) / 4)  # they overlap partially


@lru_cache(maxsize=4096)
def legal_tiles(geometry: Geometry, kernel: str, dim: int, value_dim: int, itemsize: int) -> tuple[Tile, ...]:
    """All legal tiles of a kernel, ordered by estimated time."""
    width = blocks_of(dim) + blocks_of(value_dim)
    step, *limits = next(limits for limits in LIMITS[itemsize] if width <= limits[0])
    largest, blocks = TIGHTER.get((itemsize, kernel), {}).get(step, limits)
    tiles = []
    for shape in SHAPES[geometry.rank]:
        shape = (*shape, 1, 1)[:3]
        for block in blocks:
            stages = 3 if block == 32 and width <= 128 and itemsize == 2 else 2
            if itemsize == 4 and (width <= 32 or (kernel == "key" and 128 < width <= 256)):
                stages = 1  # loads in flight need registers, which would spill
            fits = shared_bytes(shape, block, dim, value_dim, itemsize, kernel, stages) <= SHARED_LIMIT
            small = block == blocks[0] or prod(shape) * block * max(width, 64) <= 1 << 18
            if prod(shape) <= largest and small and fits:
                # Halos that differ by one share a kernel.
                extent = tuple(n + n % 2 if n > 8 else n for n in halo(geometry, shape, kernel))
                tiles.append(Tile(shape, block, _warps(prod(shape), width, itemsize, kernel), stages, extent))
    order = {tile: _estimate(geometry, tile, kernel, dim, value_dim, itemsize) for tile in tiles}
    return tuple(sorted(tiles, key=order.__getitem__))
