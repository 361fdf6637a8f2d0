"""Maps of classes from several views of one image: probabilities averaged over views, tiles blended without a seam."""

from collections.abc import Iterator

import numpy as np

from visionattn.inference.tiling import Tile

__all__ = ["MapCanvas", "ViewSum", "probabilities", "tile_weight"]

TRUSTED = 0.25
"""Share of the overlap, from a tile's cut border inwards, that is left to the neighbor: there context is cut off."""


def tile_weight(tile: Tile, image_size: tuple[int, int], overlap: int) -> np.ndarray:
    """What a tile counts at each of its pixels, float32 ``[h, w]`` in 0..1.

    One in the middle and at borders of the image; towards a border that cuts the image it falls linearly over the
    middle half of the overlap, and is zero in the last quarter, so that pixels whose surroundings the border cuts
    off come from the neighbor alone. Two tiles that overlap by exactly `overlap` add up to one.

    Args:
        tile: where it lies in the image.
        image_size: (height, width) of the image in pixels.
        overlap: pixels that neighbors share at least.
    """
    x0, y0, x1, y1 = tile
    height, width = image_size
    rows = _ramp(y1 - y0, overlap, y0 > 0, y1 < height)
    columns = _ramp(x1 - x0, overlap, x0 > 0, x1 < width)
    return rows[:, None] * columns[None, :]


def _ramp(length: int, overlap: int, cut_before: bool, cut_after: bool) -> np.ndarray:
    margin = int(TRUSTED * overlap)
    position = np.arange(length, dtype=np.float32) + 0.5
    rise = ((position - margin) / max(overlap - 2 * margin, 1)).clip(0, 1) if overlap else np.ones(length, np.float32)
    weight = np.ones(length, np.float32)
    if cut_before:
        weight = np.minimum(weight, rise)
    if cut_after:
        weight = np.minimum(weight, rise[::-1])
    return weight


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the first axis of ``[C, h, w]``, float32."""
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
    """Blends the class probabilities of an image's tiles, given row by row of tiles, into its map of classes.

    Only the rows of pixels that tiles still to come may change are held with all their classes: of an image of 12
    megapixels and 150 classes the whole would be 7 GB.

    Args:
        image_size: (height, width) of the image in pixels.
        overlap: pixels that neighboring tiles share at least.
        keep: a class whose probability is wanted at each pixel too.

    Attributes:
        kept: the mean over tiles of the values of class ``keep``, float32 ``[H, W]``, or None.
    """

    def __init__(self, image_size: tuple[int, int], overlap: int, keep: int | None = None):
        self.image_size, self.overlap, self._keep = image_size, overlap, keep
        self.kept = None if keep is None else np.zeros(image_size, np.float32)
        self._labels = np.zeros(image_size, np.int64)
        self._first = 0  # the row of the image at which the two below start; all above it is done
        self._sum: np.ndarray | None = None
        self._weight: np.ndarray | None = None

    def add(self, tile: Tile, values: np.ndarray) -> None:
        """Add a tile's probabilities, float32 ``[C, h, w]``: once each, or summed over as many views for every tile.

        Raises:
            ValueError: the tile starts above one that was given before it, or rows between them are not covered.
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
        """Decide the classes above a row of the image, and let the buffers start there."""
        done = row - self._first
        if done == 0:
            return
        held = self._sum.shape[1]
        if done > held or not (self._weight[:done] > 0).all():
            raise ValueError("the tiles do not cover the image")
        self._labels[self._first : row] = self._sum[:, :done].argmax(axis=0)  # no weight changes the greatest
        if self._keep is not None:
            self.kept[self._first : row] = self._sum[self._keep, :done] / self._weight[:done]
        for buffer in (self._sum, self._weight[None]):
            for plane in buffer:  # by copies of one plane, for the two regions overlap
                plane[: held - done] = plane[done:].copy()
                plane[held - done :] = 0
        self._first = row

    def result(self) -> np.ndarray:
        """The class of each pixel, int64 ``[H, W]``, after the last tile.

        Raises:
            ValueError: the tiles do not cover the image.
        """
        if self._sum is None:
            raise ValueError("the tiles do not cover the image")
        self._finish(self.image_size[0])
        return self._labels
