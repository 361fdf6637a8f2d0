"""Sparse convolution offset by offset: gather the inputs of an offset, multiply, and add to the outputs.

The inputs and outputs of one offset are unique, so the additions are deterministic. Gradients are computed explicitly,
so that only the inputs are saved.
"""

from typing import Any

import torch
from torch import Tensor

from visionattn.kernels.sparse_conv.neighbors import Neighbors
from visionattn.kernels.transforms import is_differentiated_again, recomputed_gradients

__all__ = ["Convolution", "DepthwiseConvolution", "convolve"]


def _whole(neighbors: Neighbors, index: int) -> bool:
    """Return True for the center of a submanifold kernel, which maps every voxel to itself."""
    return neighbors.same_sites and index == len(neighbors.sources) // 2


def _add(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add ``values`` to unique rows of ``total``."""
    if total.device.type == "cpu":
        total.index_add_(0, rows, values)
    else:  # index_add_ on a GPU is deterministic only on request, and then slower
        total[rows] = total[rows] + values


def convolve(features: Tensor, weight: Tensor, neighbors: Neighbors) -> Tensor:
    """Both convolutions with differentiable operators, for transforms (see `kernels.transforms`) and tracing.

    Args:
        features: ``[N, C]``.
        weight: ``[K, C, C']``, or ``[K, C]`` for the depthwise convolution.
        neighbors: the pairs of voxels of each offset.

    Returns:
        ``[M, C']`` or ``[M, C]``.
    """
    exact = torch.promote_types(features.dtype, torch.float32)
    total = features.new_zeros((neighbors.num_outputs, weight.shape[-1]), dtype=exact)
    for kernel, source, target in zip(weight.unbind(0), neighbors.sources, neighbors.targets, strict=True):
        if len(source):
            rows = features.index_select(0, source)
            values = rows * kernel if kernel.dim() == 1 else rows @ kernel
            total = total.index_add(0, target, values.to(exact))
    return total.to(features.dtype)


def _recompute(ctx: Any, grad: Tensor, features: Tensor, weight: Tensor) -> list[Tensor | None]:
    return recomputed_gradients(lambda x, w: (convolve(x, w, ctx.neighbors),), (features, weight), (grad,))


class Convolution(torch.autograd.Function):
    """``features [N, C]`` with ``weight [K, C, C']`` to ``[M, C']``."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, neighbors: Neighbors) -> Tensor:
        """Accumulates in the dtype of the features, or in float32 for half precision."""
        ctx.save_for_backward(features, weight)
        ctx.neighbors = neighbors
        half = features.dtype in (torch.bfloat16, torch.float16)
        total = features.new_zeros(
            (neighbors.num_outputs, weight.shape[2]), dtype=torch.float32 if half else features.dtype
        )
        for index, (source, target) in enumerate(zip(neighbors.sources, neighbors.targets, strict=True)):
            if _whole(neighbors, index):
                total += features @ weight[index]
            elif len(source):
                _add(total, target, (features.index_select(0, source) @ weight[index]).to(total.dtype))
        return total.to(features.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of features and weight."""
        features, weight = ctx.saved_tensors
        if is_differentiated_again(grad, features, weight):
            return *_recompute(ctx, grad, features, weight), None
        neighbors, grad = ctx.neighbors, grad.contiguous()
        wants_x, wants_w = ctx.needs_input_grad[:2]
        accumulate = torch.float32 if features.dtype in (torch.bfloat16, torch.float16) else features.dtype
        dx = torch.zeros_like(features, dtype=accumulate) if wants_x else None
        dw = torch.zeros_like(weight) if wants_w else None
        for index, (source, target) in enumerate(zip(neighbors.sources, neighbors.targets, strict=True)):
            if not len(source):
                continue
            whole = _whole(neighbors, index)
            part = grad if whole else grad.index_select(0, target)
            if dx is not None:
                values = (part @ weight[index].T).to(accumulate)
                if whole:
                    dx += values
                else:
                    _add(dx, source, values)
            if dw is not None:
                dw[index] = (features if whole else features.index_select(0, source)).T @ part
        return None if dx is None else dx.to(features.dtype), dw, None


class DepthwiseConvolution(torch.autograd.Function):
    """``features [N, C]`` with ``weight [K, C]`` to ``[M, C]``."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, neighbors: Neighbors) -> Tensor:
        """Accumulates in the dtype of the features, or in float32 for half precision."""
        ctx.save_for_backward(features, weight)
        ctx.neighbors = neighbors
        half = features.dtype in (torch.bfloat16, torch.float16)
        total = features.new_zeros(
            (neighbors.num_outputs, features.shape[1]), dtype=torch.float32 if half else features.dtype
        )
        for index, (source, target) in enumerate(zip(neighbors.sources, neighbors.targets, strict=True)):
            if _whole(neighbors, index):
                total += features * weight[index]
            elif len(source):
                _add(total, target, (features.index_select(0, source) * weight[index]).to(total.dtype))
        return total.to(features.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of features and weight."""
        features, weight = ctx.saved_tensors
        if is_differentiated_again(grad, features, weight):
            return *_recompute(ctx, grad, features, weight), None
        neighbors, grad = ctx.neighbors, grad.contiguous()
        wants_x, wants_w = ctx.needs_input_grad[:2]
        accumulate = torch.float32 if features.dtype in (torch.bfloat16, torch.float16) else features.dtype
        dx = torch.zeros_like(features, dtype=accumulate) if wants_x else None
        dw = torch.zeros_like(weight) if wants_w else None
        for index, (source, target) in enumerate(zip(neighbors.sources, neighbors.targets, strict=True)):
            if not len(source):
                continue
            whole = _whole(neighbors, index)
            part = grad if whole else grad.index_select(0, target)
            if dx is not None:
                values = (part * weight[index]).to(accumulate)
                if whole:
                    dx += values
                else:
                    _add(dx, source, values)
            if dw is not None:
                met = features if whole else features.index_select(0, source)
                dw[index] = torch.einsum("nc,nc->c", met.to(accumulate), part.to(accumulate)).to(dw.dtype)
        return None if dx is None else dx.to(features.dtype), dw, None
