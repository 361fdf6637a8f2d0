"""Merge boxes and instance masks found in several tiles or views of one image.

Neighboring tiles overlap. An object at a tile border is detected only in part in that tile, but completely in the next
tile if the overlap is at least as wide as the object. Partial detections of an object that another tile contains
completely are discarded. Partial detections of a larger object from neighboring tiles are joined if their IoU in the
overlap of the tiles is high enough; an object can span any number of tiles. Finally, non-maximum suppression within
each class removes duplicates.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from visionattn.errors import require
from visionattn.inference.results import InstanceMasks, Prediction
from visionattn.inference.tiling import Tile
from visionattn.kernels.box_overlap import valid_boxes

__all__ = ["NMS_IOU", "flip_prediction", "merge_by_nms", "merge_tiles"]

NMS_IOU = 0.6
FRAGMENT_COVER = 0.7
"""Minimum fraction of a truncated box inside another box for it to be discarded as a part of that object."""
PART_IOU = 0.6
"""Minimum IoU of two truncated objects, within the overlap of their tiles, for them to be joined."""


def merge_tiles(
    predictions: Sequence[Prediction],
    tiles: Sequence[Tile],
    image_size: tuple[int, int],
    iou_thr: float = NMS_IOU,
) -> Prediction:
    """Merge the predictions for the tiles of an image.

    Pass only boxes above the score threshold: a complete box removes its fragments regardless of their scores.

    Args:
        predictions: the prediction for each tile, in coordinates of the tile.
        tiles: positions of the tiles in the image.
        image_size: (height, width) of the image in pixels.
        iou_thr: IoU threshold of non-maximum suppression.

    Returns:
        The prediction for the image, in coordinates of the image.
    """
    moved = [_move(p, tile, image_size) for p, tile in zip(predictions, tiles, strict=True)]
    merged = _concatenate(moved)
    # Joined objects are assigned to an additional tile, the whole image, whose borders truncate no object.
    homes = np.array([*tiles, (0, 0, image_size[1], image_size[0])], dtype=np.float64)
    tile_of = np.repeat(np.arange(len(tiles)), [len(p) for p in moved])
    keep = ~(_complete_in_other_tile(merged, tile_of, homes) | _fragments(merged, tile_of, homes))
    merged, tile_of = _join_parts(merged.select(keep), tile_of[keep], homes)
    return merge_by_nms([merged.select(~_fragments(merged, tile_of, homes))], iou_thr)


def merge_by_nms(predictions: Sequence[Prediction], iou_thr: float = NMS_IOU) -> Prediction:
    """Concatenate predictions for one image and apply non-maximum suppression within each class.

    Boxes with NaN or infinity are dropped.

    Args:
        predictions: at least one, all in the coordinates of the same image.
        iou_thr: IoU threshold of non-maximum suppression.
    """
    ops = require("torchvision.ops")
    merged = _concatenate(predictions)
    boxes, scores, labels = (torch.from_numpy(a.copy()) for a in (merged.boxes, merged.scores, merged.labels))
    # float64, because batched_nms separates the classes by adding large offsets to their boxes
    valid = valid_boxes(boxes, scores).nonzero().squeeze(1)
    keep = ops.batched_nms(boxes[valid].double(), scores[valid].double(), labels[valid], iou_thr)
    return merged.select(valid[keep].numpy())


def flip_prediction(prediction: Prediction) -> Prediction:
    """Return the prediction for the horizontally flipped image."""
    width = prediction.image_size[1]
    boxes = prediction.boxes.copy()
    boxes[:, [0, 2]] = width - prediction.boxes[:, [2, 0]]
    masks = None if prediction.masks is None else prediction.masks.flipped()
    return replace(prediction, boxes=boxes, masks=masks)


def _move(prediction: Prediction, tile: Tile, image_size: tuple[int, int]) -> Prediction:
    x, y = tile[:2]
    boxes = prediction.boxes + np.array([x, y, x, y], dtype=np.float32)
    masks = None if prediction.masks is None else prediction.masks.moved((x, y), image_size)
    return replace(prediction, boxes=boxes, masks=masks, image_size=image_size, image=None)


def _concatenate(predictions: Sequence[Prediction]) -> Prediction:
    if len({p.image_size for p in predictions}) != 1:
        raise ValueError("`predictions` must not be empty and must be of images of one size")
    masks = None
    if all(p.masks is not None for p in predictions):
        crops = [crop for p in predictions for crop in p.masks.crops]
        corners = [corner for p in predictions for corner in p.masks.corners]
        masks = InstanceMasks(crops, corners, predictions[0].image_size)
    return replace(
        predictions[0],
        boxes=np.concatenate([p.boxes for p in predictions]),
        scores=np.concatenate([p.scores for p in predictions]),
        labels=np.concatenate([p.labels for p in predictions]),
        masks=masks,
        seconds=sum(p.seconds for p in predictions),
    )


def _cut_sides(prediction: Prediction, tile_of: np.ndarray, homes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which sides of each box are at a tile border inside the image, and the tolerance.

    Returns:
        bool ``[N, 4]`` (left, top, right, bottom), and the tolerance in pixels ``[N, 1]``.
    """
    boxes = prediction.boxes.astype(np.float64)
    height, width = prediction.image_size
    home = homes[tile_of]
    # Predicted boxes of truncated objects rarely end exactly at the border, hence the tolerance. It is safe to treat
    # a complete box as truncated: it is removed only if another box covers it, and joined only with a matching box.
    margin = np.maximum(2.0, 0.01 * (home[:, 2:] - home[:, :2]).max(axis=1, initial=0))[:, None]
    inner = np.stack([home[:, 0] > 0, home[:, 1] > 0, home[:, 2] < width, home[:, 3] < height], axis=1)
    return inner & (np.abs(boxes - home) <= margin), margin


