"""Multi-scale deformable attention (Deformable DETR)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .common import operator, work_dtype

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]


def _attend(value: Tensor, shapes: list[list[int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Compute the attention, differentiable; see `ms_deform_attn_forward` for the shapes."""
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
    """Compute the weighted sum of bilinear samples of all levels for each query (Zhu et al., 2021, eq. 3).

    Args:
        value: pixels of all levels, concatenated, ``[B, K, heads, D]``.
        value_spatial_shapes: (height, width) of each level, ``[L, 2]``.
        value_level_start_index: ``[L]``; not used, since it follows from the shapes.
        sampling_locations: (x, y) in [0, 1] of each level, ``[B, Q, heads, L, P, 2]``; samples outside are zero.
        attention_weights: ``[B, Q, heads, L, P]``.
        im2col_step: option of compiled kernels; not used.

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
    """Write the gradients of `ms_deform_attn_forward` to the three ``grad_*`` tensors."""
    dtype = work_dtype(value)
    leaves = [t.detach().to(dtype).requires_grad_() for t in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = _attend(leaves[0], value_spatial_shapes.tolist(), *leaves[1:])
    grads = torch.autograd.grad(output, leaves, grad_output.to(dtype).view_as(output))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)
