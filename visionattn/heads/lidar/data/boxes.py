"""Box geometry in NumPy: corners, points inside boxes, and overlap in bird's-eye view.

Boxes are ``[M, 7]``: x, y, z of the center, length, width, height in meters, heading counter-clockwise from +x in
radians.
"""

import numpy as np
import torch

from visionattn.kernels.box_overlap import rotated_intersection

__all__ = ["bev_corners", "bev_overlaps", "box_corners", "count_points", "points_in_box", "wrap_angle"]

LEAST_OVERLAP = 1e-9
"""Intersections with a smaller area, in square meters, are attributed to rounding errors."""

_SIGNS = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) / 2


def wrap_angle(angle: np.ndarray) -> np.ndarray:
    """Wrap angles to [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi


def bev_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners in bird's-eye view, counter-clockwise from the front left, float64 ``[M, 4, 2]``."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    cosine, sine = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    local = _SIGNS[None] * boxes[:, None, 3:5]
    x = local[..., 0] * cosine[:, None] - local[..., 1] * sine[:, None]
    y = local[..., 0] * sine[:, None] + local[..., 1] * cosine[:, None]
    return np.stack([x, y], -1) + boxes[:, None, :2]


def box_corners(boxes: np.ndarray) -> np.ndarray:
    """Corners of boxes, the four at the bottom followed by the four at the top, float64 ``[M, 8, 3]``."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 7)
    flat = bev_corners(boxes)
    height = boxes[:, 2, None] + np.array([-0.5, 0.5]) * boxes[:, 5, None]
    levels = [np.concatenate([flat, np.repeat(height[:, i, None, None], 4, 1)], -1) for i in (0, 1)]
    return np.concatenate(levels, axis=1)


def points_in_box(points: np.ndarray, box: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Indices of the points inside a box, including its faces, int64 ``[K]``.

    Args:
        points: ``[N, C]``, x, y, z first.
        box: ``[7]``.
        margin: enlargement of the box on each side, in meters.
    """
    box = np.asarray(box, np.float64)
    half = box[3:6] / 2 + margin
    reach = np.hypot(half[0], half[1])
    near = np.flatnonzero((np.abs(points[:, 0] - box[0]) <= reach) & (np.abs(points[:, 1] - box[1]) <= reach))
    offset = points[near, :3].astype(np.float64) - box[:3]
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    along = np.abs(offset[:, 0] * cosine + offset[:, 1] * sine)
    across = np.abs(offset[:, 1] * cosine - offset[:, 0] * sine)
    return near[(along <= half[0]) & (across <= half[1]) & (np.abs(offset[:, 2]) <= half[2])]


def count_points(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Number of points inside each box, int64 ``[M]``."""
    return np.array([len(points_in_box(points, box)) for box in boxes], dtype=np.int64)


def bev_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return which boxes overlap in bird's-eye view, bool ``[N, M]``; boxes that only touch do not overlap.

    Args:
        first: ``[N, 7]``.
        second: ``[M, 7]``.
    """
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 7)[:, [0, 1, 3, 4, 6]] for boxes in (first, second))
    offset = a[:, None, :2] - b[:, :2]
    distance = 2 * np.hypot(offset[..., 0], offset[..., 1])
    # Circles around the boxes and within them decide most pairs without any intersection.
    found = distance < a[:, 2:4].min(1)[:, None] + b[:, 2:4].min(1)
    near = distance <= np.hypot(a[:, 2], a[:, 3])[:, None] + np.hypot(b[:, 2], b[:, 3])
    rows, columns = (near & ~found).nonzero()
    if len(rows):
        with torch.inference_mode():
            area = rotated_intersection(torch.from_numpy(a[rows]), torch.from_numpy(b[columns]))
        found[rows, columns] = area.numpy() > LEAST_OVERLAP
    return found
