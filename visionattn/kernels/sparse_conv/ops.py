"""The Triton backend as custom operators, opaque to compile, export and autograd."""

import torch
from torch import Tensor

from visionattn.kernels.transforms import is_differentiated_again, recomputed_gradients

__all__ = ["convolve_by_table", "sparse_conv_triton"]

NAME = "visionattn::sparse_conv_triton"
TENSORS = "Tensor x, Tensor weight, Tensor table, Tensor transposed"
torch.library.define(NAME, f"({TENSORS}) -> Tensor")
torch.library.define(
    f"{NAME}_backward", f"(Tensor grad, {TENSORS}, bool wants_x, bool wants_weight) -> (Tensor, Tensor)"
)


def convolve_by_table(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Differentiable version of `triton.launch.forward`, for second derivatives."""
    exact = torch.promote_types(x.dtype, torch.float32)
    total = x.new_zeros((table.shape[0], weight.shape[-1]), dtype=exact)
    for index, kernel in zip(table.unbind(1), weight.unbind(0), strict=True):
        rows = x.index_select(0, index.clamp(min=0)).masked_fill((index < 0)[:, None], 0)
        total = total + (rows * kernel if kernel.dim() == 1 else rows @ kernel).to(exact)
    return total.to(x.dtype)


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _forward(x, weight, table, transposed):
    from visionattn.kernels.sparse_conv.triton import launch as triton_launch  # imports Triton on the first call

    with torch.cuda.device_of(x):
        return triton_launch.forward(x, weight, table)


@torch.library.register_fake(NAME)
def _(x, weight, table, transposed):
    return x.new_empty(table.shape[0], weight.shape[-1])


@torch.library.impl(f"{NAME}_backward", "CompositeExplicitAutograd")
def _backward(grad, x, weight, table, transposed, wants_x, wants_weight):
    from visionattn.kernels.sparse_conv.triton import launch as triton_launch

    with torch.cuda.device_of(x):
        gradients = triton_launch.backward(grad, x, weight, table, transposed, (wants_x, wants_weight))
    # Operators cannot return None, so an empty tensor is returned instead.
    return tuple(x.new_empty(0) if gradient is None else gradient for gradient in gradients)


@torch.library.register_fake(f"{NAME}_backward")
def _(grad, x, weight, table, transposed, wants_x, wants_weight):
    wanted = ((x, wants_x), (weight, wants_weight))
    return tuple(tensor.new_empty(tensor.shape if want else 0) for tensor, want in wanted)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    x, weight, table, transposed = ctx.saved_tensors
    if is_differentiated_again(grad, x, weight):
        gradients = recomputed_gradients(lambda x, w: (convolve_by_table(x, w, table),), (x, weight), (grad,))
        return *gradients, None, None
    wants = ctx.needs_input_grad[:2]
    gradients = torch.ops.visionattn.sparse_conv_triton_backward(grad, x, weight, table, transposed, *wants)
    return *(gradient if want else None for gradient, want in zip(gradients, wants, strict=True)), None, None


torch.library.register_autograd(NAME, _differentiate, setup_context=_setup_context)


def sparse_conv_triton(x: Tensor, weight: Tensor, table: Tensor, transposed: Tensor) -> Tensor:
    """The Triton backend; `api` has checked the arguments.

    Args:
        x: ``[N, C]``.
        weight: ``[K, C, C']``, or ``[K, C]`` for the depthwise convolution.
        table: int32 ``[M, K]``, see `Neighbors.table`.
        transposed: int32 ``[N, K]``.
    """
    return torch.ops.visionattn.sparse_conv_triton(x, weight, table, transposed)
