"""Draw a point cloud and its boxes in bird's-eye view, with x up, y left and range rings around the sensor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from visionattn.errors import require
from visionattn.heads.lidar.data.boxes import bev_corners
from visionattn.inference.draw import class_color

if TYPE_CHECKING:
    from visionattn.heads.lidar.results import PointPrediction

cv2 = require("cv2")

__all__ = ["draw_bev", "shown_area"]

GROUND, RING, TEXT, TRUTH = (24, 20, 18), (58, 50, 46), (150, 140, 132), (245, 245, 245)
SUBPIXELS = 4
"""Number of fractional bits of the coordinates passed to OpenCV's drawing functions."""


def shown_area(points: np.ndarray, boxes: np.ndarray | None = None) -> tuple[float, float, float, float]:
    """Return minimum x, minimum y, maximum x and maximum y, in meters, of nearly all points and all boxes."""
    corners = bev_corners(boxes).reshape(-1, 2) if boxes is not None and len(boxes) else np.zeros((0, 2))
    if not len(points) and not len(corners):
        return -40.0, -40.0, 40.0, 40.0
    middle = np.percentile(points[:, :2], [0.5, 99.5], axis=0) if len(points) else np.zeros((0, 2))
    every = np.concatenate([middle, corners, [[-5.0, -5.0], [5.0, 5.0]]])
    low, high = every.min(0) - 2, every.max(0) + 2
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def draw_bev(
    prediction: "PointPrediction", area: Sequence[float] | None = None, pixels: int = 1200, captions: bool = True
) -> np.ndarray:
    """Draw a point cloud with its boxes in bird's-eye view.

    Higher points are brighter. A box has the color of its class, a line from its center to its front, and its score,
    if it is finite; labeled boxes are thin and white. Rings mark the distance from the sensor.

    Args:
        prediction: what to draw.
        area: minimum x, minimum y, maximum x, maximum y in meters. Defaults to `shown_area`.
        pixels: length of the longer side of the image in pixels.
        captions: draw scores, distances and a legend of the classes.

    Returns:
        BGR uint8 ``[H, W, 3]``.

    Raises:
        ValueError: ``area`` is empty.
    """
    x0, y0, x1, y1 = shown_area(prediction.points, prediction.boxes) if area is None else map(float, area)
    if not (x1 > x0 and y1 > y0):
        raise ValueError(
            f"`area` must be (x_min, y_min, x_max, y_max) with x_min < x_max and y_min < y_max, got {(x0, y0, x1, y1)}"
        )
    scale = pixels / max(x1 - x0, y1 - y0)
    height, width = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))

    def place(xy: np.ndarray) -> np.ndarray:
        """Convert meters ``[..., 2]`` to pixels (column, row)."""
        return np.stack([(y1 - xy[..., 1]) * scale, (x1 - xy[..., 0]) * scale], -1)

    out = np.empty((height, width, 3), np.uint8)
    out[:] = GROUND
    step = next((s for s in (5, 10, 20, 50, 100) if max(x1 - x0, y1 - y0) / s <= 12), 200)
    _rings(out, place(np.zeros(2)), scale, step, captions)
    _points(out, prediction.points, place)
    _sensor(out, place)
    line = max(1, round(pixels / 700))
    for box in prediction.truth:
        _box(out, box, place, TRUTH, 1)
    for index in np.argsort(prediction.scores, kind="stable"):
        color = class_color(int(prediction.labels[index]))
        small = prediction.boxes[index, 3:5].min() * scale < 6 * line
        _box(out, prediction.boxes[index], place, color, 1 if small else line)
        if captions and np.isfinite(prediction.scores[index]):
            corner = place(bev_corners(prediction.boxes[index])[0])
            where = round(float(corner[:, 0].max())) + 3, round(float(corner[:, 1].mean())) + 4
            _text(out, f"{prediction.scores[index]:.2f}", where, color, 0.38)
    if captions:
        _legend(out, prediction)
    return out


