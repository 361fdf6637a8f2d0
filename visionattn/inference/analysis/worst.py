"""The worst images of a test, with truth and prediction side by side."""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionattn.errors import DataError
from visionattn.inference.analysis.blocks import text
from visionattn.inference.report import thumbnail
from visionattn.io.images import read_image

__all__ = ["WORST", "Example", "Worst", "pictures", "shrunk"]

WORST = 24
"""Number of images that are shown."""
SIDE = 480
"""Longer side of the pictures, in pixels."""


class Worst:
    """Keeps the items with the largest values, the earlier of equal ones.

    Args:
        limit: number of items.
    """

    def __init__(self, limit: int = WORST) -> None:
        self.limit, self._heap, self._count = limit, [], 0

    def offer(self, value: float, make: Callable[[], Any]) -> None:
        """Offer an item.

        Args:
            value: how bad it is; items of 0 or less are not kept.
            make: returns the item; only called if the item is kept for now.
        """
        self._count += 1
        entry = (value, -self._count)
        if value > 0 and (len(self._heap) < self.limit or entry > self._heap[0][:2]):
            push = heapq.heappush if len(self._heap) < self.limit else heapq.heapreplace
            push(self._heap, (*entry, make()))

    def items(self) -> list[Any]:
        """Return the items, the worst first."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


@dataclass(frozen=True)
class Example:
    """An image of the test data.

    Attributes:
        path: the image file.
        lines: text below the pictures.
        draw: returns the pictures of the truth and of the prediction, BGR uint8, for the image.
    """

    path: str
    lines: Sequence[str]
    draw: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def pictures(examples: Sequence[Example]) -> str:
    """Return a block with the pictures; an image that cannot be read is replaced by the reason."""
    if not examples:
        return "<p>No image has an error.</p>"
    return f'<div class="pairs">{"".join(map(_figure, examples))}</div>'


def _figure(example: Example) -> str:
    name = text(Path(example.path).name)
    try:
        drawn = example.draw(read_image(example.path))
        shown = "".join(
            f'<div><img alt="{kind} of {name}" src="{thumbnail(image, SIDE)}"><small>{kind}</small></div>'
            for kind, image in zip(("truth", "prediction"), drawn, strict=True)
        )
    except (DataError, ValueError) as error:  # ValueError: annotated masks of another size than the image
        shown = f"<small>{text(error)}</small>"
    lines = "".join(f"<small>{text(line)}</small>" for line in example.lines)
    caption = f'<figcaption title="{text(example.path)}">{name}{lines}</figcaption>'
    return f'<figure><div class="pair">{shown}</div>{caption}</figure>'


def shrunk(values: np.ndarray) -> np.ndarray:
    """Return a map of labels, subsampled so that its longer side is at most `SIDE`."""
    step = -(-max(values.shape) // SIDE)
    return values[step // 2 :: step, step // 2 :: step].copy()
