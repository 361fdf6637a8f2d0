"""Merge the panoptic predictions for the tiles of a large image.

Stuff needs no matching, since all pixels of a stuff class form one segment. Two segments of a thing class from
overlapping tiles are the same object if their IoU within the overlap exceeds 0.5, so each segment has at most one match
in the other tile. This also joins objects that are larger than the overlap. Each pixel is taken from the tile in which
it is farthest from the tile borders, where the model has the most context.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.inference.tiling import Tile

__all__ = ["merge_panoptic_tiles"]

MATCH_IOU = 0.5


def merge_panoptic_tiles(
    predictions: Sequence[Prediction], tiles: Sequence[Tile], image_size: tuple[int, int], things: int
) -> Prediction:
    """Merge the panoptic predictions for the tiles of an image.

    Args:
        predictions: the prediction for each tile, in coordinates of the tile, with masks and a semantic map.
        tiles: positions of the tiles, which must cover the image.
        image_size: (height, width) of the image in pixels.
        things: number of thing classes; labels below it are things, the others stuff.

    Returns:
        The prediction for the image.

    Raises:
        ValueError: a prediction has no masks or no semantic map, or the tiles do not cover the image.
    """
    maps = [prediction.panoptic for prediction in predictions]
    if any(found is None for found in maps):
        raise ValueError("each prediction must have masks and a semantic map")
    starts = np.concatenate([[0], np.cumsum([len(found.labels) for found in maps])]).astype(np.int64)
    labels = np.concatenate([found.labels for found in maps]).astype(np.int64)
    scores = np.concatenate([found.scores for found in maps]).astype(np.float32)
    group = _join(maps, tiles, starts, labels, things)
    owner = _owners(tiles, image_size)
    segments, semantic = np.full(image_size, -1, np.int64), np.zeros(image_size, np.int64)
    for index, (tile, found, prediction) in enumerate(zip(tiles, maps, predictions, strict=True)):
        x0, y0, x1, y1 = tile
        mine = owner[y0:y1, x0:x1] == index
        numbers = np.concatenate([[-1], group[starts[index] : starts[index + 1]]])
        segments[y0:y1, x0:x1][mine] = numbers[found.segments][mine]
        semantic[y0:y1, x0:x1][mine] = prediction.semantic[mine]
    kept = np.unique(segments[segments >= 0])
    best = np.zeros(len(labels), np.float32)
    np.maximum.at(best, group, scores)
    kept = kept[np.argsort(-best[kept], kind="stable")]
    crops, corners = [], []
    for number in kept:
        mask = segments == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        crops.append(mask[y0:y1, x0:x1].copy())
        corners.append((int(x0), int(y0)))
    boxes = [(x, y, x + c.shape[1], y + c.shape[0]) for c, (x, y) in zip(crops, corners, strict=True)]
    return Prediction(
        image_size,
        predictions[0].classes,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=best[kept],
        labels=labels[kept],
        masks=InstanceMasks(crops, corners, image_size),
        semantic=semantic,
        category_ids=predictions[0].category_ids,
        seconds=sum(prediction.seconds for prediction in predictions),
    )


def _owners(tiles: Sequence[Tile], image_size: tuple[int, int]) -> np.ndarray:
    """Return the index ``[H, W]`` of the tile whose borders are farthest from each pixel.

    Tile borders that coincide with the border of the image are not counted.
    """
    height, width = image_size
    best, owner = np.zeros(image_size, np.int64), np.full(image_size, -1, np.int64)
    for index, (x0, y0, x1, y1) in enumerate(tiles):
        rows = _depth(y1 - y0, y0 > 0, y1 < height, max(image_size))
        columns = _depth(x1 - x0, x0 > 0, x1 < width, max(image_size))
        depth = np.minimum(rows[:, None], columns[None, :])
        deeper = depth > best[y0:y1, x0:x1]
        owner[y0:y1, x0:x1][deeper] = index
        best[y0:y1, x0:x1][deeper] = depth[deeper]
    if (owner < 0).any():
        raise ValueError("the tiles do not cover the image")
    return owner


def _depth(length: int, cut_before: bool, cut_after: bool, far: int) -> np.ndarray:
    position = np.arange(1, length + 1)
    depth = np.full(length, far)
    if cut_before:
        depth = np.minimum(depth, position)
    if cut_after:
        depth = np.minimum(depth, position[::-1])
    return depth


def _join(maps: Sequence, tiles: Sequence[Tile], starts: np.ndarray, labels: np.ndarray, things: int) -> np.ndarray:
    """Return for each segment of all tiles the index ``[N]`` of the first segment of the same object or stuff class."""
    group = np.arange(len(labels))
    for label in np.unique(labels[labels >= things]):
        group[labels == label] = np.flatnonzero(labels == label)[0]
    home = np.repeat(np.arange(len(tiles)), np.diff(starts))
    pairs = []
    for first, second in combinations(range(len(tiles)), 2):
        pairs += _matches(maps, tiles, first, second, starts, labels, things)
    tiles_of = {int(i): {int(home[i])} for i in np.flatnonzero(labels < things)}
    for _, one, other in sorted(pairs, key=lambda pair: (-pair[0], pair[1:])):
        keep, drop = sorted((int(group[one]), int(group[other])))
        if keep != drop and not tiles_of[keep] & tiles_of[drop]:  # segments of one tile remain separate
            tiles_of[keep] |= tiles_of.pop(drop)
            group[group == drop] = keep
    return group


def _matches(
    maps: Sequence, tiles: Sequence[Tile], first: int, second: int, starts: np.ndarray, labels: np.ndarray, things: int
) -> list[tuple[float, int, int]]:
    """Return the matching thing segments of two tiles as (IoU in the overlap, index, index)."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = tiles[first], tiles[second]
    x0, y0, x1, y1 = max(ax0, bx0), max(ay0, by0), min(ax1, bx1), min(ay1, by1)
    if x0 >= x1 or y0 >= y1:
        return []
    one = maps[first].segments[y0 - ay0 : y1 - ay0, x0 - ax0 : x1 - ax0].ravel().astype(np.int64)
    other = maps[second].segments[y0 - by0 : y1 - by0, x0 - bx0 : x1 - bx0].ravel().astype(np.int64)
    rows, columns = len(maps[first].labels) + 1, len(maps[second].labels) + 1
    common = np.bincount(one * columns + other, minlength=rows * columns).reshape(rows, columns)
    union = common.sum(axis=1)[:, None] + common.sum(axis=0)[None, :] - common
    found = []
    for row, column in np.argwhere(common[1:, 1:] > MATCH_IOU * union[1:, 1:]).tolist():
        a, b = int(starts[first]) + row, int(starts[second]) + column
        if labels[a] == labels[b] and labels[a] < things:
            found.append((float(common[row + 1, column + 1] / union[row + 1, column + 1]), a, b))
    return found
