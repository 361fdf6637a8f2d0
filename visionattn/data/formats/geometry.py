"""Boxes, polygons and masks in pixels: clipping to the image, areas, and run-length encodings."""

import math
from typing import Any

import numpy as np

from visionattn.data.coco import rle_runs, segmentation_fault
from visionattn.errors import require

__all__ = ["ROUNDING", "area_of", "around", "clip_box", "clip_polygon", "decode", "encode", "mask_box", "turn_points"]

ROUNDING = 0.01
"""Pixels by which coordinates may exceed the image without being clipped: fractions are written with few digits."""


def around(polygons: list[list[float]]) -> list[float]:
    """Return the box [x, y, width, height] around polygons."""
    xs, ys = [x for p in polygons for x in p[::2]], [y for p in polygons for y in p[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def clip_box(box: list[float], width: int, height: int) -> list[float]:
    """Return the part of a box inside the image; its width or height is negative if there is none."""
    x, y, w, h = box
    if x >= -ROUNDING and y >= -ROUNDING and x + w <= width + ROUNDING and y + h <= height + ROUNDING:
        return box
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return [x0, y0, x1 - x0, y1 - y0]


def clip_polygon(polygon: list[float], width: int, height: int) -> list[float]:
    """Return the part of a polygon inside the image (Sutherland and Hodgman, 1974); empty if there is none."""
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    if all(-ROUNDING <= x <= width + ROUNDING and -ROUNDING <= y <= height + ROUNDING for x, y in points):
        return polygon
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept: list[tuple[float, float]] = []
        for i, end in enumerate(points):
            start = points[i - 1]
            inside = [sign * (p[axis] - limit) >= 0 for p in (start, end)]
            if inside[0] != inside[1]:
                share = (limit - start[axis]) / (end[axis] - start[axis])
                other = start[1 - axis] + share * (end[1 - axis] - start[1 - axis])
                kept.append((limit, other) if axis == 0 else (other, limit))
            if inside[1]:
                kept.append(end)
        points = kept
    return [value for point in points for value in point]


def area_of(polygon: list[float]) -> float:
    """Return the area of a polygon."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(math.fsum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def decode(rle: dict[str, Any], width: int, height: int) -> np.ndarray:
    """Return the bool mask ``[height, width]`` of a COCO run-length encoding.

    Raises:
        ValueError: the encoding is invalid for this image.
    """
    if fault := segmentation_fault(rle, (width, height)):
        raise ValueError(fault)
    runs = rle_runs(rle["counts"])
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return the compressed COCO run-length encoding of a bool mask ``[height, width]``."""
    rle = require("pycocotools.mask").encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(n) for n in rle["size"]], "counts": rle["counts"].decode("ascii")}


def mask_box(mask: np.ndarray) -> list[float]:
    """Return the box [x, y, width, height] around the pixels of a bool mask that is not empty."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return [float(xs[0]), float(ys[0]), float(xs[-1] - xs[0] + 1), float(ys[-1] - ys[0] + 1)]


def turn_points(points: list[float], orientation: int, width: int, height: int) -> list[float]:
    """Move points [x1, y1, x2, y2, ...] of an image as stored to the image with its EXIF orientation applied.

    Args:
        points: the points.
        orientation: 1 to 8.
        width: of the image as stored, in pixels.
        height: likewise.
    """
    moved: list[float] = []
    for x, y in zip(points[::2], points[1::2], strict=True):
        moved += {
            2: (width - x, y),
            3: (width - x, height - y),
            4: (x, height - y),
            5: (y, x),
            6: (height - y, x),
            7: (height - y, width - x),
            8: (y, width - x),
        }.get(orientation, (x, y))
    return moved
