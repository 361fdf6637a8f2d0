"""Scratch memory that is reused between calls on a CPU.

Allocating a buffer of a few megabytes takes longer there than computing with it, because the operating system maps
pages one fault at a time and unmaps them when the buffer is freed. Each thread keeps its last buffers, up to a limit.
"""

import threading
from math import prod

import torch
from torch import Tensor

__all__ = ["Key", "Scratch", "release", "scratch"]

KEPT_BYTES = 1 << 25  # per buffer; larger ones are not kept
VIEWS = 1024
Key = tuple[str, tuple[int, ...], torch.dtype]  # name, shape, type
_local = threading.local()


class Scratch:
    """Uninitialized contiguous tensors by name. Tensors of one name and type may share memory, whatever their shape."""

    def __init__(self, device: torch.device, keep: bool):
        self.device, self.keep = device, keep
        self._flats: dict[tuple[str, torch.dtype], Tensor] = {}
        self._views: dict[Key, Tensor] = {}

    def take(self, key: Key) -> Tensor:
        """Return the tensor of this name, shape and type, with arbitrary content."""
        view = self._views.get(key)
        return self._make(key) if view is None else view

    def _make(self, key: Key) -> Tensor:
        name, shape, dtype = key
        numel = prod(shape)
        if not self.keep or numel * dtype.itemsize > KEPT_BYTES:
            return torch.empty(shape, dtype=dtype, device=self.device)
        with torch.inference_mode(False):  # it is reused outside the mode of this call
            flat = self._flats.get((name, dtype))
            if flat is None or flat.numel() < numel:
                flat = self._flats[name, dtype] = torch.empty(numel, dtype=dtype)
                self._views = {k: x for k, x in self._views.items() if (k[0], k[2]) != (name, dtype)}
            if len(self._views) >= VIEWS:
                self._views.clear()
            view = self._views[key] = flat[:numel].view(shape)
        return view


def scratch(device: torch.device) -> Scratch:
    """Scratch memory of this thread on a CPU.

    On other devices PyTorch caches memory itself, and tensors are newly allocated. They are also newly allocated if
    PyTorch fills uninitialized memory, which tests use to detect unwritten results.
    """
    fills = torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory
    if device.type != "cpu" or fills:
        return Scratch(device, keep=False)
    kept = getattr(_local, "scratch", None)
    if kept is None:
        kept = _local.scratch = Scratch(device, keep=True)
    return kept


def release() -> None:
    """Free the scratch memory of this thread."""
    _local.__dict__.clear()
