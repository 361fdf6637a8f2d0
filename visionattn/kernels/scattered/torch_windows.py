"""The portable backend."""

import torch
from torch import Tensor

from visionattn.kernels.scattered.reference import attend_reference

__all__ = ["backward", "forward"]


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    return attend_reference(q, k, v, offsets, eps)


def backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float):
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attend_reference(*leaves, offsets, eps)
    return torch.autograd.grad(out, leaves, grad_out)
