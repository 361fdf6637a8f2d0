"""CARAFE upsampling: each output pixel is a weighted sum of an input neighborhood with predicted weights."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import MAX_ELEMENTS, operator, work_dtype

__all__ = ["carafe_backward", "carafe_forward", "carafe_naive_backward", "carafe_naive_forward"]


def _rows(features: Tensor, kernel_size: int) -> Iterator[slice]:
    """Return the number of rows per chunk; all neighborhoods need ``kernel_size ** 2`` times the memory of the map."""
    per_row = features.numel() // features.size(2) * kernel_size**2
    step = max(1, MAX_ELEMENTS // per_row)
    return (slice(i, min(i + step, features.size(2))) for i in range(0, features.size(2), step))


def _padded(features: Tensor, kernel_size: int, groups: int) -> Tensor:
    """Return zero-padded channels-last features ``[N, H+, W+, G, C/G]``."""
    padded = F.pad(features.to(work_dtype(features)), [kernel_size // 2] * 4)
    return padded.unflatten(1, (groups, -1)).permute(0, 3, 4, 1, 2).contiguous()


def _shifts(padded: Tensor, rows: slice, kernel_size: int) -> Iterator[Tensor]:
    """Yield views ``[N, h, W, G, C/G]`` of the given rows, shifted to each position in the neighborhood."""
    width = padded.size(2) - kernel_size + 1
    for i in range(kernel_size):
        for j in range(kernel_size):
            yield padded[:, rows.start + i : rows.stop + i, j : j + width]


def _by_pixel(upsampled: Tensor, groups: int, scale: int, rows: slice) -> Tensor:
    """Reshape rows of a map ``[N, G * X, H * s, W * s]`` to ``[N, h, W, G, s * s, X]``, one matrix per input pixel."""
    part = upsampled[:, :, rows.start * scale : rows.stop * scale].to(work_dtype(upsampled))
    part = part.unflatten(1, (groups, -1)).unflatten(3, (-1, scale)).unflatten(5, (-1, scale))
    return part.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5)


def _write_by_pixel(target: Tensor, values: Tensor, scale: int, rows: slice) -> None:
    """Inverse of `_by_pixel`: write ``[N, h, W, G, s * s, X]`` to the rows of ``[N, G * X, H * s, W * s]``."""
    part = values.unflatten(4, (scale, scale)).permute(0, 3, 6, 1, 4, 2, 5)
    part = part.flatten(5, 6).flatten(3, 4).flatten(1, 2)
    target[:, :, rows.start * scale : rows.stop * scale] = part.to(target)


@operator
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """CARAFE (Wang et al., 2019, eq. 4) with zero padding, written to `output`.

    Args:
        features: ``[N, C, H, W]``.
        masks: weights, ``[N, group_size * kernel_size ** 2, H * scale_factor, W * scale_factor]``.
        output: ``[N, C, H * scale_factor, W * scale_factor]``.
        kernel_size: side of the neighborhood, odd.
        group_size: number of channel groups; the channels of a group share their weights.
        scale_factor: upsampling factor, an integer.
    """
    padded = _padded(features, kernel_size, group_size)
    for rows in _rows(features, kernel_size):
        around = torch.stack(list(_shifts(padded, rows, kernel_size)), 4)
        mixture = _by_pixel(masks, group_size, scale_factor, rows).to(around.dtype)
        _write_by_pixel(output, mixture @ around, scale_factor, rows)


@operator
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of `carafe_naive_forward` to `bottom_grad` (features) and `mask_grad`."""
    padded = _padded(features, kernel_size, group_size)
    padded_grad = torch.zeros_like(padded)
    for rows in _rows(features, kernel_size):
        around = torch.stack(list(_shifts(padded, rows, kernel_size)), 4)
        mixture = _by_pixel(masks, group_size, scale_factor, rows).to(around.dtype)
        grad = _by_pixel(top_grad, group_size, scale_factor, rows).to(around.dtype)
        _write_by_pixel(mask_grad, grad @ around.mT, scale_factor, rows)
        around_grad = mixture.mT @ grad
        for shift, part in zip(_shifts(padded_grad, rows, kernel_size), around_grad.unbind(4), strict=True):
            shift += part
    reach = kernel_size // 2
    inner = padded_grad[:, reach : reach + features.size(2), reach : reach + features.size(3)]
    bottom_grad.copy_(inner.permute(0, 3, 4, 1, 2).flatten(1, 2))


@operator
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """`carafe_naive_forward` with the buffers of the compiled kernels.

    Args:
        rfeatures: same shape as features; receives a copy of them, which mmcv passes to `carafe_backward`.
        routput, rmasks: buffers of compiled kernels; not used.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


@operator
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of `carafe_forward` to `bottom_grad` and `mask_grad`; the other buffers are not used."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)