def _fixed(xy: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(xy, -1e5, 1e5) * (1 << SUBPIXELS)).astype(np.int32)


def _rings(out: np.ndarray, middle: np.ndarray, scale: float, step: int, captions: bool) -> None:
    reach = float(np.hypot(*out.shape[:2])) / scale
    turn = np.linspace(0, 2 * np.pi, 361)
    circle = np.stack([np.cos(turn), np.sin(turn)], -1)  # cv2.circle draws large circles as visible polygons
    for radius in np.arange(step, reach + step, step):
        cv2.polylines(out, [_fixed(middle + circle * radius * scale)], False, RING, 1, cv2.LINE_AA, SUBPIXELS)
        if captions:
            for sign in (-1, 1):
                where = round(middle[0]) + 3, round(middle[1] + sign * radius * scale) - 3
                if 8 < where[1] < out.shape[0]:
                    _text(out, f"{radius:g} m", where, TEXT, 0.38)


def _points(out: np.ndarray, points: np.ndarray, place) -> None:
    if not len(points):
        return
    spot = np.floor(place(points[:, :2])).astype(np.int64)
    inside = ((spot >= 0) & (spot < (out.shape[1], out.shape[0]))).all(1)
    z = points[inside, 2]
    low, high = np.percentile(points[:, 2], [2, 99]) if len(points) > 1 else (0.0, 1.0)
    light = (80 + 150 * np.clip((z - low) / max(high - low, 1e-3), 0, 1)).astype(np.uint8)
    gray = np.zeros(out.shape[:2], np.uint8)
    np.maximum.at(gray, (spot[inside, 1], spot[inside, 0]), light)
    out[gray > 0] = gray[gray > 0, None]


def _sensor(out: np.ndarray, place) -> None:
    shape = place(np.array([[1.6, 0.0], [-0.8, 0.8], [-0.8, -0.8]]))
    cv2.fillPoly(out, [_fixed(shape)], TEXT, cv2.LINE_AA, SUBPIXELS)


def _box(out: np.ndarray, box: np.ndarray, place, color: tuple[int, int, int], line: int) -> None:
    corners = bev_corners(box)[0]
    front = (corners[0] + corners[3]) / 2
    cv2.polylines(out, [_fixed(place(corners))], True, color, line, cv2.LINE_AA, SUBPIXELS)
    ahead = _fixed(place(np.stack([box[:2].astype(np.float64), front])))
    cv2.polylines(out, [ahead], False, color, line, cv2.LINE_AA, SUBPIXELS)
    cv2.polylines(out, [_fixed(place(corners[[0, 3]]))], False, color, line + 1, cv2.LINE_AA, SUBPIXELS)


def _text(out: np.ndarray, text: str, where: tuple[int, int], color: tuple[int, int, int], size: float) -> None:
    cv2.putText(out, text, where, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)


def _legend(out: np.ndarray, prediction: "PointPrediction") -> None:
    counts = {name: prediction.names.count(name) for name in prediction.classes}
    rows = [
        (f"{name} {counts[name]}", class_color(label))
        for label, name in enumerate(prediction.classes)
        if counts[name] or len(prediction.classes) <= 4
    ]
    if len(prediction.truth):
        rows.append((f"labelled {len(prediction.truth)}", TRUTH))
    widest = max((cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)[0][0] for text, _ in rows), default=0)
    if not rows or out.shape[0] < 22 * len(rows) + 12 or out.shape[1] < widest + 40:
        return
    region = out[6 : 22 * len(rows) + 12, 6 : widest + 40]
    region[:] = region // 4 + np.array(GROUND, np.uint8) // 2
    for number, (text, color) in enumerate(rows):
        y = 24 + 22 * number
        cv2.rectangle(out, (14, y - 10), (24, y), color, cv2.FILLED, cv2.LINE_AA)
        _text(out, text, (32, y), TRUTH, 0.5)
