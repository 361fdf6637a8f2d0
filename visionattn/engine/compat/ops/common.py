"""What the operators share: numeric conventions and bilinear sampling with RoIAlign's border rule."""

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

MAX_ELEMENTS = 1 << 24  # temporaries are cut into pieces of about this many numbers (64 MiB in float32)


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 if any argument has it, else float32 (half types lose coordinates)."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def operator(function: Callable) -> Callable:
    """Run `function` as a compiled operator would: outside autograd and outside autocast.

    mmcv wraps most operators in `torch.autograd.Function`, which turns gradients off but leaves autocast on;
    autocast would run the matrix products inside in half precision.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        first = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def bilinear_taps(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each position and their weights, differentiable in the position.

    The border rule is that of RoIAlign (Mask R-CNN): a position more than one pixel outside counts as zero,
    one closer than that takes the value of the border.

    Args:
        y, x: positions in pixels, pixel centres at integers; any common shape ``[...]``.
        height, width: size of the map.

    Returns:
        ``index [..., 4]``, int64, into the flattened map, and ``weight [..., 4]``, zero for those outside.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y = y.where(inside, 0).clamp(0, height - 1)  # NaN is not inside
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
    """``[N, C, H, W]`` to ``[N * H * W, C]``: one row a pixel, for gathering all its channels at once."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.size(1))


def sample_rows(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows, without gathering them first.

    Args:
        rows: ``[R, C]``, float32 or float64.
        index, weight: ``[..., K]``, which rows to add and how much of each. All differentiable but the index.

    Returns:
        ``[..., C]``.
    """
    k = index.size(-1)
    sums = F.embedding_bag(
        index.reshape(-1, k), rows, mode="sum", per_sample_weights=weight.to(rows.dtype).reshape(-1, k)
    )
    return sums.view(*index.shape[:-1], rows.size(1))


def add_at_positions(maps: Tensor, plane: Tensor, y: Tensor, x: Tensor, values: Tensor) -> None:
    """The transpose of bilinear sampling: spread `values` over the four pixels around their positions.

    Args:
        maps: ``[..., H, W]``, contiguous, added to in place; its leading axes count as one of planes.
        plane, y, x, values: common shape; plane number, position in pixels, what to add.
    """
    height, width = maps.shape[-2:]
    index, weight = bilinear_taps(y, x, height, width)
    index = index + (plane * (height * width)).unsqueeze(-1)
    spread = weight * values.unsqueeze(-1)
    maps.view(-1).index_add_(0, index.flatten(), spread.to(maps.dtype).flatten())


def first_maximum(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maximum over the samples of each bin, the first of equals.

    Args:
        values: ``[..., S, C]``.
        valid: ``[..., S]``, broadcastable: which samples belong to the bin.

    Returns:
        The maximum ``[..., C]``, zero for bins without samples; which sample it was ``[..., C]``; whether the
        bin has any sample ``[..., 1]``.
    """
    which = values.masked_fill(~valid.unsqueeze(-1), -torch.inf).argmax(-2)
    best = values.gather(-2, which.unsqueeze(-2)).squeeze(-2)
    some = valid.any(-1, keepdim=True)
    return best * some, which, some
