"""The prediction of a super-resolution model for one image."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["EnlargedImage"]


@dataclass(frozen=True)
class EnlargedImage:
    """An enlarged image.

    Attributes:
        image: BGR uint8 ``[scale * H, scale * W, 3]``.
        scale: factor of the enlargement.
        classes: empty; every prediction has this field.
        seconds: inference time for this image in seconds, including preprocessing.
        path: the input file, or None.
    """

    image: np.ndarray = field(repr=False)
    scale: int
    classes: tuple[str, ...] = ()
    seconds: float = 0.0
    path: Path | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the enlarged image in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def rgb(self) -> np.ndarray:
        """The enlarged image as RGB, for Pillow and matplotlib."""
        return np.ascontiguousarray(self.image[..., ::-1])

    def draw(self, image: np.ndarray | None = None) -> np.ndarray:
        """Return the enlarged image; the argument is not used."""
        return self.image
