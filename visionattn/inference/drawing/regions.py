"""Labels of the regions of a map, and a legend of the classes that no label names."""

from collections.abc import Sequence

import numpy as np

from visionattn.errors import require
from visionattn.inference.drawing.cards import Row, label_size
from visionattn.inference.drawing.colors import Color
from visionattn.inference.drawing.labels import Labels, sums

cv2 = require("cv2")

__all__ = ["label_regions"]

INSIDE = 0.75
"""Smallest fraction of a label that is inside its region."""
LARGEST_IN_REGION = 0.5
"""Largest fraction of its region that a label may cover."""
ROUNDS = 3
"""Labels are placed again when a legend has been added; those that do not fit then are added to the legend."""
SAMPLED = 512
"""Positions are found on a map with about this many pixels along the longer side; they need not be exact."""


def label_regions(
    labels: Labels,
    regions: np.ndarray,
    classes: tuple[str, ...],
    shown: dict[int, Color],
    owners: Sequence[int] | np.ndarray | None = None,
) -> None:
    """Label each region of a map with its class and its share of the image, far from its borders, if the label fits.

    The classes that no label names follow in a legend, with their shares.

    Args:
        labels: the labels of the image.
        regions: region number of each pixel ``[H, W]``.
        classes: class names by label.
        shown: color of each class that is labeled.
        owners: class of each region; None means that regions are classes.
    """
    owners = np.arange(len(classes)) if owners is None else np.asarray(owners)
    count = len(owners)
    regions = np.where((regions >= 0) & (regions < count), regions, count)
    shares = np.bincount(regions.ravel(), minlength=count + 1)[:count] / regions.size
    step = max(1, max(regions.shape) // SAMPLED)
    small = regions[::step, ::step]
    totals = np.bincount(owners, weights=shares, minlength=len(classes))
    sizes = np.bincount(small.ravel(), minlength=count + 1)
    # hiding a whole small region is worse than a part of a large one, but specks count little
    weights = cv2.integral((1 / sizes.clip(min=0.01 * small.size))[small])
    listed: set[int] = set()  # classes in the legend
    before = list(labels.placed)
    for _ in range(ROUNDS):
        labels.placed[:] = before
        if listed:
            order = sorted(listed, key=lambda owner: -totals[owner])
            rows = [Row(classes[owner], _percent(totals[owner]), shown[owner]) for owner in order]
            labels.add_legend(rows, lambda spots: sums(weights, spots / step))
        named = set()
        for region in np.argsort(-shares, kind="stable").tolist():
            owner = int(owners[region])
            if shares[region] and owner in shown and owner not in listed:
                text = labels.fit(classes[owner], labels.scale.font, 0.6), _percent(shares[region])
                if _label_region(labels, small == region, step, text, shown[owner]):
                    named.add(owner)
        missing = {owner for owner in np.flatnonzero(totals).tolist() if owner in shown} - named - listed
        if not missing:
            return
        listed |= missing


def _percent(share: float) -> str:
    return "<1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _label_region(labels: Labels, mask: np.ndarray, step: int, text: tuple[str, str], color: Color) -> bool:
    """Add a label where the most of it is inside a region, and there at the deepest place. Return False if none fits.

    Args:
        labels: labels that must not be overlapped, in an image that must not be left.
        mask: the region, every `step`-th pixel of the image, bool ``[h, w]``.
        step: distance of the pixels of `mask` in the image.
        text: name and value.
        color: color of the label.
    """
    size = label_size(*text, labels.scale.font)
    if not text[0] or size[0] * size[1] > LARGEST_IN_REGION * np.count_nonzero(mask) * step**2:
        return False
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = rows[0], columns[0]
    crop = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    width, height = (max(1, round(side / step)) for side in size)
    cover = cv2.boxFilter(crop, cv2.CV_32F, (width, height), normalize=True, borderType=cv2.BORDER_CONSTANT)
    # the upper left corner of a label whose middle is at each pixel
    xs = (np.arange(crop.shape[1]) + left - width // 2) * step
    ys = (np.arange(crop.shape[0]) + top - height // 2) * step
    cover[:, (xs < 0) | (xs + size[0] > labels.width)] = -1
    cover[(ys < 0) | (ys + size[1] > labels.height)] = -1
    for x0, y0, x1, y1 in labels.taken():
        cover[np.ix_((ys < y1) & (ys + size[1] > y0), (xs < x1) & (xs + size[0] > x0))] = -1
    if cover.max() < INSIDE:
        return False
    depth = cv2.distanceTransform(np.pad(crop, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]  # the image border is one of the region
    depth[cover < cover.max() - 0.02] = -1
    roomy = np.argwhere(depth >= 0.95 * depth.max())
    row, column = roomy[np.abs(roomy - roomy.mean(axis=0)).sum(axis=1).argmin()].tolist()
    labels.place(int(xs[column]), int(ys[row]), *text, color, rounded=True)
    return True
