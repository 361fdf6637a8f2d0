"""Patch masks for pose-aware attention, from keypoints, boxes or heatmaps.

Reilly et al., "Seeing the Pose in the Pixels" (arXiv 2306.09331). Masks are indexed by row, then column. Coordinates
are in pixels of the model's input frames, x to the right and y down; the first pixel covers 0 to 1.
"""

import math
from collections.abc import Sequence

import numpy as np

from visionattn.errors import require

__all__ = ["box_masks", "grid_size", "heat_masks", "joint_targets", "patch_masks"]


def grid_size(size: Sequence[int], patch: int) -> tuple[int, int]:
    """Number of patch rows and columns of a frame ``(height, width)``, rounded up.

    Raises:
        ValueError: if a side or the patch size is less than 1.
    """
    height, width = (int(side) for side in size)
    if height < 1 or width < 1 or patch < 1:
        raise ValueError(f"`size` and `patch` must be at least 1, got {tuple(size)} and {patch}")
    return math.ceil(height / patch), math.ceil(width / patch)


def patch_masks(points: np.ndarray, size: Sequence[int], patch: int = 16, inflation: int | None = 1) -> np.ndarray:
    """Mark the patches of each frame that contain a keypoint, or are close to one.

    As in the published code, points that are NaN, infinite or outside the frame are ignored, and coordinates between
    -1 and 0 count as the first pixel.

    Args:
        points: ``[T, ..., 2]``, x and y in pixels, with any axes in between, such as people and joints.
        size: height and width of the frames, in pixels.
        patch: side length of a patch, in pixels.
        inflation: number of neighboring patches marked in each direction; None or 0 for none.

    Returns:
        bool ``[T, rows, columns]``.

    Raises:
        ValueError: if a shape or number is out of range.
    """
    points = _checked(points)
    rows, columns = grid_size(size, patch)
    masks = np.zeros((len(points), rows, columns), bool)
    flat = points.reshape(len(points), math.prod(points.shape[1:-1]), 2)
    frame, _, row, column = _cells(flat, size, patch)
    masks[frame, row, column] = True
    return _inflate(masks, inflation)


def joint_targets(points: np.ndarray, size: Sequence[int], patch: int = 16) -> np.ndarray:
    """Mark the joints that lie in each patch, the targets of the auxiliary task (PAAT), without inflation.

    Args:
        points: ``[T, J, 2]``, or ``[T, P, J, 2]`` for several people, whose targets are merged.
        size: height and width of the frames, in pixels.
        patch: side length of a patch, in pixels.

    Returns:
        bool ``[T, rows, columns, J]``.

    Raises:
        ValueError: if the points have another shape.
    """
    points = _checked(points)
    if points.ndim not in (3, 4):
        raise ValueError(f"`points` must be [T, J, 2] or [T, P, J, 2], got {points.shape}")
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
    """Mark the patches of each frame that overlap a box.

    Args:
        boxes: boxes of each frame ``[N, 4]``: left, top, right, bottom in pixels, clipped to the frame. Boxes with NaN
            or without area are ignored.
        size: height and width of the frames, in pixels.
        patch: side length of a patch, in pixels.
        inflation: see `patch_masks`.

    Returns:
        bool ``[T, rows, columns]``.
    """
    rows, columns = grid_size(size, patch)
    masks = np.zeros((len(boxes), rows, columns), bool)
    for mask, frame in zip(masks, boxes, strict=True):
        for left, top, right, bottom in np.asarray(frame, np.float64).reshape(-1, 4):
            left, right = max(left, 0.0), min(right, float(size[1]))
            top, bottom = max(top, 0.0), min(bottom, float(size[0]))
            if not (left < right and top < bottom):  # also False for NaN
                continue
            mask[int(top // patch) : math.ceil(bottom / patch), int(left // patch) : math.ceil(right / patch)] = True
    return _inflate(masks, inflation)


def heat_masks(heat: np.ndarray, patch: int = 16) -> np.ndarray:
    """Soft masks from heatmaps in [0, 1], such as those of a pose model: the maximum of each patch.

    Args:
        heat: ``[T, H, W]``, or ``[T, J, H, W]`` for several joints. NaN counts as 0.
        patch: side length of a patch, in pixels.

    Returns:
        float32 ``[T, rows, columns]``, in [0, 1].

    Raises:
        ValueError: if the heatmaps have another shape.
    """
    heat = np.asarray(heat, np.float32)
    if heat.ndim == 4:
        heat = heat.max(1, initial=0.0)
    if heat.ndim != 3:
        raise ValueError(f"`heat` must be [T, H, W] or [T, J, H, W], got {heat.shape}")
    rows, columns = grid_size(heat.shape[1:], patch)
    heat = np.clip(np.nan_to_num(heat, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    missing = (0, rows * patch - heat.shape[1]), (0, columns * patch - heat.shape[2])
    padded = np.pad(heat, ((0, 0), *missing))
    return padded.reshape(len(heat), rows, patch, columns, patch).max((2, 4))


def _checked(points: np.ndarray) -> np.ndarray:
    points = np.asarray(points, np.float64)
    if points.ndim < 2 or points.shape[-1] != 2:
        raise ValueError(f"`points` must be [T, ..., 2], got {points.shape}")
    return points


def _cells(points: np.ndarray, size: Sequence[int], patch: int) -> tuple[np.ndarray, ...]:
    """Frame, point index, row and column of each point of ``[T, K, 2]`` that is inside its frame."""
    height, width = size
    x, y = points[..., 0], points[..., 1]
    with np.errstate(invalid="ignore"):
        inside = (x > -1) & (y > -1) & (x < width) & (y < height)  # NaN compares as outside
    frame, which = np.nonzero(inside)
    column = np.trunc(x[inside]).astype(np.int64) // patch
    row = np.trunc(y[inside]).astype(np.int64) // patch
    return frame, which, row, column


def _inflate(masks: np.ndarray, inflation: int | None) -> np.ndarray:
    if inflation is not None and (inflation < 0 or int(inflation) != inflation):
        raise ValueError(f"`inflation` must be None or a whole number of at least 0, got {inflation}")
    by = int(inflation or 0)
    if by == 0 or not masks.size:
        return masks
    cv2 = require("cv2")
    by = min(by, max(masks.shape[1:]))
    square = np.ones((2 * by + 1, 2 * by + 1), np.uint8)
    return np.stack([cv2.dilate(mask.astype(np.uint8), square) for mask in masks]).astype(bool)
