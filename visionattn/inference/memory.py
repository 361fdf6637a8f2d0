"""Smaller batches when one does not fit into memory."""

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from visionattn.errors import OutOfMemoryError

__all__ = ["in_smaller_batches", "is_out_of_memory"]

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if PyTorch ran out of memory (CPU allocation failures are recognized by their message)."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate memory" in text


def in_smaller_batches(
    run: Callable[[Sequence[Any]], list[T]], batch: Sequence[Any], what: str, warn: Callable[[str], None]
) -> list[T]:
    """Return ``run(batch)``; if the batch does not fit into memory, run its halves one after the other, recursively.

    Args:
        run: returns one result per item.
        batch: the items.
        what: noun phrase for one item in messages, such as ``"an image of 640x480"``.
        warn: called with a message when a batch is split.

    Raises:
        OutOfMemoryError: not even a single item fits.
    """
    try:
        return run(batch)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0][:200]
    # outside of the handler: the traceback would keep the tensors of the failed pass
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) == 1:
        raise OutOfMemoryError(
            f"{what} does not fit into memory ({reason}); set `tile` for large images, or use another `device`"
        )
    half = len(batch) // 2
    warn(f"a batch of {len(batch)} ({what} each) does not fit into memory; continuing with batches of {half}")
    parts = [in_smaller_batches(run, part, what, warn) for part in (batch[:half], batch[half:])]
    return parts[0] + parts[1]
