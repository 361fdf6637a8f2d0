"""The part of a scan that a camera sees, which in KITTI is the part that has labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from visionattn.heads.lidar.data.boxes import box_corners

__all__ = ["CameraView"]

_NEAR = 0.1  # metres before the camera, where projection becomes meaningless


@dataclass(frozen=True)
class CameraView:
    """A camera's view in the frame of the LiDAR.

    Attributes:
        projection: float64 ``[3, 4]`` from LiDAR coordinates to pixels times depth: P2 x R0_rect x Tr_velo_to_cam.
        size: width and height of the picture in pixels.
        dont_care: float64 ``[D, 4]``, left, top, right, bottom of regions of the picture with unlabelled objects.
    """

    projection: np.ndarray
    size: tuple[int, int]
    dont_care: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))

    @classmethod
    def from_matrices(
        cls,
        p2: Sequence[Sequence[float]],
        r0_rect: Sequence[Sequence[float]],
        velo_to_cam: Sequence[Sequence[float]],
        size: tuple[int, int],
        dont_care: np.ndarray | None = None,
    ) -> "CameraView":
        """From KITTI's calibration: ``[3, 4]``, ``[3, 3]`` and ``[3, 4]``.

        Raises:
            ValueError: a matrix has another shape.
        """
        to_camera = velo_to_rect(r0_rect, velo_to_cam)
        p2 = np.asarray(p2, np.float64)
        if p2.shape != (3, 4):
            raise ValueError(f"P2 must be 3 x 4, got {p2.shape}")
        return cls(p2 @ to_camera, size, np.zeros((0, 4)) if dont_care is None else dont_care)

    def moved(self, matrix: np.ndarray) -> "CameraView":
        """The same view after all points were moved by ``[4, 4]``."""
        return replace(self, projection=self.projection @ np.linalg.inv(matrix))

    def pixels(self, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixels float64 ``[..., 2]`` and depth ``[...]`` of points ``[..., 3]``; pixels at depth 0.1 if nearer."""
        xyz = np.asarray(xyz, np.float64)
        projected = xyz @ self.projection[:, :3].T + self.projection[:, 3]
        depth = projected[..., 2]
        return projected[..., :2] / np.maximum(depth, _NEAR)[..., None], depth

    def sees(self, points: np.ndarray) -> np.ndarray:
        """Which points, or boxes by their centres, ``[N, 3 or more]``, are in the picture, bool ``[N]``."""
        uv, depth = self.pixels(points[:, :3])
        return (depth > _NEAR) & (uv >= 0).all(-1) & (uv[:, 0] < self.size[0]) & (uv[:, 1] < self.size[1])

    def picture_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Left, top, right, bottom around the corners of boxes ``[M, 7]``, cut to the picture, float64 ``[M, 4]``."""
        uv, _ = self.pixels(box_corners(boxes))
        limit = np.array(self.size, np.float64) - 1
        return np.concatenate([uv.min(1).clip(0, limit), uv.max(1).clip(0, limit)], axis=-1)

    def counts(self, boxes: np.ndarray, share: float = 0.5) -> np.ndarray:
        """Which detections ``[M, 7]`` are to be counted, bool ``[M]``.

        Those are left out whose centre the camera does not see, or of whose rectangle in the picture more than a
        share lies in one don't-care region.
        """
        counted = self.sees(boxes)
        if len(self.dont_care) and len(boxes):
            found = self.picture_boxes(boxes)[:, None]
            region = self.dont_care[None]
            sides = np.minimum(found[..., 2:], region[..., 2:]) - np.maximum(found[..., :2], region[..., :2])
            area = (found[..., 2:] - found[..., :2]).prod(-1)
            covered = sides.clip(min=0).prod(-1) / np.maximum(area, 1e-9)
            counted &= ~(covered > share).any(1)
        return counted


def velo_to_rect(r0_rect: Sequence[Sequence[float]], velo_to_cam: Sequence[Sequence[float]]) -> np.ndarray:
    """``[4, 4]`` from the LiDAR's frame to that of the rectified camera."""
    r0, tr = np.asarray(r0_rect, np.float64), np.asarray(velo_to_cam, np.float64)
    if r0.shape != (3, 3) or tr.shape != (3, 4):
        raise ValueError(f"R0_rect must be 3 x 3 and Tr_velo_to_cam 3 x 4, got {r0.shape} and {tr.shape}")
    full, rotation = np.eye(4), np.eye(4)
    full[:3], rotation[:3, :3] = tr, r0
    return rotation @ full
