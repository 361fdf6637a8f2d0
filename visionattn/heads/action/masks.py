"""Key points, boxes and heat maps to masks over patches, as pose-aware attention takes them.

Reilly et al., "Seeing the Pose in the Pixels" (arXiv 2306.09331), with masks by row, then column. Coordinates are
pixels of the frame that the model sees, x to the right and y down; the first pixel covers 0 to 1.
"""

import math
from collections.abc import Sequence

import numpy as np

from visionattn.errors import require

__all__ = ["box_masks", "grid_size", "heat_masks", "joint_targets", "patch_masks"]


def grid_size(size: Sequence[int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches of a frame ``(height, width)``; a part of a patch counts as one.

    Raises:
        ValueError: a side or the patch is less than 1.
    """
    height, width = (int(side) for side in size)
    if height < 1 or width < 1 or patch < 1:
        raise ValueError(f"size={tuple(size)} and patch={patch} must be at least 1")
    return math.ceil(height / patch), math.ceil(width / patch)


def patch_masks(points: np.ndarray, size: Sequence[int], patch: int = 16, inflation: int | None = 1) -> np.ndarray:
    """Which patches of each frame hold a key point, or are near one.

    Points that are NaN, infinite or outside of the frame do not count, as published; between -1 and 0 is the first
    pixel, as published too.

    Args:
        points: ``[T, ..., 2]``, x and y; between lie any number of axes such as people and joints.
        size: height and width of the frames.
        patch: side of a patch.
        inflation: patches around one with a point that count too, in each direction; None or 0 for none.

    Returns:
        bool ``[T, rows, columns]``.

    Raises:
        ValueError: shapes or numbers out of range.
    """
    points = _checked(points)
    rows, columns = grid_size(size, patch)
    if inflation is not None and (inflation < 0 or int(inflation) != inflation):
        raise ValueError(f"inflation={inflation} must be None or a whole number from 0 on")
    masks = np.zeros((len(points), rows, columns), bool)
    flat = points.reshape(len(points), math.prod(points.shape[1:-1]), 2)
    frame, _, row, column = _cells(flat, size, patch)
    masks[frame, row, column] = True
    return _inflate(masks, int(inflation or 0))


def joint_targets(points: np.ndarray, size: Sequence[int], patch: int = 16) -> np.ndarray:
    """Which joints lie in each patch: the targets of the auxiliary task (PAAT). They are never inflated.

    Args:
        points: ``[T, J, 2]``, or of several people ``[T, P, J, 2]``, whose targets are joined.
        size: height and width of the frames.
        patch: side of a patch.

    Returns:
        bool ``[T, rows, columns, J]``.
    """
    points = _checked(points)
    if points.ndim not in (3, 4):
        raise ValueError(f"points have the shape {points.shape}; they must be [T, J, 2] or [T, P, J, 2]")
    rows, columns = grid_size(size, patch)
    joints = points.shape[-2]
    targets = np.zeros((len(points), rows, columns, joints), bool)
    flat = points.reshape(len(points), math.prod(points.shape[1:-1]), 2)
    frame, which, row, column = _cells(flat, size, patch)
    targets[frame, row, column, which % joints if joints else which] = True
    return targets


def box_masks(
    boxes: Sequence[np.ndarray], size: Sequence[int], patch: int = 16, inflation: int | None = None
) -> np.ndarray:
    """Which patches of each frame a box touches.

    Args:
        boxes: of each frame ``[N, 4]``: left, top, right, bottom in pixels. Boxes with NaN or without an area do not
            count; infinite sides are cut at the frame.
        size: height and width of the frames.
        patch: side of a patch.
        inflation: as of `patch_masks`.

    Returns:
        bool ``[T, rows, columns]``.
    """
    rows, columns = grid_size(size, patch)
    masks = np.zeros((len(boxes), rows, columns), bool)
    for mask, frame in zip(masks, boxes, strict=True):
        for left, top, right, bottom in np.asarray(frame, np.float64).reshape(-1, 4):
            left, right = max(left, 0.0), min(right, float(size[1]))
            top, bottom = max(top, 0.0), min(bottom, float(size[0]))
            if not (left < right and top < bottom):  # NaN too
                continue
            mask[int(top // patch) : math.ceil(bottom / patch), int(left // patch) : math.ceil(right / patch)] = True
    return _inflate(masks, int(inflation or 0))


def heat_masks(heat: np.ndarray, patch: int = 16) -> np.ndarray:
    """Soft masks from heat maps in 0..1, such as a pose model gives: the most of each patch.

    Args:
        heat: ``[T, H, W]`` or, of several joints, ``[T, J, H, W]``.
        patch: side of a patch.

    Returns:
        float32 ``[T, rows, columns]`` in 0..1; NaN counts as 0.

    Raises:
        ValueError: another shape.
    """
    heat = np.asarray(heat, np.float32)
    if heat.ndim == 4:
        heat = heat.max(1, initial=0.0)
    if heat.ndim != 3:
        raise ValueError(f"heat has the shape {heat.shape}; it must be [T, H, W] or [T, J, H, W]")
    rows, columns = grid_size(heat.shape[1:], patch)
    heat = np.clip(np.nan_to_num(heat, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    missing = (0, rows * patch - heat.shape[1]), (0, columns * patch - heat.shape[2])
    padded = np.pad(heat, ((0, 0), *missing))
    return padded.reshape(len(heat), rows, patch, columns, patch).max((2, 4))


def _checked(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim < 2 or points.shape[-1] != 2:
        raise ValueError(f"points have the shape {points.shape}; they must be [T, ..., 2]")
    return points


def _cells(points: np.ndarray, size: Sequence[int], patch: int) -> tuple[np.ndarray, ...]:
    """Frame, number, row and column of each point of ``[T, K, 2]`` that is inside."""
    height, width = size
    x, y = points[..., 0], points[..., 1]
    with np.errstate(invalid="ignore"):
        inside = (x > -1) & (y > -1) & (x < width) & (y < height)  # NaN compares as outside
    frame, which = np.nonzero(inside)
    column = np.trunc(x[inside]).astype(np.int64) // patch
    row = np.trunc(y[inside]).astype(np.int64) // patch
    return frame, which, row, column


def _inflate(masks: np.ndarray, by: int) -> np.ndarray:
    if by == 0 or not masks.size:
        return masks
    cv2 = require("cv2")
    by = min(by, max(masks.shape[1:]))
    square = np.ones((2 * by + 1, 2 * by + 1), np.uint8)
    return np.stack([cv2.dilate(mask.astype(np.uint8), square) for mask in masks]).astype(bool)
