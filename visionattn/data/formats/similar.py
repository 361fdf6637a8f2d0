"""Find near-duplicates of images by perceptual hashes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from visionattn.errors import DataError
from visionattn.io.console import count_of, track
from visionattn.io.images import read_image

__all__ = ["Fingerprints", "TooFewImagesError", "choose", "fingerprints", "groups", "similar_pairs"]

HASH_BITS = 6
"""Largest number of different bits, of 64, between near-duplicates."""
GRAY_LEVELS = 6.0
"""Largest mean difference of their thumbnails; hashes of images without structure are equal by chance."""
BLOCK = 1024


class TooFewImagesError(DataError):
    """There are too few different images to set some aside."""


class Fingerprints:
    """Hashes of images.

    Attributes:
        hashes: uint64 ``[N]``, the difference hash: bit i tells whether a pixel of a 9 x 8 thumbnail is darker than its
            right neighbor.
        thumbnails: float32 ``[N, 256]``, gray thumbnails of 16 x 16 pixels.
        readable: bool ``[N]``.
    """

    def __init__(self, hashes: np.ndarray, thumbnails: np.ndarray, readable: np.ndarray) -> None:
        self.hashes, self.thumbnails, self.readable = hashes, thumbnails, readable


def fingerprints(paths: Sequence[Path]) -> Fingerprints:
    """Decode images and return their hashes."""
    with ThreadPoolExecutor(4) as pool:
        found = list(track(pool.map(_one, paths), "comparing images", len(paths)))
    return Fingerprints(
        np.array([hash_ for hash_, _, _ in found], np.uint64),
        np.array([small for _, small, _ in found], np.float32).reshape(-1, 256),
        np.array([ok for _, _, ok in found], bool),
    )


def _one(path: Path) -> tuple[int, np.ndarray, bool]:
    import cv2

    try:
        gray = cv2.cvtColor(read_image(path), cv2.COLOR_BGR2GRAY)
    except DataError:
        return 0, np.zeros(256, np.float32), False
    small = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    bits = (small[:, :-1] < small[:, 1:]).ravel()
    thumbnail = cv2.resize(gray, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32)
    return int.from_bytes(np.packbits(bits).tobytes(), "big"), thumbnail.ravel(), True


def similar_pairs(prints: Fingerprints) -> list[tuple[int, int]]:
    """Return the pairs i < j of near-duplicates: similar hashes and similar thumbnails."""
    pairs: list[tuple[int, int]] = []
    count = len(prints.hashes)
    for start in range(0, count, BLOCK):
        rows = prints.hashes[start : start + BLOCK]
        for other in range(start, count, BLOCK):
            differ = rows[:, None] ^ prints.hashes[None, other : other + BLOCK]
            bits = np.unpackbits(np.ascontiguousarray(differ).view(np.uint8).reshape(*differ.shape, 8), axis=-1)
            for row, column in np.argwhere(bits.sum(-1, dtype=np.uint8) <= HASH_BITS):
                i, j = start + int(row), other + int(column)
                if i < j and prints.readable[i] and prints.readable[j] and _close(prints.thumbnails[[i, j]]):
                    pairs.append((i, j))
    return pairs


def _close(thumbnails: np.ndarray) -> bool:
    return float(np.abs(thumbnails[0] - thumbnails[1]).mean()) <= GRAY_LEVELS


def groups(prints: Fingerprints) -> list[list[int]]:
    """Return groups of images that are connected by near-duplicates, in the order of their first images."""
    parent = list(range(len(prints.hashes)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in similar_pairs(prints):
        low, high = sorted((find(i), find(j)))
        parent[high] = low
    found: dict[int, list[int]] = {}
    for i in range(len(parent)):
        found.setdefault(find(i), []).append(i)
    return list(found.values())


def choose(paths: Sequence[Path], fraction: float, seed: int, name: str) -> list[int]:
    """Draw whole groups of near-duplicates until a fraction of the images is reached.

    Args:
        paths: the images; files that do not exist are similar to no other.
        fraction: in (0, 1).
        seed: of the random order of the groups.
        name: name of the data in the error message.

    Returns:
        Indices of the images drawn, sorted.

    Raises:
        TooFewImagesError: there are too few groups.
    """
    parts = groups(fingerprints(paths))
    wanted, chosen = max(1, round(fraction * len(paths))), []
    for number in np.random.default_rng(seed).permutation(len(parts)):
        if len(chosen) + len(parts[number]) <= wanted:
            chosen += parts[number]
    if not chosen or len(chosen) == len(paths):
        raise TooFewImagesError(
            f"{name}: {count_of(len(paths), 'training image')} in {count_of(len(parts), 'group')} of near-duplicates "
            "cannot be split into train and val; add validation images"
        )
    return sorted(chosen)
