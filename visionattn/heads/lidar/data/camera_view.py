"""The field of view of a camera in LiDAR coordinates, in which the labels of KITTI are complete."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from visionattn.heads.lidar.data.boxes import box_corners

__all__ = ["CameraView"]

_NEAR = 0.1  # minimum depth of a valid projection, in meters


@dataclass(frozen=True)
class CameraView:
    """The view of a camera in the LiDAR frame.

    Attributes:
        projection: float64 ``[3, 4]`` from LiDAR coordinates to homogeneous pixel coordinates, P2 x R0_rect x
            Tr_velo_to_cam.
        size: width and height of the image, in pixels.
        dont_care: float64 ``[D, 4]``, left, top, right, bottom of image regions with unlabeled objects.
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
        """Create from KITTI's calibration matrices.

        Args:
            p2: camera projection, ``[3, 4]``.
            r0_rect: rectifying rotation, ``[3, 3]``.
            velo_to_cam: LiDAR-to-camera transform, ``[3, 4]``.
            size: width and height of the image, in pixels.
            dont_care: regions ``[D, 4]``. Defaults to none.

        Raises:
            ValueError: if a matrix has another shape.
        """
        to_camera = velo_to_rect(r0_rect, velo_to_cam)
        p2 = np.asarray(p2, np.float64)
        if p2.shape != (3, 4):
            raise ValueError(f"`p2` must have shape (3, 4), got {p2.shape}")
        return cls(p2 @ to_camera, size, np.zeros((0, 4)) if dont_care is None else dont_care)

    def moved(self, matrix: np.ndarray) -> "CameraView":
        """The same view after a transform ``[4, 4]`` of all points."""
        return replace(self, projection=self.projection @ np.linalg.inv(matrix))

    def pixels(self, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project points ``[..., 3]`` to pixels, float64 ``[..., 2]``, and depth ``[...]``.

        Points with a depth below 0.1 m are projected with depth 0.1 m.
        """
        xyz = np.asarray(xyz, np.float64)
        projected = xyz @ self.projection[:, :3].T + self.projection[:, 3]
        depth = projected[..., 2]
        return projected[..., :2] / np.maximum(depth, _NEAR)[..., None], depth

    def sees(self, points: np.ndarray) -> np.ndarray:
        """Mask of the points (or of boxes, by their centers) ``[N, C]``, C >= 3, inside the image, bool ``[N]``."""
        uv, depth = self.pixels(points[:, :3])
        return (depth > _NEAR) & (uv >= 0).all(-1) & (uv[:, 0] < self.size[0]) & (uv[:, 1] < self.size[1])

    def image_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """2D boxes (left, top, right, bottom) around boxes ``[M, 7]``, clipped to the image, float64 ``[M, 4]``."""
        uv, _ = self.pixels(box_corners(boxes))
        limit = np.array(self.size, np.float64) - 1
        return np.concatenate([uv.min(1).clip(0, limit), uv.max(1).clip(0, limit)], axis=-1)

    def counts(self, boxes: np.ndarray, share: float = 0.5) -> np.ndarray:
        """Mask of the detections to evaluate, bool ``[M]``.

        Args:
            boxes: detections ``[M, 7]``. Those with a center outside the image are excluded.
            share: detections are excluded if more than this fraction of their 2D box lies in one DontCare region.
        """
        counted = self.sees(boxes)
        if len(self.dont_care) and len(boxes):
            found = self.image_boxes(boxes)[:, None]
            region = self.dont_care[None]
            sides = np.minimum(found[..., 2:], region[..., 2:]) - np.maximum(found[..., :2], region[..., :2])
            area = (found[..., 2:] - found[..., :2]).prod(-1)
            covered = sides.clip(min=0).prod(-1) / np.maximum(area, 1e-9)
            counted &= ~(covered > share).any(1)
        return counted


def velo_to_rect(r0_rect: Sequence[Sequence[float]], velo_to_cam: Sequence[Sequence[float]]) -> np.ndarray:
    """Transform ``[4, 4]`` from the LiDAR frame to the rectified camera frame."""
    r0, tr = np.asarray(r0_rect, np.float64), np.asarray(velo_to_cam, np.float64)
    if r0.shape != (3, 3) or tr.shape != (3, 4):
        raise ValueError(f"`r0_rect` must have shape (3, 3) and `velo_to_cam` (3, 4), got {r0.shape} and {tr.shape}")
    full, rotation = np.eye(4), np.eye(4)
    full[:3], rotation[:3, :3] = tr, r0
    return rotation @ full
