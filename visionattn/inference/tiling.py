"""Tiles of large images."""

import numpy as np

__all__ = ["Tile", "crop", "tile_grid"]

Tile = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the image; x1 and y1 are exclusive."""
GRID = 32
"""Tiles start at multiples of this many pixels where possible; it is the largest stride of most backbones."""


def tile_grid(height: int, width: int, tile: int, overlap: int) -> list[Tile]:
    """Cover an image with evenly spaced square tiles.

    Tiles with a side of at least ``4 * GRID`` start at multiples of ``GRID``, so that strided layers sample a tile at
    the same pixels as the whole image; the last tiles are then up to ``GRID - 1`` pixels smaller.

    Args:
        height, width: size of the image in pixels.
        tile: side of a tile in pixels; axes of the image that are shorter are not cut.
        overlap: minimum overlap of neighboring tiles in pixels, less than `tile`.

    Returns:
        The tiles, row by row.
    """
    if tile < 1:
        raise ValueError(f"`tile` must be at least 1 pixel, got {tile}")
    if not 0 <= overlap < tile:
        raise ValueError(f"`overlap` must be in [0, {tile - 1}] for `tile` {tile}, got {overlap}")
    rows, columns = _starts(height, tile, overlap), _starts(width, tile, overlap)
    return [(x, y, min(x + tile, width), min(y + tile, height)) for y in rows for x in columns]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    unit = GRID if tile >= 4 * GRID and tile - overlap >= GRID else 1
    last = -((tile - length) // unit)  # in units, rounded up
    steps = -(-last // ((tile - overlap) // unit))
    return [unit * (index * last // steps) for index in range(steps + 1)]


def crop(image: np.ndarray, tile: Tile) -> np.ndarray:
    """Return the part of an image ``[H, W, C]`` inside a tile, as a view."""
    x0, y0, x1, y1 = tile
    return image[y0:y1, x0:x1]
