"""Test-time augmentation by flips and transposes, and blending of enlarged tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visionattn.heads.super_resolution.imresize import to_uint8
from visionattn.inference.blending import tile_weight
from visionattn.inference.job import View
from visionattn.inference.tiling import Tile

__all__ = ["EIGHT", "BlendedImage", "Symmetry"]


@dataclass(frozen=True)
class Symmetry(View):
    """A view that is mirrored horizontally, then vertically, then transposed, as far as the fields say."""

    flipped: bool = False
    transposed: bool = False

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Return the view of an image ``[H, W, ...]``."""
        image = image[:, ::-1] if self.mirrored else image
        image = image[::-1] if self.flipped else image
        return image.swapaxes(0, 1) if self.transposed else image

    def undo(self, image: np.ndarray) -> np.ndarray:
        """Return the image of a view ``[H, W, ...]``."""
        image = image.swapaxes(0, 1) if self.transposed else image
        image = image[::-1] if self.flipped else image
        return image[:, ::-1] if self.mirrored else image


EIGHT = tuple(
    Symmetry(mirrored=mirrored, flipped=flipped, transposed=transposed)
    for transposed in (False, True)
    for flipped in (False, True)
    for mirrored in (False, True)
)
"""All flips and transposes; the first one is the image itself."""


class BlendedImage:
    """Averages the views of tiles, and blends the tiles where they overlap. Tiles come row by row.

    Floating-point values are stored only for rows that later tiles can change.

    Args:
        size: (height, width) of the input image in pixels.
        overlap: overlap of neighboring tiles in pixels of the input.
        scale: factor of the enlargement.
        views: the views of each tile.
    """

    def __init__(self, size: tuple[int, int], overlap: int, scale: int, views: Sequence[Symmetry]) -> None:
        self.scale, self.overlap, self.views = scale, scale * overlap, len(views)
        self.size = (scale * size[0], scale * size[1])
        self.image = np.zeros((*self.size, 3), np.uint8)
        self._pending: dict[Tile, tuple[np.ndarray, int]] = {}  # tiles of which views are missing
        self._first = 0  # first row of the buffers below; the rows above are final
        self._sum = np.zeros((0, self.size[1], 3), np.float32)
        self._weight = np.zeros((0, self.size[1], 1), np.float32)

    def add(self, tile: Tile, view: Symmetry, values: np.ndarray) -> None:
        """Add the enlarged view of a tile, float32 ``[h, w, 3]`` in 0..255.

        Raises:
            ValueError: a tile starts above an earlier one, or the tiles leave a gap.
        """
        total, count = self._pending.pop(tile, (0, 0))
        if count + 1 < self.views:
            self._pending[tile] = total + view.undo(values), count + 1
        else:
            self._blend(tuple(self.scale * side for side in tile), (total + view.undo(values)) / self.views)

    def _blend(self, tile: Tile, values: np.ndarray) -> None:
        x0, y0, x1, y1 = tile
        if y0 < self._first:
            raise ValueError(f"tiles must come row by row, but row {y0} comes after row {self._first}")
        self._finish(y0)
        missing = y1 - self._first - len(self._sum)
        if missing > 0:
            self._sum, self._weight = (np.pad(x, ((0, missing), (0, 0), (0, 0))) for x in (self._sum, self._weight))
        weight = tile_weight(tile, self.size, self.overlap)[..., None]
        self._sum[: y1 - y0, x0:x1] += values * weight
        self._weight[: y1 - y0, x0:x1] += weight

    def _finish(self, row: int) -> None:
        """Make the rows above `row` final."""
        count = row - self._first
        if count and (count > len(self._sum) or not (self._weight[:count] > 0).all()):
            raise ValueError("the tiles do not cover the image")
        self.image[self._first : row] = to_uint8(self._sum[:count] / self._weight[:count])
        self._sum, self._weight = self._sum[count:].copy(), self._weight[count:].copy()
        self._first = row

    def result(self) -> np.ndarray:
        """Return the enlarged image, uint8 ``[scale * H, scale * W, 3]``, after the last tile."""
        self._finish(self.size[0])
        return self.image
