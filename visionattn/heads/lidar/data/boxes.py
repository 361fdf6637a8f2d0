"""Box geometry in NumPy: corners, points inside boxes, and overlap in bird's-eye view.

Boxes are ``[M, 7]``: x, y, z of the center, length, width, height in meters, heading counter-clockwise from +x in
radians.
"""

import numpy as np

__all__ = ["bev_corners", "bev_overlaps", "box_corners", "count_points", "points_in_box", "wrap_angle"]

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
    """Pairwise overlap test in bird's-eye view, bool ``[N, M]``; boxes that only touch do not overlap.

    Uses the separating axis theorem: two convex polygons are disjoint if and only if their projections onto the
    normal of one of their sides are.
    """
    a, b = bev_corners(first), bev_corners(second)
    apart = np.zeros((len(a), len(b)), bool)
    for boxes, mine in ((first, True), (second, False)):
        heading = np.asarray(boxes, np.float64).reshape(-1, 7)[:, 6]
        for angle in (heading, heading + np.pi / 2):
            axis = np.stack([np.cos(angle), np.sin(angle)], -1)
            if mine:
                p, q = np.einsum("nd,nkd->nk", axis, a)[:, None], np.einsum("nd,mkd->nmk", axis, b)
            else:
                p, q = np.einsum("md,nkd->nmk", axis, a), np.einsum("md,mkd->mk", axis, b)[None]
            apart |= (p.max(-1) <= q.min(-1) + 1e-9) | (q.max(-1) <= p.min(-1) + 1e-9)
    return ~apart
