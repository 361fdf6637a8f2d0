"""Sparse convolution offset by offset: gather the inputs that an offset meets, multiply, add to the outputs.

Under one offset no input and no output comes twice, so adding is the same in any order: deterministic, without atomics
that could collide. The gradients are made here, so that nothing is kept but the input.
"""

from typing import Any

import torch
from torch import Tensor

from visionattn.kernels.sparse_conv.neighbors import Neighbors

__all__ = ["Convolution", "DepthwiseConvolution"]


def _whole(neighbors: Neighbors, index: int) -> bool:
    """The middle of a submanifold kernel meets every voxel at its own place."""
    return neighbors.same_sites and index == len(neighbors.sources) // 2


def _add(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add rows, none of which comes twice."""
    if total.device.type == "cpu":
        total.index_add_(0, rows, values)
    else:  # index_add_ on a GPU is deterministic only on request, and slower then
        total[rows] = total[rows] + values


class Convolution(torch.autograd.Function):
    """``features [N, C]`` with ``weight [K, C, C']`` to ``[M, C']``."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, neighbors: Neighbors) -> Tensor:
        """Sums are in the type of the features, float32 for the half types."""
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
        """Sums are in the type of the features, float32 for the half types."""
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
