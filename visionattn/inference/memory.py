"""The available memory, and smaller batches when one does not fit."""

import contextlib
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from visionattn.errors import OutOfMemoryError

__all__ = ["available_memory", "in_smaller_batches", "is_out_of_memory"]

T = TypeVar("T")


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes of main memory that this process can still use on Linux; None on other systems.

    This is the smaller of the free memory of the machine and the rest below the limit of the control group. Linux
    grants more than that, and kills the process when it uses it.

    Args:
        root: the root folder, for tests.
    """
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        free.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for folder, limit, used in (
        ("sys/fs/cgroup", "memory.max", "memory.current"),
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no control group, or "max"
            rest = int((root / folder / limit).read_text()) - int((root / folder / used).read_text())
            stat = dict(line.split() for line in (root / folder / "memory.stat").read_text().splitlines())
            free.append(max(0, rest + int(stat.get("inactive_file", 0))))  # the page cache is freed on demand
    return min(free, default=None)


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
