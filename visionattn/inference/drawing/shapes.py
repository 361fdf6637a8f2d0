"""Fill masks, class maps and boxes with soft edges."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from visionattn.errors import require
from visionattn.inference.drawing.colors import Color

if TYPE_CHECKING:
    from visionattn.inference.results import InstanceMasks

cv2 = require("cv2")

__all__ = ["blend", "paint_boxes", "paint_map", "paint_masks"]

SHADING = 0.5
"""Fraction of the color of a map that follows the brightness of the image, so that its texture remains visible."""
HALO_OPACITY = 0.25
BORDER_OPACITY = 0.5
STRIP = 256
"""Number of rows of a map that are blended at once, which bounds the memory."""


def blend(region: np.ndarray, color: Color, alpha: np.ndarray) -> None:
    """Paint a color over a BGR region ``[h, w, 3]`` in place, with the opacity ``[h, w]`` of each pixel."""
    region[:] = cv2.blendLinear(np.full_like(region, color), region, alpha, 1 - alpha)


def paint_masks(
    out: np.ndarray,
    masks: "InstanceMasks",
    order: Sequence[int] | np.ndarray,
    colors: Sequence[Color],
    fills: Sequence[Color] | None,
    opacity: float,
    width: float,
) -> None:
    """Fill masks and draw their outlines, which are above all areas, so that those of overlapped masks are visible.

    Args:
        out: BGR uint8 ``[H, W, 3]``, changed in place.
        masks: the masks.
        order: indices of the masks, the topmost last.
        colors: color of the outline of each mask.
        fills: color of the area of each mask; None draws only outlines. If it is `colors` itself, each mask is drawn
            at once, which takes half the time, and may be covered in part by the areas of the next.
        opacity: opacity of the areas, in [0, 1].
        width: width of the outlines in pixels.
    """
    sigma = max(1.0, 0.5 * width)
    inside, outline = _profiles(sigma, width)
    inside = inside * np.float32(opacity)
    if fills is None:
        passes = [(colors, outline)]
    elif fills is colors:
        passes = [(colors, 1 - (1 - inside) * (1 - outline))]
    else:
        passes = [(fills, inside), (colors, outline)]
    for paint, profile in passes:
        for index, window, soft in _soft_masks(masks, order, sigma):
            blend(out[window], paint[index], cv2.LUT(soft, profile))


@lru_cache(maxsize=16)
def _profiles(sigma: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the opacity of an area and of its outline for each gray value of a blurred mask, float32 ``[256]``.

    A straight edge blurred by a Gaussian has the value of the normal distribution function at the distance from the
    edge. Its inverse is the distance, from which the opacity of pixels that the edge divides follows.
    """
    normal = NormalDist(sigma=sigma)
    values = [normal.inv_cdf(value / 255) for value in range(1, 255)]
    distance = np.array([-np.inf, *values, np.inf], np.float32)
    return (distance + 0.5).clip(0, 1), (width / 2 + 0.5 - abs(distance)).clip(0, min(1.0, width))


def _soft_masks(
    masks: "InstanceMasks", order: Sequence[int] | np.ndarray, sigma: float
) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
    """Yield the index, window in the image and blurred gray values, uint8 ``[h, w]``, of each mask."""
    height, width = masks.image_size
    margin = int(np.ceil(3 * sigma))
    for index in order:
        crop, (x, y) = masks.crops[index], masks.corners[index]
        if crop.size == 0:
            continue
        gray = cv2.copyMakeBorder(crop.view(np.uint8), *[margin] * 4, cv2.BORDER_CONSTANT) * np.uint8(255)
        soft = cv2.GaussianBlur(gray, (2 * margin + 1, 2 * margin + 1), sigma, borderType=cv2.BORDER_CONSTANT)
        x0, y0 = max(0, x - margin), max(0, y - margin)
        x1, y1 = min(width, x + crop.shape[1] + margin), min(height, y + crop.shape[0] + margin)
        left, top = x0 - (x - margin), y0 - (y - margin)
        yield int(index), (slice(y0, y1), slice(x0, x1)), soft[top : top + y1 - y0, left : left + x1 - x0]


def paint_boxes(out: np.ndarray, boxes: np.ndarray, order: np.ndarray, colors: Sequence[Color], line: int) -> None:
    """Draw boxes, x0, y0, x1, y1 in pixels ``[N, 4]``, in the given order."""
    height, width = out.shape[:2]
    corners = np.rint(boxes).astype(np.int64)
    corners[:, 0::2] = corners[:, 0::2].clip(0, width - 1)
    corners[:, 1::2] = corners[:, 1::2].clip(0, height - 1)
    if line > 2:  # a faint dark halo keeps the line visible on any background, but would dominate a thin line
        halo = np.zeros((height, width), np.uint8)
        for x0, y0, x1, y1 in corners.tolist():
            cv2.rectangle(halo, (x0, y0), (x1, y1), 1, line + 2)
        where = halo.astype(bool)
        out[where] = (out[where] * np.float32(1 - HALO_OPACITY) + 0.5).astype(np.uint8)
    for index in order:
        x0, y0, x1, y1 = corners[index].tolist()
        cv2.rectangle(out, (x0, y0), (x1, y1), colors[index], line)


def paint_map(
    out: np.ndarray, semantic: np.ndarray, shown: dict[int, Color], regions: np.ndarray, opacity: float, line: int
) -> None:
    """Fill each class of a map, and draw light lines between regions.

    Args:
        out: BGR uint8 ``[H, W, 3]``, changed in place.
        semantic: class index of each pixel ``[H, W]``.
        shown: color of each class that is drawn.
        regions: region number of each pixel ``[H, W]``: its class, or its segment.
        opacity: opacity of the colors, in [0, 1].
        line: width of the lines in pixels.
    """
    hidden = max(shown, default=-1) + 1
    colors, opacities = np.zeros((hidden + 1, 3), np.uint8), np.zeros(hidden + 1, np.uint8)
    for value, color in shown.items():
        colors[value], opacities[value] = color, 255
    index = np.where((semantic >= 0) & (semantic < hidden), semantic, hidden)
    border = np.zeros(regions.shape, np.uint8)
    border[:, 1:][regions[:, 1:] != regions[:, :-1]] = 255
    border[1:][regions[1:] != regions[:-1]] = 255
    if line > 2:
        border = cv2.dilate(border, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (line - 1, line - 1)))
    # colors are 0 where nothing is drawn, so that they can be blurred like the opacities
    sigma = max(0.7, line / 4)
    paint, cover, border = (cv2.GaussianBlur(a, (0, 0), sigma) for a in (colors[index], opacities[index], border))
    for top in range(0, len(out), STRIP):
        rows = slice(top, top + STRIP)
        pixels = out[rows].astype(np.float32)
        light = (SHADING / 128) * pixels.mean(axis=2, keepdims=True) + (1 - SHADING)
        pixels *= 1 - cover[rows, :, None] * np.float32(opacity / 255)
        pixels += paint[rows] * (light * np.float32(opacity))
        edge = border[rows, :, None] * np.float32(BORDER_OPACITY / 255)
        out[rows] = (pixels * (1 - edge) + 255 * edge + 0.5).clip(0, 255).astype(np.uint8)
