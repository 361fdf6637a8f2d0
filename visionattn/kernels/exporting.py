"""Arithmetic on sizes and padding for programs of `torch.export` that accept any size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["any_symbolic", "crop_end", "crop_pixels", "extend_to_multiple", "maximum", "pad_end"]

for _name in ("pad_end", "crop_end"):
    torch.library.define(f"visionattn::{_name}", "(Tensor x, SymInt[] size) -> Tensor")


@torch.library.impl("visionattn::pad_end", "CompositeExplicitAutograd")
def _pad(x, size):
    amounts = [0] * (2 * x.dim())
    for axis, (wanted, length) in enumerate(zip(size, x.shape[1:], strict=False), 1):
        amounts[2 * (x.dim() - 1 - axis) + 1] = wanted - length
    return torch.constant_pad_nd(x, amounts)


@torch.library.impl("visionattn::crop_end", "CompositeExplicitAutograd")
def _crop(x, size):
    return x[(slice(None), *(slice(length) for length in size))].clone(memory_format=torch.contiguous_format)


@torch.library.register_fake("visionattn::pad_end")
@torch.library.register_fake("visionattn::crop_end")
def _(x, size):
    return x.new_empty([x.shape[0], *size, *x.shape[1 + len(size) :]])


@torch.jit.unused
def pad_end(x: Tensor, size: list[int]) -> Tensor:
    """Zero-pad the axes after the first at their end.

    In contrast to ``torch.nn.functional.pad``, tracing does not specialize on whether anything is padded.

    Args:
        x: ``[B, ...]``.
        size: new lengths of the axes 1, 2, ..., not smaller than the present ones; further axes are kept.
    """
    return torch.ops.visionattn.pad_end(x, size)


@torch.jit.unused
def crop_end(x: Tensor, size: list[int]) -> Tensor:
    """Cut the axes 1, 2, ... to these lengths, and return a contiguous copy: the inverse of `pad_end`."""
    return torch.ops.visionattn.crop_end(x, size)


def crop_pixels(x: Tensor, size: Sequence[int]) -> Tensor:
    """Cut the last two axes of ``[B, ..., h, w]`` to (height, width)."""
    return crop_end(x, [*x.shape[1:-2], *size])


def extend_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of ``[B, C, H, W]`` until both sides are multiples of a number."""
    rest = [(side + multiple - 1) // multiple * multiple - side for side in x.shape[2:]]
    if any_symbolic(rest) or any(rest):
        x = F.pad(x, (0, rest[1], 0, rest[0]), mode="replicate")
    return x


def maximum(a: int, b: int) -> int:
    """Return the larger of two sizes; symbolic sizes are not specialized."""
    if torch.jit.is_scripting():
        return max(a, b)
    return torch.sym_max(a, b) if any_symbolic([a, b]) else max(a, b)


@torch.jit.unused
def any_symbolic(values: list[int]) -> bool:
    """Return True if one of the sizes is symbolic in a trace of `torch.export`; not for TorchScript."""
    return torch.compiler.is_exporting() and any(isinstance(value, torch.SymInt) for value in values)
