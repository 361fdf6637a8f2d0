"""BorderAlign: the maximum of the features along each side of a box."""

import torch
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

__all__ = ["border_align_backward", "border_align_forward"]


def _walk(boxes: Tensor, pool_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the first sample and the step along each side of boxes ``[B, K, 4]``: (y, x, dy, dx), each ``[B, K, 4]``.

    The sides are top and left, starting at (x1, y1), and bottom and right, starting at (x2, y2).
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    dx, dy = (x2 - x1) / pool_size, (y2 - y1) / pool_size
    zero = torch.zeros_like(dx)
    return (
        torch.stack((y1, y1, y2, y2), -1),
        torch.stack((x1, x1, x2, x2), -1),
        torch.stack((zero, dy, zero, -dy), -1),
        torch.stack((dx, zero, -dx, zero), -1),
    )


@operator
def border_align_forward(input: Tensor, boxes: Tensor, output: Tensor, argmax_idx: Tensor, pool_size: int) -> None:
    """BorderAlign (Qiu et al., 2020): write the maximum of ``pool_size + 1`` samples on each side to `output`.

    Args:
        input: ``[B, 4 * C, H, W]``, C channels each for top, left, bottom and right.
        boxes: ``[B, K, 4]``, (x1, y1, x2, y2) in pixels of the feature map.
        output: ``[B, C, K, 4]``.
        argmax_idx: integer, same shape as output; receives the index of the maximum sample.
        pool_size: number of steps along a side.
    """
    if not output.numel():
        return
    dtype = work_dtype(input)
    batch, channels, height, width = input.shape
    channels //= 4
    rows = channels_last_rows(input.to(dtype).reshape(batch * 4, channels, height, width))
    y, x, dy, dx = (t.unsqueeze(-1) for t in _walk(boxes.to(dtype), pool_size))
    step = torch.arange(pool_size + 1, device=input.device, dtype=dtype)
    side = torch.arange(batch * 4, device=input.device).view(batch, 1, 4, 1, 1)
    per_box = batch * 4 * (pool_size + 1) * channels
    size = max(1, MAX_ELEMENTS // per_box)
    for part in (slice(i, i + size) for i in range(0, boxes.size(1), size)):
        index, weight = bilinear_taps(y[:, part] + step * dy[:, part], x[:, part] + step * dx[:, part], height, width)
        values = sample_rows(rows, index + side * (height * width), weight)
        best, which, _ = first_maximum(values, torch.ones_like(values[..., 0], dtype=torch.bool))
        output[:, :, part] = best.permute(0, 3, 1, 2).to(output)
        argmax_idx[:, :, part] = which.permute(0, 3, 1, 2).to(argmax_idx)


@operator
def border_align_backward(
    grad_output: Tensor, boxes: Tensor, argmax_idx: Tensor, grad_input: Tensor, pool_size: int
) -> None:
    """Write the gradient of `border_align_forward` with respect to its input to `grad_input` ``[B, 4 * C, H, W]``."""
    dtype = work_dtype(grad_output)
    batch, channels = grad_output.shape[:2]
    y, x, dy, dx = (t.unsqueeze(1) for t in _walk(boxes.to(dtype), pool_size))
    grad = torch.zeros_like(grad_input, dtype=dtype, memory_format=torch.contiguous_format)
    device = grad.device
    plane = (
        torch.arange(batch, device=device).view(-1, 1, 1, 1) * 4 + torch.arange(4, device=device)
    ) * channels + torch.arange(channels, device=device).view(-1, 1, 1)
    step = argmax_idx.to(dtype)
    add_at_positions(grad, plane.expand_as(step), y + step * dy, x + step * dx, grad_output.to(dtype))
    grad_input.copy_(grad)
