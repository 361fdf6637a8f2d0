"""Blocks of windows of similar length that the PyTorch backend processes together."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Block", "make_plan"]

# Longer windows are processed one by one, in place.
LONGEST = 512
# Tokens per block; its copies should fit into the caches.
BLOCK_TOKENS = 4096


def _class_lengths() -> list[int]:
    """The lengths that windows are padded to: at most a fifth of a window is padding, a tenth on average."""
    lengths = [1]
    while lengths[-1] < LONGEST:
        lengths.append(lengths[-1] + max(1, (1 << lengths[-1].bit_length()) // 8))
    return lengths


@dataclass(frozen=True)
class Block:
    """Windows padded to the same length.

    Attributes:
        token: int64 ``[windows, length]``; padding repeats the last token of the window.
        real: bool of the same shape, False for padding; None if there is none.
    """

    token: Tensor
    real: Tensor | None

    def sources(self) -> Tensor:
        return self.token.view(-1)

    def destinations(self, dump: int) -> Tensor:
        """Same as `sources`, but `dump` for padding."""
        return self.sources() if self.real is None else self.token.where(self.real, dump).view(-1)


def make_plan(offsets: Tensor) -> tuple[Iterator[Block], list[list[int]]]:
    """Blocks of windows, shortest first, and start and end of the long windows. Synchronizes with the device."""
    offsets = offsets.long()
    lengths, order = offsets.diff().sort(stable=True)
    starts = offsets[:-1][order]
    sizes, classes = lengths.tolist(), _class_lengths()
    bounds = [bisect_right(sizes, length) for length in (0, *classes)]
    long = torch.stack((starts, starts + lengths), 1)[bounds[-1] :].tolist()

    def blocks():
        for length, first, last in zip(classes, bounds[:-1], bounds[1:], strict=True):
            if first == last:
                continue
            position = torch.arange(length, device=offsets.device)
            chunk = max(1, BLOCK_TOKENS // length)
            padded = sizes[first] < length
            for start, count in zip(starts[first:last].split(chunk), lengths[first:last].split(chunk), strict=True):
                if padded:
                    inside = torch.minimum(position, count[:, None] - 1)
                    yield Block(start[:, None] + inside, position < count[:, None])
                else:
                    yield Block(start[:, None] + position, None)

    return blocks(), long
