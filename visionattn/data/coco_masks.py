"""What a COCO ``segmentation`` must look like: a list of polygons, or an RLE of the image's size."""

import math
from typing import Any

import numpy as np

__all__ = ["rle_runs", "segmentation_fault"]

LARGEST = 2**32 - 1


def segmentation_fault(segmentation: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a polygon list or RLE for an image of `(width, height)`, or None."""
    if isinstance(segmentation, list):
        far = 2 * max(size)
        for polygon in segmentation:
            if not isinstance(polygon, list):
                return "is not a list of polygons [[x1, y1, x2, y2, ...], ...]"
            if len(polygon) < 6 or len(polygon) % 2:
                return f"has a polygon of {len(polygon)} numbers; it needs three points or more, x and y each"
            try:
                if not math.isfinite(math.fsum(polygon)):
                    return "has a polygon with a value that is not finite"
                if max(polygon) > far or min(polygon) < -far:  # of what draws it, some count every row and column
                    return f"has a polygon that reaches more than {far} pixels from the corner of its image"
            except (TypeError, ValueError, OverflowError):
                return "has a polygon with a value that is not a finite number"
        return None
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        return "is neither a list of polygons nor an RLE with size and counts"
    if segmentation["size"] != [size[1], size[0]]:
        return f"is an RLE of size {segmentation['size']!r:.80}, but the image is [{size[1]}, {size[0]}]"
    pixels = size[0] * size[1]
    if pixels > LARGEST:
        return f"is an RLE of {pixels} pixels, more than its 32-bit run lengths tell"
    try:
        runs = rle_runs(segmentation["counts"])
    except (AttributeError, TypeError, ValueError, OverflowError):
        return "has RLE counts that cannot be read"
    # a run beyond the mask could wrap around in the sum, or in pycocotools' 32 bits
    if (runs < 0).any() or (runs > pixels).any() or int(runs.sum()) != pixels:
        return f"has RLE counts that do not add up to {size[0]}x{size[1]} pixels"
    return None


def rle_runs(counts: str | list) -> np.ndarray:
    """Run lengths of an RLE, `[n]` int64, from a list or from COCO's compressed text.

    The text has 5 bits of a signed number in each character (bit 5: more follow), and from the fourth number
    on the difference to the number two before. pycocotools does not check it before it fills the mask.
    """
    if isinstance(counts, list):
        if any(isinstance(count, bool) or not isinstance(count, int) for count in counts):
            raise TypeError("counts are whole numbers")
        return np.array(counts, dtype=np.int64)
    chars = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not chars.size or (chars < 0).any() or (chars > 63).any() or chars[-1] & 32:
        raise ValueError("not RLE text")
    starts = np.concatenate([[0], np.flatnonzero((chars & 32) == 0)[:-1] + 1])
    lengths = np.diff(np.append(starts, chars.size))
    if lengths.max() > 7:
        raise ValueError("a run length does not fit 32 bits")
    place = 5 * (np.arange(chars.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((chars & 31) << place, starts)
    negative = (chars[starts + lengths - 1] & 16) != 0
    runs = runs - np.where(negative, np.int64(1) << (5 * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
