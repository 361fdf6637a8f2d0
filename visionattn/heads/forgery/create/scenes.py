"""Forgeries of parts of a scene, such as sky or ground, in place of objects.

BR-Gen (arXiv 2504.11922) forges "stuff" and "background" regions with generative inpainting in three steps: perception
of a region, creation of new content, and evaluation of the result. Here each step is done with OpenCV, without a model:
regions are grouped by appearance, and the content has the low frequencies of the surroundings and the texture of other
places of the image, as it looks after the decoder of a generative model.
"""

import numpy as np

from visionattn.errors import require
from visionattn.heads.forgery.create.regions import superpixels

__all__ = ["SCENE_SHAPES", "new_content", "scene_region", "seam"]

SCENE_SHAPES = ("stuff", "background")
CELLS = 120
"""Approximate number of superpixels of an image."""
REDUCTION = 8
"""Factor of the resolution at which content is inpainted, that of the latent images of diffusion models."""


def scene_region(rng: np.random.Generator, image: np.ndarray, share: float, shape: str) -> np.ndarray:
    """Return a region of a scene, bool ``[H, W]``.

    - ``"stuff"``: connected superpixels that look like a random one, in order of similarity.
    - ``"background"``: superpixels connected to the border of the image, beginning with those that look most like the
      border, as in saliency detection with a boundary prior.

    Args:
        rng: random generator.
        image: uint8 ``[H, W, 3]``.
        share: area as a fraction of the image; at least one superpixel is returned.
        shape: one of `SCENE_SHAPES`.
    """
    cells = superpixels(image, CELLS, rng)
    names, cells = np.unique(cells, return_inverse=True)
    cells = cells.reshape(image.shape[:2])
    sizes = np.bincount(cells.ravel(), minlength=len(names))
    looks = _appearance(image, cells, sizes)
    neighbors = _adjacency(cells, len(names))
    edge = np.unique(np.concatenate([cells[0], cells[-1], cells[:, 0], cells[:, -1]]))
    if shape == "stuff":
        start = int(cells[rng.integers(cells.shape[0]), rng.integers(cells.shape[1])])
        distance = np.linalg.norm(looks - looks[start], axis=1)
    else:
        distance = np.sort(np.linalg.norm(looks[:, None] - looks[None, edge], axis=2), axis=1)
        distance = distance[:, : max(1, len(edge) // 4)].mean(1)  # to the quarter of the border that is most similar
        start = int(edge[distance[edge].argmin()])
    chosen = np.zeros(len(names), bool)
    chosen[start] = True
    while sizes[chosen].sum() < 0.8 * share * cells.size:
        around = neighbors[chosen].any(0) & ~chosen
        if shape == "background":
            around[edge] |= ~chosen[edge]
        if not around.any():
            break
        candidates = np.flatnonzero(around)
        chosen[candidates[distance[candidates].argmin()]] = True
    return chosen[cells]


def _appearance(image: np.ndarray, cells: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return mean color (CIELAB) and local contrast of the superpixels, ``[cells, 4]``."""
    cv2 = require("cv2")
    lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB).astype(np.float32)
    light = lab[..., 0]
    contrast = np.abs(light - cv2.GaussianBlur(light, (0, 0), 3))
    values = [lab[..., 0], lab[..., 1], lab[..., 2], 4 * contrast]
    sums = [np.bincount(cells.ravel(), value.ravel(), len(sizes)) for value in values]
    return np.stack(sums, 1) / sizes[:, None]


def _adjacency(cells: np.ndarray, count: int) -> np.ndarray:
    """Return which superpixels touch, bool ``[cells, cells]``."""
    found = np.zeros((count, count), bool)
    for one, other in ((cells[1:], cells[:-1]), (cells[:, 1:], cells[:, :-1])):
        found[one, other] = found[other, one] = True
    return found


def new_content(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image with a region filled by new content, uint8 ``[H, W, 3]``.

    The image is inpainted at an eighth of its resolution and enlarged. The texture is that of another place of the
    image, at most as strong as around the region, and weak periodic noise is that of a decoder.

    Args:
        rng: random generator.
        image: uint8 ``[H, W, 3]``.
        mask: bool ``[H, W]``; neither empty nor the whole image.
    """
    cv2 = require("cv2")
    height, width = mask.shape
    size = (max(4, width // REDUCTION), max(4, height // REDUCTION))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    hole = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0).astype(np.uint8)
    if hole.all():
        hole = (cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.99).astype(np.uint8)
    coarse = cv2.inpaint(small, hole, 3, cv2.INPAINT_TELEA)
    coarse = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    detail = image.astype(np.float32) - cv2.GaussianBlur(image, (0, 0), REDUCTION / 2).astype(np.float32)
    ring = cv2.dilate(mask.astype(np.uint8), np.ones((17, 17), np.uint8)).astype(bool) & ~mask
    ring = ring if ring.any() else ~mask
    contrast = float(detail[ring].std())
    borrowed = _shifted(rng, detail, mask, contrast)
    gain = np.clip((contrast + 0.5) / (borrowed[mask].std() + 0.5), 0.1, 1.2)
    rows, columns = np.mgrid[:height, :width]
    period = int(rng.choice((2, 4)))
    waves = np.cos(2 * np.pi * rows / period + rng.uniform(0, 6)) * np.cos(2 * np.pi * columns / period)
    made = coarse + gain * borrowed + (rng.uniform(0.3, 1.2) * waves)[..., None]
    made = np.clip(np.rint(made), 0, 255).astype(np.uint8)
    return np.where(mask[..., None], made, image)


def _shifted(rng: np.random.Generator, detail: np.ndarray, mask: np.ndarray, contrast: float) -> np.ndarray:
    """Return the detail of another place: of twelve random shifts, the one with the most similar contrast."""
    height, width = mask.shape
    best, least = detail, np.inf
    for _ in range(12):
        shift = (int(rng.integers(height // 8, height)), int(rng.integers(width // 8, width)))
        moved = np.roll(detail, shift, (0, 1))
        difference = abs(float(moved[mask].std()) - contrast)
        if difference < least:
            best, least = moved, difference
    return best


def seam(image: np.ndarray, changed: np.ndarray, mask: np.ndarray) -> float:
    """Return the contrast along the border of a forged region, relative to that of the original image there.

    Values far above 1 are visible edges.

    Args:
        image: the original, uint8 ``[H, W, 3]``.
        changed: the forgery.
        mask: bool ``[H, W]``.
    """
    inside = mask.astype(np.int8)
    found = []
    for picture in (image, changed):
        values = picture.astype(np.float32).mean(2)
        steps = [np.abs(np.diff(values, axis=axis))[np.diff(inside, axis=axis) != 0] for axis in (0, 1)]
        found.append(float(np.concatenate(steps).mean()) if sum(map(len, steps)) else 0.0)
    return (found[1] + 1) / (found[0] + 1)
