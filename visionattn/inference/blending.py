"""Maps of classes from several views of one image: logits of tiles blended without a seam, views averaged."""

from collections.abc import Iterable

import numpy as np

from visionattn.inference.tiling import Tile

__all__ = ["LogitCanvas", "mean_of_views", "mean_probability", "tile_weight"]

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


class LogitCanvas:
    """Collects the logits of an image's tiles one by one; memory holds those of the image, not of all tiles.

    Args:
        image_size: (height, width) of the image in pixels.
        overlap: pixels that neighboring tiles share at least.
    """

    def __init__(self, image_size: tuple[int, int], overlap: int):
        self.image_size, self.overlap = image_size, overlap
        self._sum: np.ndarray | None = None
        self._weight = np.zeros(image_size, np.float32)

    def add(self, tile: Tile, logits: np.ndarray) -> None:
        """Add a tile's logits, float32 ``[C, h, w]``."""
        x0, y0, x1, y1 = tile
        if self._sum is None:
            self._sum = np.zeros((logits.shape[0], *self.image_size), np.float32)
        weight = tile_weight(tile, self.image_size, self.overlap)
        self._sum[:, y0:y1, x0:x1] += logits * weight
        self._weight[y0:y1, x0:x1] += weight

    def result(self) -> np.ndarray:
        """The weighted mean at each pixel, float32 ``[C, H, W]``."""
        if self._sum is None or not (self._weight > 0).all():
            raise ValueError("the tiles do not cover the image")
        self._sum /= self._weight
        return self._sum


def mean_of_views(views: Iterable[np.ndarray]) -> np.ndarray:
    """The class of each pixel, int64 ``[H, W]``, by `mean_probability`."""
    return mean_probability(views).argmax(axis=0)


def mean_probability(views: Iterable[np.ndarray]) -> np.ndarray:
    """The mean probability (softmax) of each class at each pixel over views of the whole image, float32 ``[C, H, W]``.

    Args:
        views: logits, float32 ``[C, H, W]``, all turned back to the image's own orientation and size.
    """
    total: np.ndarray | None = None
    count = 0
    for logits in views:
        shifted = np.exp(logits - logits.max(axis=0))
        shifted /= shifted.sum(axis=0)
        total = shifted if total is None else total + shifted
        count += 1
    if total is None:
        raise ValueError("give at least one view")
    return total / count
