"""Random image regions for forgeries: boxes, ellipses, blobs and groups of superpixels."""

from collections.abc import Sequence

import numpy as np

from visionattn.errors import require

__all__ = ["REGION_SHAPES", "feathered", "random_region", "superpixels"]

REGION_SHAPES = ("box", "ellipse", "blob", "superpixel")


def random_region(
    rng: np.random.Generator,
    image: np.ndarray,
    area: tuple[float, float] = (0.02, 0.25),
    shapes: Sequence[str] = REGION_SHAPES,
    margin: int = 0,
) -> tuple[np.ndarray, str]:
    """Draw a random region of an image.

    Args:
        rng: random generator.
        image: uint8 ``[H, W, 3]``; superpixels follow its edges.
        area: minimum and maximum area as fractions of the image, drawn log-uniformly.
        shapes: names from `REGION_SHAPES` to choose from.
        margin: width of the border without region pixels, in pixels.

    Returns:
        The region, bool ``[H, W]``, and the name of its shape.

    Raises:
        ValueError: if a shape is unknown.
    """
    unknown = [s for s in shapes if s not in REGION_SHAPES]
    if unknown or not shapes:
        raise ValueError(f"`shapes` must be one or more of {', '.join(REGION_SHAPES)}, got {list(shapes)}")
    shape = str(shapes[rng.integers(len(shapes))])
    height, width = image.shape[:2]
    share = float(np.exp(rng.uniform(np.log(area[0]), np.log(area[1]))))
    mask = {"box": _box, "ellipse": _ellipse, "blob": _blob, "superpixel": _cells}[shape](rng, image, share)
    if margin:
        inside = np.zeros((height, width), bool)
        inside[margin : height - margin, margin : width - margin] = True
        mask &= inside
    return mask, shape


def _extent(rng: np.random.Generator, height: int, width: int, share: float, fill: float) -> tuple[float, float]:
    """Size of a bounding box whose shape covers the fraction ``fill`` of it and ``share`` of the image."""
    ratio = float(np.exp(rng.uniform(-0.7, 0.7)))
    pixels = share * height * width / fill
    h = float(np.clip((pixels * ratio) ** 0.5, 4, 0.9 * height))
    return h, float(np.clip(pixels / h, 4, 0.9 * width))


def _center(rng: np.random.Generator, height: int, width: int, h: float, w: float) -> tuple[float, float]:
    return rng.uniform(h / 2, height - h / 2), rng.uniform(w / 2, width - w / 2)


def _box(rng: np.random.Generator, image: np.ndarray, share: float) -> np.ndarray:
    height, width = image.shape[:2]
    h, w = _extent(rng, height, width, share, 1.0)
    y, x = _center(rng, height, width, h, w)
    mask = np.zeros((height, width), bool)
    mask[round(y - h / 2) : round(y + h / 2), round(x - w / 2) : round(x + w / 2)] = True
    return mask


def _ellipse(rng: np.random.Generator, image: np.ndarray, share: float) -> np.ndarray:
    cv2 = require("cv2")
    height, width = image.shape[:2]
    h, w = _extent(rng, height, width, share, 0.785)
    y, x = _center(rng, height, width, h, w)
    mask = np.zeros((height, width), np.uint8)
    axes = (max(2, round(w / 2)), max(2, round(h / 2)))
    cv2.ellipse(mask, (round(x), round(y)), axes, rng.uniform(0, 180), 0, 360, 1, -1)
    return mask.astype(bool)


def _blob(rng: np.random.Generator, image: np.ndarray, share: float) -> np.ndarray:
    """Polygon whose radius varies smoothly with the angle."""
    cv2 = require("cv2")
    height, width = image.shape[:2]
    h, w = _extent(rng, height, width, share, 0.7)
    y, x = _center(rng, height, width, h, w)
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(angle)
    for wave in range(2, 7):
        radius += rng.uniform(0, 0.8 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.25, None) / radius.max()
    points = np.stack([x + radius * np.cos(angle) * w / 1.8, y + radius * np.sin(angle) * h / 1.8], 1)
    mask = np.zeros((height, width), np.uint8)
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
    return mask.astype(bool)


def superpixels(image: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Superpixels by a watershed from a jittered grid, labels int32 ``[H, W]`` from 0.

    Args:
        image: uint8 ``[H, W, 3]``.
        count: approximate number of superpixels.
        rng: random generator.
    """
    cv2 = require("cv2")
    height, width = image.shape[:2]
    side = max(4.0, (height * width / max(1, count)) ** 0.5)
    rows, columns = max(1, round(height / side)), max(1, round(width / side))
    markers = np.zeros((height, width), np.int32)
    for index in range(rows * columns):
        y = int(np.clip((index // columns + rng.uniform(0.25, 0.75)) * height / rows, 0, height - 1))
        x = int(np.clip((index % columns + rng.uniform(0.25, 0.75)) * width / columns, 0, width - 1))
        markers[y, x] = index + 1
    smooth = np.ascontiguousarray(cv2.GaussianBlur(image, (0, 0), 2))
    cells = cv2.watershed(smooth, markers)
    # The watershed marks lines between cells with -1.
    grown = cv2.dilate(np.maximum(cells, 0).astype(np.float32), np.ones((3, 3), np.uint8))
    cells = np.where(cells > 0, cells, grown.astype(np.int32))
    return np.maximum(cells - 1, 0)


def _cells(rng: np.random.Generator, image: np.ndarray, share: float) -> np.ndarray:
    """Connected superpixels that cover about the fraction ``share`` of the image."""
    cv2 = require("cv2")
    cells = superpixels(image, max(16, round(4 / share)), rng)
    wanted = share * cells.size
    mask = cells == cells[rng.integers(cells.shape[0]), rng.integers(cells.shape[1])]
    while mask.sum() < 0.8 * wanted:
        around = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~mask
        neighbors = np.unique(cells[around])
        if not len(neighbors):
            break
        mask |= cells == neighbors[rng.integers(len(neighbors))]
    return mask


def feathered(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Alpha matte of a mask with soft edges of about the given width, float32 ``[H, W]``: 1 inside, 0 outside."""
    if pixels <= 0:
        return mask.astype(np.float32)
    cv2 = require("cv2")
    return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), pixels / 2)
