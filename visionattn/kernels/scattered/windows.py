"""Windows of tokens that lie one behind the other: which offsets are legal."""

from torch import Tensor

__all__ = ["check_offsets"]


def check_offsets(offsets: Tensor, tokens: int) -> None:
    """Raise ValueError unless the windows follow each other and hold all tokens. Reads the offsets' values."""
    first, last = int(offsets[0]), int(offsets[-1])
    if first != 0 or last != tokens:
        raise ValueError(
            f"offsets begins with {first} and ends with {last}; it must begin with 0 and end with the number of "
            f"tokens, which is {tokens}"
        )
    if bool((offsets[1:] < offsets[:-1]).any()):
        place = int((offsets[1:] < offsets[:-1]).nonzero()[0])
        raise ValueError(
            f"offsets falls from {int(offsets[place])} to {int(offsets[place + 1])} at position {place + 1}; each "
            "value must be at least as large as the one before"
        )
