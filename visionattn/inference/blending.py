"""Class maps from the views and tiles of one image: average the probabilities of views, and blend tiles."""

from collections.abc import Iterator

import numpy as np

from visionattn.inference.tiling import Tile

__all__ = ["MapCanvas", "ViewSum", "probabilities", "tile_weight"]

MARGIN = 0.25
"""Fraction of the overlap next to a tile border that has weight 0, as its context is cut off."""


def tile_weight(tile: Tile, image_size: tuple[int, int], overlap: int) -> np.ndarray:
    """Return the blending weight of each pixel of a tile, float32 ``[h, w]`` in [0, 1].

    The weight is 1 in the middle of the tile and at the borders of the image. Towards the other borders of the tile it
    decreases linearly over the middle half of the overlap and is 0 in the last quarter, where the context of a pixel is
    cut off. The weights of two tiles that overlap by exactly `overlap` sum to 1.

    Args:
        tile: the tile.
        image_size: (height, width) of the image in pixels.
        overlap: minimum overlap of neighboring tiles in pixels.
    """
    x0, y0, x1, y1 = tile
    height, width = image_size
    rows = _ramp(y1 - y0, overlap, y0 > 0, y1 < height)
    columns = _ramp(x1 - x0, overlap, x0 > 0, x1 < width)
    return rows[:, None] * columns[None, :]


def _ramp(length: int, overlap: int, cut_before: bool, cut_after: bool) -> np.ndarray:
    margin = int(MARGIN * overlap)
    position = np.arange(length, dtype=np.float32) + 0.5
    rise = ((position - margin) / max(overlap - 2 * margin, 1)).clip(0, 1) if overlap else np.ones(length, np.float32)
    weight = np.ones(length, np.float32)
    if cut_before:
        weight = np.minimum(weight, rise)
    if cut_after:
        weight = np.minimum(weight, rise[::-1])
    return weight


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the first axis of logits ``[C, h, w]``, float32."""
    result = logits - logits.max(axis=0)
    np.exp(result, out=result)
    result /= result.sum(axis=0)
    return result


class ViewSum:
    """Sums the class probabilities of a tile over its views.

    Args:
        views: number of views of each tile.
    """

    def __init__(self, views: int) -> None:
        self.views = views
        self._sums: dict[Tile, tuple[np.ndarray, int]] = {}

    def add(self, tile: Tile, logits: np.ndarray, mirrored: bool) -> Iterator[tuple[Tile, np.ndarray]]:
        """Add the logits ``[C, h, w]`` of one view, and yield the tile with its sum once all views have been added."""
        values = probabilities(logits)
        values = values[:, :, ::-1] if mirrored else values
        total, count = self._sums.pop(tile, (0, 0))
        if count + 1 == self.views:
            yield tile, total + values
        else:
            self._sums[tile] = total + values, count + 1


class MapCanvas:
    """Blends the class probabilities of tiles into a class map of the image. Tiles come row by row.

    Probabilities are stored only for rows of pixels that later tiles can change: for a whole image of 12 megapixels and
    150 classes they would take 7 GB.

    Args:
        image_size: (height, width) of the image in pixels.
        overlap: minimum overlap of neighboring tiles in pixels.
        keep: class whose blended values are stored in `kept`, or None.

    Attributes:
        kept: blended values of class `keep`, float32 ``[H, W]``, or None.
    """

    def __init__(self, image_size: tuple[int, int], overlap: int, keep: int | None = None):
        self.image_size, self.overlap, self._keep = image_size, overlap, keep
        self.kept = None if keep is None else np.zeros(image_size, np.float32)
        self._labels = np.zeros(image_size, np.int64)
        self._first = 0  # first row of the two buffers below; rows above it are final
        self._sum: np.ndarray | None = None
        self._weight: np.ndarray | None = None

    def add(self, tile: Tile, values: np.ndarray) -> None:
        """Add the probabilities of a tile.

        Args:
            tile: the tile.
            values: float32 ``[C, h, w]``; may be sums over views if all tiles have the same number of views.

        Raises:
            ValueError: the tile starts above an earlier one, or the tiles leave a gap.
        """
        x0, y0, x1, y1 = tile
        if self._sum is None:
            self._sum = np.zeros((values.shape[0], y1 - y0, self.image_size[1]), np.float32)
            self._weight = np.zeros(self._sum.shape[1:], np.float32)
        if y0 < self._first:
            raise ValueError(f"tiles must come row by row, but row {y0} comes after row {self._first}")
        self._finish(y0)
        weight = tile_weight(tile, self.image_size, self.overlap)
        rows = slice(0, y1 - y0)
        self._sum[:, rows, x0:x1] += values * weight
        self._weight[rows, x0:x1] += weight

    def _finish(self, row: int) -> None:
        """Make the rows above `row` final, and move the buffers down to it."""
        done = row - self._first
        if done == 0:
            return
        held = self._sum.shape[1]
        if done > held or not (self._weight[:done] > 0).all():
            raise ValueError("the tiles do not cover the image")
        # dividing by the weight would not change the argmax
        self._labels[self._first : row] = self._sum[:, :done].argmax(axis=0)
        if self._keep is not None:
            self.kept[self._first : row] = self._sum[self._keep, :done] / self._weight[:done]
        for buffer in (self._sum, self._weight[None]):
            for plane in buffer:  # plane by plane: the regions overlap, and a copy of all planes would be large
                plane[: held - done] = plane[done:].copy()
                plane[held - done :] = 0
        self._first = row

    def result(self) -> np.ndarray:
        """Return the class index of each pixel, int64 ``[H, W]``, after the last tile.

        Raises:
            ValueError: the tiles do not cover the image.
        """
        if self._sum is None:
            raise ValueError("the tiles do not cover the image")
        self._finish(self.image_size[0])
        return self._labels
