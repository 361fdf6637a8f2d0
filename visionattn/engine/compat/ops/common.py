"""Shared functions of the operators: numeric conventions and bilinear sampling as in RoIAlign."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "MAX_ELEMENTS",
    "add_at_positions",
    "bilinear_taps",
    "channels_last_rows",
    "first_maximum",
    "operator",
    "sample_rows",
    "work_dtype",
]

MAX_ELEMENTS = 1 << 24  # approximate number of elements in temporary tensors (64 MiB in float32)


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any tensor has it, else float32: half-precision types cannot represent coordinates."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def operator(function: Callable) -> Callable:
    """Decorate a function to run without autograd and autocast, like a compiled operator.

    mmcv wraps most operators in `torch.autograd.Function`, which disables gradients but not autocast. With autocast,
    matrix products would be computed in half precision.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        first = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def bilinear_taps(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Compute the four pixels around each position and their bilinear weights, differentiable in the position.

    The border is handled as in RoIAlign (Mask R-CNN): positions more than one pixel outside of the map sample zero,
    and other positions outside are clamped to the border.

    Args:
        y, x: positions in pixels with pixel centers at integers, both ``[...]``.
        height, width: size of the map.

    Returns:
        ``index``, int64 ``[..., 4]``, into the flattened map, and ``weight``, ``[..., 4]``, zero outside.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = y.where(inside, 0).clamp(0, height - 1)  # False for NaN
    x = x.where(inside, 0).clamp(0, width - 1)
    y0 = y.detach().floor()
    x0 = x.detach().floor()
    dy, dx = y - y0, x - x0
    y0, x0 = y0.long(), x0.long()
    y1 = (y0 + 1).clamp(max=height - 1)
    x1 = (x0 + 1).clamp(max=width - 1)
    index = torch.stack((y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1), -1)
    weight = torch.stack(((1 - dy) * (1 - dx), (1 - dy) * dx, dy * (1 - dx), dy * dx), -1)
    return index, weight * inside.unsqueeze(-1)


def channels_last_rows(maps: Tensor) -> Tensor:
    """Reshape ``[N, C, H, W]`` to ``[N * H * W, C]``, one row per pixel."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.size(1))


def sample_rows(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Compute weighted sums of rows without materializing the gathered rows; differentiable in rows and weights.

    Args:
        rows: float32 or float64 ``[R, C]``.
        index, weight: indices and weights of the rows in each sum, ``[..., K]``.

    Returns:
        ``[..., C]``.
    """
    k = index.size(-1)
    sums = F.embedding_bag(
        index.reshape(-1, k), rows, mode="sum", per_sample_weights=weight.to(rows.dtype).reshape(-1, k)
    )
    return sums.view(*index.shape[:-1], rows.size(1))


def add_at_positions(maps: Tensor, plane: Tensor, y: Tensor, x: Tensor, values: Tensor) -> None:
    """Transpose of bilinear sampling: add values to the four pixels around their positions.

    Args:
        maps: contiguous ``[..., H, W]``, changed in place. The leading dimensions are flattened to planes.
        plane, y, x, values: index of the plane, position in pixels, and value, all of the same shape.
    """
    height, width = maps.shape[-2:]
    index, weight = bilinear_taps(y, x, height, width)
    index = index + (plane * (height * width)).unsqueeze(-1)
    spread = weight * values.unsqueeze(-1)
    maps.view(-1).index_add_(0, index.flatten(), spread.to(maps.dtype).flatten())


def first_maximum(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the maximum over the samples of each bin, and its first index.

    Args:
        values: ``[..., S, C]``.
        valid: bool ``[..., S]``, broadcastable; True for samples that belong to the bin.

    Returns:
        The maximum ``[..., C]``, zero for empty bins; its index ``[..., C]``; and bool ``[..., 1]``, True for bins
        that are not empty.
    """
    which = values.masked_fill(~valid.unsqueeze(-1), -torch.inf).argmax(-2)
    best = values.gather(-2, which.unsqueeze(-2)).squeeze(-2)
    some = valid.any(-1, keepdim=True)
    return best * some, which, some
