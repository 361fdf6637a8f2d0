"""Drawings of clips: frames side by side, with keypoints or masks, and a caption."""

from collections.abc import Sequence

import numpy as np

from visionattn.errors import require

__all__ = ["draw_keypoints", "draw_sheet"]

FRAME_HEIGHT = 160
"""Height of a frame in pixels."""
CAPTION_HEIGHT = 28
COLORS = ((80, 220, 255), (255, 160, 60), (120, 230, 120), (220, 120, 255))
"""Colors of the keypoints by person, in BGR order."""


def draw_sheet(frames: Sequence[np.ndarray], caption: str) -> np.ndarray:
    """Return frames side by side, four in a row, with a caption below, BGR uint8 ``[H, W, 3]``.

    Args:
        frames: BGR uint8 ``[h, w, 3]``, at least one, all of one size.
        caption: one line of text.
    """
    cv2 = require("cv2")
    width = max(1, round(frames[0].shape[1] * FRAME_HEIGHT / frames[0].shape[0]))
    tiles = [cv2.resize(frame, (width, FRAME_HEIGHT)) for frame in frames]
    columns = min(4, len(tiles))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    sheet = np.concatenate([*rows, np.zeros((CAPTION_HEIGHT, rows[0].shape[1], 3), np.uint8)])
    where = (6, sheet.shape[0] - 9)
    cv2.putText(sheet, caption, where, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return sheet


def draw_keypoints(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return a frame, enlarged to `FRAME_HEIGHT` if it is smaller, with a dot at each keypoint inside it.

    Args:
        frame: BGR uint8 ``[H, W, 3]``.
        points: ``[people, joints, 2]``, x and y in pixels; NaN where missing.

    Returns:
        BGR uint8; the people have different colors.
    """
    cv2 = require("cv2")
    height, width = frame.shape[:2]
    scale = max(1.0, FRAME_HEIGHT / height)
    drawn = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR) if scale > 1 else frame.copy()
    radius = max(2, round(drawn.shape[0] / 80))
    for person, joints in enumerate(points):
        with np.errstate(invalid="ignore"):
            inside = (joints >= 0).all(-1) & (joints < (width, height)).all(-1)  # False for NaN
        for x, y in joints[inside] * scale:
            cv2.circle(drawn, (round(x), round(y)), radius + 1, (0, 0, 0), -1, cv2.LINE_AA)
            cv2.circle(drawn, (round(x), round(y)), radius, COLORS[person % len(COLORS)], -1, cv2.LINE_AA)
    return drawn
