"""Which problems the kernels that loop over images take, and their tiles."""

from functools import lru_cache
from math import prod

from visionattn.kernels.neighborhood.triton.tiles import PARTIAL_BYTES, Geometry, Tile, blocks_of, halo, tile_counts

__all__ = ["ImageTile", "image_tiles", "loops_over_images"]

SHAPES = {  # by kernel; others spill registers
    "forward": ((2, 8), (4, 4), (4, 8), (8, 8)),
    "query": ((2, 8), (4, 4), (4, 8), (8, 8)),
    "key": ((4, 8), (8, 4), (8, 8)),
}
BLOCK = 32  # halo positions per step; the mask of a step takes 8 registers of a thread
# Largest number of steps, and of positions of a tile, for tiles whose registers suffice, by kernel and by the columns
# of keys and values together. The query kernel with a bias keeps a sum for each score of the tile.
LIMITS = {
    "forward": {64: (8, 64), 128: (6, 32)},
    "query": {64: (7, 64)},
    "query with bias": {64: (5, 32)},
    "key": {64: (8, 64)},
}
ITEMSIZES = (2,)  # bytes per element
SCORES_KEPT = 7  # most steps of the forward pass whose scores are all kept; with more, a third of them at once

# Instructions of the compiled kernels per warp (benchmarks/na_resources.py): of each image, of each step, and once per
# program; and the bytes through the L2 cache that take as long as one instruction of one warp.
INSTRUCTIONS = {"forward": (180, 132, 34, 1500), "query": (230, 155, 34, 2500), "key": (110, 175, 45, 2200)}
BYTES = 6.0
IMAGES = 12  # typical number of images per program


class ImageTile(Tile):
    """A tile of a kernel that loops over images; its halo has rows of a power of two."""

    @property
    def steps(self) -> int:
        return prod(self.halo) // self.block

    @property
    def group(self) -> int:
        """Steps of the forward pass whose scores are kept at once."""
        return self.steps if self.steps <= SCORES_KEPT else -(-self.steps // 3)


def loops_over_images(
    geometry: Geometry, dim: int, value_dim: int, itemsize: int, heads: int, heads_kv: int, extra: int, scale: float,
    has_rpb: bool, is_backward: bool,
) -> bool:  # fmt: skip
    """Whether the kernels that loop over images compute a pass of a problem.

    They take maps of two axes in half precision with windows that are neither strided nor causal, without additional
    keys and with as many key heads as query heads, if the halo of a tile fits into registers: windows of up to about
    9 x 9 with a head dimension of up to 32; in the forward pass also 13 x 13, and 7 x 7 with up to 64. The scale must
    be positive, because the bias is divided by it. The gradient of the bias is summed from a table per row of each
    tile, so that very large maps are left to the other kernels. Float32 products on the ordinary cores take so long
    that the structure saves little.

    Args:
        extra: number of additional keys.
        is_backward: the backward pass, otherwise the forward pass.
    """
    g = geometry
    if itemsize not in ITEMSIZES or g.rank != 2 or g.stride != (1, 1, 1) or any(g.causal):
        return False
    if extra or heads_kv != heads or scale <= 1e-6:
        return False
    names = ("query", "key") if is_backward else ("forward",)
    tiles = [image_tiles(g, name, dim, value_dim, has_rpb) for name in names]
    if is_backward and has_rpb:
        sums = [prod(tile_counts(g, tile.shape)) * tile.shape[0] for tile in tiles[0]]
        if max(sums, default=0) * heads * prod(2 * k - 1 for k in g.kernel) * 4 > PARTIAL_BYTES:
            return False
    return all(tiles)


def _width(columns: int) -> int:
    """Columns of a row of the halo: a power of two, or 0 if they are too many."""
    return next((width for width in (8, 16, 32) if columns <= width), 0)


def _estimate(geometry: Geometry, tile: ImageTile, kernel: str, dim: int, value_dim: int, true_halo: int) -> float:
    """Relative time of one head of one image: issued instructions and bytes through the L2 cache overlap partially."""
    width = (blocks_of(dim) + blocks_of(value_dim)) / 64
    image, step, shared, once = INSTRUCTIONS[kernel]
    per_step = step * (0.7 + 0.3 * width) + shared * width / tile.warps
    issue = tile.warps * (image * width + tile.steps * per_step + once / IMAGES)
    # Two rows of the halo per position; of the tile, queries and output, or four with their gradients.
    loads = (true_halo * 2 + tile.size * (2 if kernel == "forward" else 4)) * 32 * 2 * width / BYTES
    return prod(tile_counts(geometry, tile.shape)) * (max(issue, loads) + min(issue, loads) / 4)


@lru_cache(maxsize=4096)
def image_tiles(geometry: Geometry, kernel: str, dim: int, value_dim: int, has_rpb: bool) -> tuple[ImageTile, ...]:
    """Legal tiles of a kernel, ordered by estimated time; empty if there is none."""
    columns = blocks_of(dim) + blocks_of(value_dim)
    limits = LIMITS["query with bias" if kernel == "query" and has_rpb else kernel]
    most_steps, largest = next((limits[most] for most in limits if columns <= most), (0, 0))
    estimates = {}
    for shape in SHAPES[kernel]:
        shape = (*shape, 1)
        rows, columns, _ = halo(geometry, shape, kernel)
        width = _width(columns)
        if not width or prod(shape) > largest:
            continue
        rows_per_step = BLOCK // width
        padded = (-(-rows // rows_per_step) * rows_per_step, width, 1)
        if prod(padded) > BLOCK * most_steps:
            continue
        tile = ImageTile(shape, BLOCK, prod(shape) // 16, 2, padded)
        estimates[tile] = _estimate(geometry, tile, kernel, dim, value_dim, rows * columns)
    return tuple(sorted(estimates, key=estimates.__getitem__))
