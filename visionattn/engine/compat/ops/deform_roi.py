"""Deformable RoI pooling: RoIAlign with learned offsets of the bins."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .common import MAX_ELEMENTS, bilinear_taps, channels_last_rows, operator, sample_rows, work_dtype
from .roi import box_edges, finite_rois, sample_axis

__all__ = ["deform_roi_pool_backward", "deform_roi_pool_forward"]


def _pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """Compute the pooled features ``[R, C, *bins]``, differentiable in input and offset."""
    height, width = input.shape[2:]
    start_y, start_x, size_y, size_x = box_edges(rois, spatial_scale, aligned=True)
    ys, use_y, count_y = sample_axis(start_y, size_y, bins[0], sampling_ratio)
    xs, use_x, count_x = sample_axis(start_x, size_x, bins[1], sampling_ratio)
    y, x = ys[:, :, None, :, None], xs[:, None, :, None, :]
    if offset is not None:
        shift = gamma * offset * torch.stack((size_x, size_y), 1)[:, :, None, None]
        x = x + shift[:, 0, :, :, None, None]
        y = y + shift[:, 1, :, :, None, None]
    y, x = torch.broadcast_tensors(y, x)
    index, weight = bilinear_taps(y, x, height, width)
    share = (use_y[:, :, None] & use_x[:, None]) / (count_y * count_x).clamp(min=1)[:, None, None]
    weight = weight * share[:, None, None, :, :, None]
    index = index + (rois[:, 0].long() * (height * width))[:, None, None, None, None, None]
    return sample_rows(channels_last_rows(input), index.flatten(3), weight.flatten(3)).permute(0, 3, 1, 2)


def _parts(rois: Tensor, bins: tuple[int, int], spatial_scale: float, sampling_ratio: int) -> Iterator[slice]:
    """Return the number of boxes per chunk, which limits the memory for the samples."""
    if sampling_ratio > 0:
        samples = sampling_ratio**2 * bins[0] * bins[1]
    else:
        _, _, height, width = box_edges(rois, spatial_scale, aligned=True)
        samples = int((height + bins[0]).max() * (width + bins[1]).max())
    step = max(1, MAX_ELEMENTS // (32 * max(samples, 1)))
    return (slice(i, i + step) for i in range(0, len(rois), step))


@operator
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Deformable RoI pooling (Dai et al., 2017) with the samples of RoIAlign, written to `output`.

    Args:
        input: ``[N, C, H, W]``.
        rois: ``[R, 5]``, (batch index, x1, y1, x2, y2) in pixels of the image.
        offset: (x, y) in units of gamma times the box size, ``[R, 2, pooled_height, pooled_width]``; or empty.
        output: ``[R, C, pooled_height, pooled_width]``.
        pooled_height, pooled_width: number of bins along each axis.
        spatial_scale: pixels of the feature map per pixel of the image.
        sampling_ratio: samples per bin and axis; 0 for one per pixel, rounded up.
        gamma: factor on the offsets.
    """
    if not output.numel():
        return
    dtype, bins = work_dtype(input), (pooled_height, pooled_width)
    input, rois = input.to(dtype), finite_rois(rois, dtype)
    for part in _parts(rois, bins, spatial_scale, sampling_ratio):
        shift = offset[part].to(dtype) if offset.numel() else None
        output[part] = _pool(input, rois[part], shift, bins, spatial_scale, sampling_ratio, gamma).to(output)


@operator
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the gradients of `deform_roi_pool_forward` to `grad_input` and, if it is not empty, `grad_offset`.

    Samples on or outside of the border are constant with respect to the offset and do not contribute to its gradient.
    The compiled operator of mmcv uses the gradient at the nearest position inside.
    """
    if not grad_output.numel():
        grad_input.zero_()
        return
    dtype, bins = work_dtype(input), (pooled_height, pooled_width)
    rois, grad_output = finite_rois(rois, dtype), grad_output.to(dtype)
    leaf = input.detach().to(dtype).requires_grad_()
    total = torch.zeros_like(leaf)
    for part in _parts(rois, bins, spatial_scale, sampling_ratio):
        shift = offset[part].detach().to(dtype).requires_grad_() if offset.numel() else None
        with torch.enable_grad():
            pooled = _pool(leaf, rois[part], shift, bins, spatial_scale, sampling_ratio, gamma)
        leaves = (leaf,) if shift is None else (leaf, shift)
        grads = torch.autograd.grad(pooled, leaves, grad_output[part])
        total += grads[0]
        if shift is not None:
            grad_offset[part] = grads[1].to(grad_offset)
    grad_input.copy_(total)
