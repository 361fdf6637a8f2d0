"""Which windows the portable backend computes together: those of about one length, a block of them at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Block", "make_plan"]

# Longer windows keep the cores busy one by one, and are read in place.
LONGEST = 512
# Tokens of a block: its copies should stay in the caches of the cores.
BLOCK_TOKENS = 4096


def _class_lengths(longest: int) -> Tensor:
    """The lengths that windows are padded to: at most a fifth of a window is padding, and in the mean a tenth."""
    lengths = [1]
    while lengths[-1] < longest:
        lengths.append(lengths[-1] + max(1, (1 << lengths[-1].bit_length()) // 8))
    return torch.tensor(lengths)


@dataclass
class Block:
    """Windows of one class.

    Attributes:
        length: tokens that each is padded to.
        token: int64 ``[windows, 1, length]``; in place of padding a window's last token.
        real: bool of the same shape, False for padding; None if there is none.
        heads: int64 ``[1, heads, 1]``, counting.
        tokens: the number of tokens of all windows.
    """

    length: int
    token: Tensor
    real: Tensor | None
    heads: Tensor
    tokens: int
    _rows: dict[int, Tensor] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """Windows times heads."""
        return self.token.shape[0] * self.heads.numel()

    def rows(self, pitch: int) -> Tensor:
        """Where the tokens are in a matrix with ``pitch`` rows for each, head after head: ``[items * length]``."""
        if pitch not in self._rows:
            self._rows[pitch] = (self.token * pitch + self.heads).view(-1)
        return self._rows[pitch]

    def destinations(self) -> Tensor:
        """Rows of a result with one more token, which takes what is computed for padding."""
        heads = self.heads.numel()
        if self.real is None:
            return self.rows(heads)
        return (self.token.where(self.real, self.tokens) * heads + self.heads).view(-1)


def make_plan(offsets: Tensor, tokens: int, heads: int) -> tuple[Iterator[Block], list[tuple[int, int]]]:
    """Blocks of windows that are gathered, and begin and end of those that are long. Waits for the offsets' values."""
    classes = _class_lengths(LONGEST)
    offsets = offsets.long()
    lengths = offsets.diff()
    order = lengths.argsort(stable=True)
    starts, lengths = offsets[:-1][order], lengths[order]
    bounds = torch.searchsorted(lengths, torch.cat((classes.new_zeros(1), classes)).to(lengths), right=True).tolist()
    long = torch.stack((starts[bounds[-1] :], starts[bounds[-1] :] + lengths[bounds[-1] :]), 1).tolist()
    counting = torch.arange(heads, device=offsets.device)[None, :, None]

    def blocks():
        for length, first, last in zip(classes.tolist(), bounds[:-1], bounds[1:], strict=True):
            if first == last:
                continue
            position = torch.arange(length, device=offsets.device)
            chunk = max(1, BLOCK_TOKENS // length)
            padded = int(lengths[first]) < length
            for begin in range(first, last, chunk):
                end = min(begin + chunk, last)
                start, count = starts[begin:end, None, None], lengths[begin:end, None, None]
                if padded:
                    yield Block(length, start + torch.minimum(position, count - 1), position < count, counting, tokens)
                else:
                    yield Block(length, start + position, None, counting, tokens)

    return blocks(), [tuple(pair) for pair in long]