def _complete_in_other_tile(prediction: Prediction, tile_of: np.ndarray, homes: np.ndarray) -> np.ndarray:
    """Return True for boxes ``[N]`` that are truncated in their own tile and lie completely inside another tile."""
    boxes = prediction.boxes.astype(np.float64)
    height, width = prediction.image_size
    cut, margin = _cut_sides(prediction, tile_of, homes)
    elsewhere = np.zeros(len(boxes), dtype=bool)
    for tile, (x0, y0, x1, y1) in enumerate(homes[:-1]):
        slack = np.where([x0 > 0, y0 > 0, x1 < width, y1 < height], margin, 0)
        room = np.concatenate([boxes[:, :2] - (x0, y0), (x1, y1) - boxes[:, 2:]], axis=1)
        elsewhere |= (tile_of != tile) & (room >= slack).all(axis=1)
    return cut.any(axis=1) & elsewhere


def _fragments(prediction: Prediction, tile_of: np.ndarray, homes: np.ndarray) -> np.ndarray:
    """Return True for truncated boxes ``[N]`` that are parts of a box in another tile."""
    boxes = prediction.boxes.astype(np.float64)
    cut, margin = _cut_sides(prediction, tile_of, homes)
    whole = ~cut.any(axis=1)
    area = (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
    fragment = np.zeros(len(boxes), dtype=bool)
    for index in np.flatnonzero(~whole):
        box = boxes[index]
        low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
        covers = (high - low).clip(min=0).prod(axis=1) >= FRAGMENT_COVER * max(area[index], 1e-9)
        reach = np.concatenate([box[:2] - boxes[:, :2], boxes[:, 2:] - box[2:]], axis=1)  # beyond each side
        beyond = (reach >= -margin) | ~cut[index]
        larger = (area > area[index]) | ((area == area[index]) & (np.arange(len(boxes)) < index))
        other = (tile_of != tile_of[index]) & (prediction.labels == prediction.labels[index])
        fragment[index] = (other & covers & beyond.all(axis=1) & (whole | larger)).any()
    return fragment


def _join_parts(prediction: Prediction, tile_of: np.ndarray, homes: np.ndarray) -> tuple[Prediction, np.ndarray]:
    """Join the parts of objects that are larger than the overlap of the tiles.

    Two boxes of a class are parts of one object if both are truncated in the overlap of their tiles and the IoU of
    their masks (or boxes, without masks) within the overlap is at least `PART_IOU`.

    Returns:
        The prediction with joined boxes in place of their parts, and the tile index of each box; the last index
        stands for the whole image.
    """
    cut, _ = _cut_sides(prediction, tile_of, homes)
    group = np.arange(len(prediction))
    for first in np.flatnonzero(cut[:, 2:].any(axis=1)):
        best: dict[int, tuple[float, int]] = {}
        for second in _facing(prediction, tile_of, homes, cut, first):
            iou = _shared_iou(prediction, first, second, homes[tile_of[first]], homes[tile_of[second]])
            if iou >= PART_IOU:
                tile = int(tile_of[second])
                best[tile] = max(best.get(tile, (0.0, -1)), (iou, int(second)))
        for _, second in best.values():
            group[group == group[second]] = group[first]
    groups = [np.flatnonzero(group == value) for value in np.unique(group)]
    boxes = prediction.boxes
    low = np.array([boxes[g, :2].min(axis=0) for g in groups], np.float32).reshape(-1, 2)
    high = np.array([boxes[g, 2:].max(axis=0) for g in groups], np.float32).reshape(-1, 2)
    leader = np.array([g[prediction.scores[g].argmax()] for g in groups], np.int64)
    joined = prediction.select(leader)
    masks = joined.masks
    if masks is not None:
        masks = InstanceMasks.union(prediction.masks, groups)
    homes_of = np.array([tile_of[g[0]] if len(g) == 1 else len(homes) - 1 for g in groups], np.int64)
    return replace(joined, boxes=np.concatenate([low, high], axis=1), masks=masks), homes_of


def _facing(prediction: Prediction, tile_of: np.ndarray, homes: np.ndarray, cut: np.ndarray, first: int) -> np.ndarray:
    """Return the truncated boxes of the same class, in tiles to the right or below, that may continue this box."""
    home, other = homes[tile_of[first]], homes[tile_of]
    right = cut[first, 2] & cut[:, 0] & (other[:, 0] > home[0]) & (other[:, 0] < home[2])
    below = cut[first, 3] & cut[:, 1] & (other[:, 1] > home[1]) & (other[:, 1] < home[3])
    return np.flatnonzero((right | below) & (prediction.labels == prediction.labels[first]))


def _shared_iou(prediction: Prediction, first: int, second: int, home: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of two boxes, or of their masks, within the overlap of the tiles."""
    low, high = np.maximum(home[:2], other[:2]), np.minimum(home[2:], other[2:])
    if (high <= low).any():
        return 0.0
    if prediction.masks is not None:
        window = tuple(int(value) for value in (*low, *high))
        a, b = (prediction.masks.within(index, window) for index in (first, second))
        return float((a & b).sum() / max(1, (a | b).sum()))
    a, b = (
        np.concatenate([np.maximum(box[:2], low), np.minimum(box[2:], high)]).astype(np.float64)
        for box in (prediction.boxes[first], prediction.boxes[second])
    )
    sides = [(box[2:] - box[:2]).clip(min=0).prod() for box in (a, b)]
    common = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0).prod()
    return float(common / max(sum(sides) - common, 1e-9))
