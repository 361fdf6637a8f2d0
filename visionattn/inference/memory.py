"""What to do when the memory does not hold a batch: smaller ones, down to one picture."""

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from visionattn.errors import OutOfMemoryError

__all__ = ["in_smaller_batches", "lacks_memory"]

T = TypeVar("T")


def lacks_memory(error: BaseException) -> bool:
    """Whether PyTorch failed to allocate: on a GPU that has a class of its own, on a CPU only words."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in text or "can't allocate memory" in text


def in_smaller_batches(
    run: Callable[[Sequence[Any]], list[T]], batch: Sequence[Any], what: str, warn: Callable[[str], None]
) -> list[T]:
    """``run(batch)``, or where the memory does not hold it, its halves one after the other, and so on.

    Args:
        run: gives one result for each item.
        batch: the items.
        what: name of one item in messages, such as ``"a picture of 640x480"``.
        warn: told when a batch is divided.

    Raises:
        OutOfMemoryError: the memory does not hold a single item.
    """
    try:
        return run(batch)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        reason = str(error).splitlines()[0][:200]
    # outside of the handler: the traceback would keep the tensors of the failed pass
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) == 1:
        raise OutOfMemoryError(
            f"the memory does not hold {what} ({reason}); use --tile for large images, or another --device"
        )
    half = len(batch) // 2
    warn(f"the memory does not hold {len(batch)} times {what}; going on with {half} at a time")
    parts = [in_smaller_batches(run, part, what, warn) for part in (batch[:half], batch[half:])]
    return parts[0] + parts[1]
