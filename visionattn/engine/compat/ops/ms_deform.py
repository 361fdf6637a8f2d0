"""Multi-scale deformable attention (Deformable DETR)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import operator, work_dtype

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]


def _attend(value: Tensor, shapes: list[list[int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The attention itself, differentiable; shapes as in `ms_deform_attn_forward`."""
    batch, _, heads, dim = value.shape
    queries = locations.size(1)
    result = value.new_zeros(batch * heads, dim, queries)
    levels = value.split([h * w for h, w in shapes], 1)
    for level, (map_l, (height, width)) in enumerate(zip(levels, shapes, strict=True)):
        map_l = map_l.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        grid_l = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(map_l, grid_l, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight_l = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)
        result = result + torch.einsum("bdqp,bqp->bdq", sampled, weight_l)
    return result.view(batch, heads * dim, queries).transpose(1, 2)


@operator
def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sum of bilinear samples around each query, from every level (Zhu et al., 2021, eq. 3).

    Args:
        value: ``[B, K, heads, D]``, the pixels of all levels, one level after the other.
        value_spatial_shapes: ``[L, 2]``, (height, width) of each level.
        value_level_start_index: ``[L]``, implied by the shapes; unused.
        sampling_locations: ``[B, Q, heads, L, P, 2]``, (x, y) in [0, 1] of each level; zeros lie outside.
        attention_weights: ``[B, Q, heads, L, P]``.
        im2col_step: images per launch of compiled kernels; unused.

    Returns:
        ``[B, Q, heads * D]``.
    """
    dtype = work_dtype(value)
    tensors = (t.to(dtype) for t in (sampling_locations, attention_weights))
    return _attend(value.to(dtype), value_spatial_shapes.tolist(), *tensors).to(value.dtype).contiguous()


@operator
def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of `ms_deform_attn_forward`, written into the three ``grad_*`` tensors."""
    dtype = work_dtype(value)
    leaves = [t.detach().to(dtype).requires_grad_() for t in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = _attend(leaves[0], value_spatial_shapes.tolist(), *leaves[1:])
    grads = torch.autograd.grad(output, leaves, grad_output.to(dtype).view_as(output))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)
