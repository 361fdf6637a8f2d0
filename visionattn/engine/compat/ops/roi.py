"""RoIAlign and RoIPool: pool the features in boxes to a fixed size."""

import torch
import torchvision  # noqa: F401  registers the operators used below
from torch import Tensor

from .common import (
    MAX_ELEMENTS,
    add_at_positions,
    bilinear_taps,
    channels_last_rows,
    first_maximum,
    operator,
    sample_rows,
    work_dtype,
)

__all__ = ["roi_align_backward", "roi_align_forward", "roi_pool_backward", "roi_pool_forward"]

MAX_POOL = 0  # pool_mode; 1 is the average
NOWHERE = -2.0  # position of the maximum in empty bins: outside of any map, so that it receives no gradient


def finite_rois(rois: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert boxes ``[R, 5]`` to `dtype`, and replace NaN or infinite boxes by boxes outside of any map.

    Diverged models predict such boxes, for which the CPU kernel of torchvision reads out of bounds. They pool to 0.
    """
    rois = rois.to(dtype)
    outside = rois.new_tensor([0, -1e6, -1e6, -1e6, -1e6])
    return torch.where(rois.isfinite().all(1, keepdim=True), rois, outside)


def sample_axis(start: Tensor, size: Tensor, bins: int, sampling_ratio: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the sample positions of RoIAlign along one axis.

    Args:
        start, size: start and size of the boxes in pixels of the feature map, ``[R]``.
        bins: number of bins along the axis.
        sampling_ratio: samples per bin; 0 for ``ceil(size / bins)``, which depends on the box.

    Returns:
        The positions ``[R, bins, S]``; bool ``[R, S]``, True for the samples that the box uses; and their number
        ``[R]``.
    """
    bin_size = size / bins
    count = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil().clamp(min=0)
    most = int(count.max()) if len(count) else 0
    sample = torch.arange(max(most, 1), device=start.device, dtype=start.dtype)
    step = bin_size / count.clamp(min=1)
    first = start[:, None] + torch.arange(bins, device=start.device, dtype=start.dtype) * bin_size[:, None]
    positions = first[:, :, None] + ((sample + 0.5) * step[:, None])[:, None]
    return positions, sample < count[:, None], count


def box_edges(rois: Tensor, spatial_scale: float, aligned: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return start and size of boxes ``[R, 5]`` on the feature map: (y, x, height, width), each ``[R]``."""
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0)).unbind(1)
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = height.clamp(min=1), width.clamp(min=1)
    return y1, x1, height, width


def _max_align(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> None:
    channels, height, width = input.shape[1:]
    bins_h, bins_w = output.shape[2:]
    start_y, start_x, size_y, size_x = box_edges(rois, spatial_scale, aligned)
    ys, use_y, _ = sample_axis(start_y, size_y, bins_h, sampling_ratio)
    xs, use_x, _ = sample_axis(start_x, size_x, bins_w, sampling_ratio)
    rows, batch = channels_last_rows(input), rois[:, 0].long()
    per_box = bins_h * bins_w * ys.size(2) * xs.size(2) * channels
    for part in torch.arange(len(rois), device=rois.device).split(max(1, MAX_ELEMENTS // per_box)):
        shape = (len(part), bins_h, bins_w, ys.size(2), xs.size(2))
        y = ys[part][:, :, None, :, None].expand(shape).flatten(3)
        x = xs[part][:, None, :, None, :].expand(shape).flatten(3)
        use = (use_y[part][:, :, None] & use_x[part][:, None]).flatten(1)[:, None, None]
        index, weight = bilinear_taps(y, x, height, width)
        index = index + (batch[part] * (height * width))[:, None, None, None, None]
        best, which, some = first_maximum(sample_rows(rows, index, weight), use)
        output[part] = best.permute(0, 3, 1, 2).to(output)
        for target, position in ((argmax_y, y), (argmax_x, x)):
            at = torch.where(some, position.gather(3, which), NOWHERE)
            target[part] = at.permute(0, 3, 1, 2).to(target)


@operator
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al., 2017): write the average or maximum of the bilinear samples in each bin to `output`.

    Args:
        input: ``[N, C, H, W]``.
        rois: ``[R, 5]``, (batch index, x1, y1, x2, y2) in pixels of the image.
        output: ``[R, C, aligned_height, aligned_width]``.
        argmax_y, argmax_x: same shape as output; receive the position of the maximum. Not used for the average.
        aligned_height, aligned_width: number of bins along each axis.
        spatial_scale: pixels of the feature map per pixel of the image.
        sampling_ratio: samples per bin and axis; 0 for one per pixel, rounded up.
        pool_mode: 0 for the maximum, 1 for the average. Bins without samples are 0.
        aligned: shift boxes by half a pixel, for pixel centers at integers; if False, boxes have at least one pixel.
    """
    if not output.numel():
        return
    dtype = work_dtype(input)
    input, rois = input.to(dtype), finite_rois(rois, dtype)
    if pool_mode == MAX_POOL:
        _max_align(input, rois, output, argmax_y, argmax_x, spatial_scale, sampling_ratio, aligned)
        return
    output.copy_(
        torch.ops.torchvision.roi_align(
            input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def _axis_weights(start: Tensor, size: Tensor, bins: int, length: int) -> tuple[Tensor, list[int], list[int]]:
    """Compute the weight of each pixel along one axis in each bin of the boxes.

    Returns:
        The weights ``[R, bins, E]`` of E pixels starting at the first pixel of each box; the index of the first pixel
        ``[R]``; and the number of pixels within the map ``[R]``.
    """
    positions, use, count = sample_axis(start, size, bins, 0)
    inside = (positions >= -1) & (positions <= length) & use[:, None]
    low = positions.floor().clamp(0, length - 1)
    high = (low + 1).clamp(max=length - 1)
    part = torch.where(high > low, positions.clamp(min=0) - low, 0)
    share = inside / count.clamp(min=1)[:, None, None]
    first = torch.where(inside, low, length - 1).flatten(1).amin(1).long()
    last = torch.where(inside, high, 0).flatten(1).amax(1).long()
    extent = (last - first + 1).clamp(min=0)
    width = max(1, int(extent.max()))
    weights = share.new_zeros(*positions.shape[:2], width)
    for pixel, weight in ((low, share * (1 - part)), (high, share * part)):
        weights.scatter_add_(2, (pixel.long() - first[:, None, None]).clamp(0, width - 1), weight)
    return weights, first.tolist(), extent.tolist()


def _average_backward_cpu(
    grad_output: Tensor, rois: Tensor, shape: torch.Size, spatial_scale: float, aligned: bool
) -> Tensor:
    """Compute the gradient of average pooling with one small matrix product along each axis of a box.

    The weights of bilinear samples are separable, so the gradient of a box is ``Wy^T G Wx``, which is added to the
    channels-last map at once. torchvision adds the four neighbors of each sample one by one.
    """
    batch, channels, height, width = shape
    grad = grad_output.new_zeros(batch, height, width, channels)
    start_y, start_x, size_y, size_x = box_edges(rois, spatial_scale, aligned)
    bins_h, bins_w = grad_output.shape[2:]
    order = torch.maximum(size_y, size_x).argsort()  # the width of a chunk is that of its largest box
    for part in order.split(64):
        wy, tops, rows = _axis_weights(start_y[part], size_y[part], bins_h, height)
        wx, lefts, columns = _axis_weights(start_x[part], size_x[part], bins_w, width)
        step = max(1, MAX_ELEMENTS // (channels * wx.size(2) * max(wy.size(2), bins_h)))
        images = rois[part, 0].long().tolist()
        for begin in range(0, len(part), step):
            some = slice(begin, begin + step)
            across = grad_output[part[some]].permute(0, 2, 1, 3) @ wx[some, None]  # [r, bins_h, C, E_x]
            window = wy[some].mT @ across.transpose(2, 3).flatten(2)  # [r, E_y, E_x * C]
            window = window.unflatten(2, (wx.size(2), channels))
            places = zip(images[some], tops[some], rows[some], lefts[some], columns[some], window, strict=True)
            for image, top, tall, left, wide, values in places:
                grad[image, top : top + tall, left : left + wide] += values[:tall, :wide]
    return grad.permute(0, 3, 1, 2)


@operator
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of `roi_align_forward` with respect to its input to `grad_input` ``[N, C, H, W]``."""
    if not grad_output.numel():
        grad_input.zero_()
        return
    dtype = work_dtype(grad_output)
    grad_output, rois = grad_output.to(dtype), finite_rois(rois, dtype)
    if pool_mode == MAX_POOL:
        grad = torch.zeros_like(grad_input, dtype=dtype, memory_format=torch.contiguous_format)
        channel = torch.arange(grad.size(1), device=grad.device)[:, None, None]
        plane = rois[:, 0].long()[:, None, None, None] * grad.size(1) + channel
        add_at_positions(grad, plane, argmax_y.to(dtype), argmax_x.to(dtype), grad_output)
    elif grad_output.device.type == "cpu" and sampling_ratio == 0:  # as many samples as pixels, or more
        grad = _average_backward_cpu(grad_output, rois, grad_input.shape, spatial_scale, aligned)
    else:
        grad = torch.ops.torchvision._roi_align_backward(
            grad_output,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    grad_input.copy_(grad)


def _pool_axis(low: Tensor, high: Tensor, bins: int, limit: int) -> tuple[Tensor, Tensor]:
    """Return the pixel indices of each bin along one axis ``[R, bins, S]``, and True for those in the bin."""
    bin_size = ((high - low) / bins)[:, None]
    number = torch.arange(bins + 1, device=low.device, dtype=low.dtype)
    first = (number[:-1] * bin_size + low[:, None]).floor().clamp(0, limit).long()
    last = (number[1:] * bin_size + low[:, None]).ceil().clamp(0, limit).long()
    pixel = first[..., None] + torch.arange(max(int((last - first).max()), 1), device=low.device)
    return pixel, pixel < last[..., None]


@operator
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool (Girshick, 2015) with unrounded boxes, as in mmcv: the maximum over the pixels that a bin overlaps.

    Args:
        input: ``[N, C, H, W]``.
        rois: ``[R, 5]``, (batch index, x1, y1, x2, y2), including the last pixel.
        output: ``[R, C, pooled_height, pooled_width]``, written in place; 0 for empty bins.
        argmax: integer, same shape as output; index of the maximum in the flattened map, -1 for empty bins.
        pooled_height, pooled_width: number of bins along each axis.
        spatial_scale: pixels of the feature map per pixel of the image.
    """
    if not output.numel():
        return
    channels, height, width = input.shape[1:]
    rois = finite_rois(rois, work_dtype(rois))
    x1, y1 = (rois[:, 1:3] * spatial_scale).unbind(1)
    x2, y2 = ((rois[:, 3:] + 1) * spatial_scale).unbind(1)
    ys, use_y = _pool_axis(y1, y2, pooled_height, height)
    xs, use_x = _pool_axis(x1, x2, pooled_width, width)
    proper = ((x2 > x1) & (y2 > y1))[:, None, None, None]
    rows, batch = channels_last_rows(input), rois[:, 0].long()
    per_box = pooled_height * pooled_width * ys.size(2) * xs.size(2) * channels
    for part in torch.arange(len(rois), device=rois.device).split(max(1, MAX_ELEMENTS // per_box)):
        use = (use_y[part][:, :, None, :, None] & use_x[part][:, None, :, None, :]).flatten(3) & proper[part]
        place = (ys[part][:, :, None, :, None] * width + xs[part][:, None, :, None, :]).flatten(3) * use
        best, which, some = first_maximum(rows[place + (batch[part] * height * width)[:, None, None, None]], use)
        output[part] = best.permute(0, 3, 1, 2)
        at = torch.where(some, place.gather(3, which), -1)
        argmax[part] = at.permute(0, 3, 1, 2).to(argmax)


@operator
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of `roi_pool_forward` with respect to its input to `grad_input` ``[N, C, H, W]``."""
    channels, height, width = grad_input.shape[1:]
    grad = grad_input.new_zeros(grad_input.numel(), dtype=work_dtype(grad_output))
    channel = torch.arange(channels, device=grad.device)[:, None, None]
    rois = finite_rois(rois, work_dtype(rois))
    plane = rois[:, 0].long()[:, None, None, None] * channels + channel
    place = plane * (height * width) + argmax.clamp(min=0)
    grad.index_add_(0, place.flatten(), (grad_output.to(grad.dtype) * (argmax >= 0)).flatten())
    grad_input.copy_(grad.view_as(grad_input))
