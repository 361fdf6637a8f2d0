"""The backends as custom operators, opaque to compile, export and autograd.

The values of the offsets are checked here, where they are concrete even in a compiled graph.
"""

import torch
from torch import Tensor

from visionattn.kernels.scattered.sums import attend_sums
from visionattn.kernels.scattered.torch import windows as torch_windows
from visionattn.kernels.scattered.windows import check_offsets
from visionattn.kernels.transforms import is_differentiated_again, recomputed_gradients

__all__ = ["linear_attention_torch", "linear_attention_triton"]

INPUTS = "Tensor q, Tensor k, Tensor v, Tensor offsets, float eps"

TORCH = "visionattn::scattered_linear_attention"
TRITON = "visionattn::scattered_linear_attention_triton"
for _name in (TORCH, TRITON):
    torch.library.define(_name, f"({INPUTS}) -> Tensor")
    torch.library.define(f"{_name}_backward", f"(Tensor grad_out, {INPUTS}) -> (Tensor, Tensor, Tensor)")


def _portable(q, k, v, offsets, eps):
    check_offsets(offsets, q.shape[0])
    return torch_windows.forward(q, k, v, offsets, eps)


@torch.library.impl(TORCH, "CompositeExplicitAutograd")
def _forward(q, k, v, offsets, eps):
    return _portable(q, k, v, offsets, eps)


@torch.library.impl(f"{TORCH}_backward", "CompositeExplicitAutograd")
def _backward(grad_out, q, k, v, offsets, eps):
    return torch_windows.backward(grad_out, q, k, v, offsets, eps)


@torch.library.impl(TRITON, "CompositeExplicitAutograd")
def _triton_forward(q, k, v, offsets, eps):
    from visionattn.kernels.scattered.triton import launch as triton_launch  # imports Triton on the first call

    if offsets.device.type == "cpu":
        check_offsets(offsets, q.shape[0])
    with torch.cuda.device_of(q):
        return triton_launch.forward(q, k, v, offsets, eps)


@torch.library.impl(f"{TRITON}_backward", "CompositeExplicitAutograd")
def _triton_backward(grad_out, q, k, v, offsets, eps):
    from visionattn.kernels.scattered.triton import launch as triton_launch

    with torch.cuda.device_of(q):
        return triton_launch.backward(grad_out, q, k, v, offsets, eps)


def _shape_of_output(q, k, v, offsets, eps):
    return q.new_empty(*q.shape[:-1], v.shape[-1])


def _shapes_of_gradients(grad_out, q, k, v, offsets, eps):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx, inputs, output):
    *tensors, eps = inputs
    ctx.save_for_backward(*tensors)
    ctx.eps = eps


def _recompute(saved, eps, grad_out):
    *tensors, offsets = saved
    return recomputed_gradients(lambda q, k, v: (attend_sums(q, k, v, offsets, eps),), tensors, (grad_out,))


def _differentiate(ctx, grad_out):
    saved = ctx.saved_tensors  # activation checkpointing allows a single access
    if is_differentiated_again(grad_out, *saved[:3]):
        return *_recompute(saved, ctx.eps, grad_out), None, None
    gradients = torch.ops.visionattn.scattered_linear_attention_backward(grad_out, *saved, ctx.eps)
    return *gradients, None, None


def _differentiate_triton(ctx, grad_out):
    saved = ctx.saved_tensors  # activation checkpointing allows a single access
    if is_differentiated_again(grad_out, *saved[:3]):
        return *_recompute(saved, ctx.eps, grad_out), None, None
    gradients = torch.ops.visionattn.scattered_linear_attention_triton_backward(grad_out, *saved, ctx.eps)
    return *gradients, None, None


for _name, _rule in ((TORCH, _differentiate), (TRITON, _differentiate_triton)):
    torch.library.register_fake(_name, _shape_of_output)
    torch.library.register_fake(f"{_name}_backward", _shapes_of_gradients)
    torch.library.register_autograd(_name, _rule, setup_context=_setup_context)


def linear_attention_torch(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """The PyTorch backend; `api` has checked the arguments except for the values of the offsets."""
    return torch.ops.visionattn.scattered_linear_attention(q, k, v, offsets, eps)


def linear_attention_triton(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """The Triton backend; `api` has checked the arguments except for the values of the offsets."""
    return torch.ops.visionattn.scattered_linear_attention_triton(q, k, v, offsets, eps)
