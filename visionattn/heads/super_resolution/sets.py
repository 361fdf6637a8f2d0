"""Image pairs of super-resolution data sets: folders of high-resolution images, with or without low-resolution ones.

Names of the low-resolution image of ``x.png`` at factor 4 that are recognized: ``xx4.png`` (DIV2K, Set5, Set14, B100,
Urban100), ``x_LRBI_x4.png`` (Manga109), and ``x.png``. Their folder may have subfolders ``X4`` or ``x4`` by factor.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from visionattn.errors import DataError
from visionattn.io.inputs import IMAGE_SUFFIXES, walk_files

__all__ = ["ImagePair", "find_pairs"]


@dataclass(frozen=True)
class ImagePair:
    """Files of one image.

    Attributes:
        name: stem of the high-resolution file.
        high: the high-resolution file.
        low: the low-resolution file; None if it is computed from the high-resolution image.
    """

    name: str
    high: Path
    low: Path | None = None


def find_pairs(high: str | Path, low: str | Path | None, scale: int) -> list[ImagePair]:
    """Return the pairs, sorted by path.

    Args:
        high: folder of the high-resolution images; subfolders are searched too.
        low: folder of the low-resolution images, or None.
        scale: the factor between them.

    Raises:
        DataError: a folder is missing or has no image, or an image has no partner.
    """
    high = Path(high)
    if not high.is_dir():
        raise DataError(f"{high}: folder of high-resolution images not found")
    files = list(walk_files(high, IMAGE_SUFFIXES))
    if not files:
        raise DataError(f"{high}: contains no images")
    if low is None:
        return [ImagePair(file.stem, file) for file in files]
    low = _folder(Path(low), scale)
    partners = {file.relative_to(low).with_suffix("").as_posix(): file for file in walk_files(low, IMAGE_SUFFIXES)}
    pairs = []
    for file in files:
        name = re.sub(rf"_HR_x{scale}$", "", file.relative_to(high).with_suffix("").as_posix())
        candidates = (f"{name}x{scale}", f"{name}_LRBI_x{scale}", name)
        found = next((partners[candidate] for candidate in candidates if candidate in partners), None)
        if found is None:
            raise DataError(f"{low}: has no low-resolution image of {file}; looked for {', '.join(candidates)}")
        pairs.append(ImagePair(file.stem, file, found))
    return pairs


def _folder(low: Path, scale: int) -> Path:
    if not low.is_dir():
        raise DataError(f"{low}: folder of low-resolution images not found")
    return next((low / name for name in (f"X{scale}", f"x{scale}") if (low / name).is_dir()), low)
