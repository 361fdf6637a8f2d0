"""Validation of the offsets of windows."""

from torch import Tensor

__all__ = ["check_offsets"]


def check_offsets(offsets: Tensor, tokens: int) -> None:
    """Raise `ValueError` unless the windows are consecutive and cover all tokens. Synchronizes with the device."""
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != tokens:
        raise ValueError(
            f"`offsets` must start with 0 and end with the number of tokens, {tokens}, got {first} and {last}"
        )
    if bool((offsets[1:] < offsets[:-1]).any()):
        place = int((offsets[1:] < offsets[:-1]).nonzero()[0])
        raise ValueError(
            f"`offsets` must not decrease, got {int(offsets[place])} followed by {int(offsets[place + 1])} at position "
            f"{place + 1}"
        )
