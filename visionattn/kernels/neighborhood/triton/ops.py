"""The Triton backend as custom operators, opaque to compile, export and autograd."""

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.gather import neighborhood_attention_gather
from visionattn.kernels.neighborhood.triton import launch as triton_launch
from visionattn.kernels.transforms import is_differentiated_again, recomputed_gradients

__all__ = ["neighborhood_attention_triton"]

NAME = "visionattn::neighborhood_attention_triton"
TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? rpb, Tensor? extra_k, Tensor? extra_v"
GEOMETRY = "int[] kernel_size, int[] stride, int[] dilation, int[] is_causal, float scale"

torch.library.define(NAME, f"({TENSORS}, {GEOMETRY}) -> (Tensor, Tensor)")
torch.library.define(
    f"{NAME}_backward",
    f"(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {TENSORS}, {GEOMETRY}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _forward(*arguments):
    out, lse, launch = triton_launch.forward(triton_launch.Problem.of(*arguments))
    with torch.cuda.device_of(out):
        launch.run()
    return out, lse


@torch.library.register_fake(NAME)
def _(q, k, v, *_):
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.impl(f"{NAME}_backward", "CompositeExplicitAutograd")
def _backward(grad_out, grad_lse, out, lse, *arguments):
    problem = triton_launch.Problem.of(*arguments)
    grads, launches = triton_launch.backward(problem, grad_out, grad_lse, out, lse)
    with torch.cuda.device_of(out):
        for launch in launches:
            launch.run()
    rest = []
    for name, x in (("rpb", problem.rpb), ("extra_k", problem.extra_k), ("extra_v", problem.extra_v)):
        # The second stage of the reductions. Operators cannot return None, so an empty tensor is returned instead.
        rest.append(out.new_empty(0) if x is None else grads[name].sum(0).view(x.shape).to(x.dtype))
    return grads["q"], grads["k"], grads["v"], *rest


@torch.library.register_fake(f"{NAME}_backward")
def _(grad_out, grad_lse, out, lse, q, k, v, rpb, extra_k, extra_v, *_):
    return tuple(out.new_empty(0) if x is None else x.new_empty(x.shape) for x in (q, k, v, rpb, extra_k, extra_v))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*output, *inputs[:6])
    ctx.geometry = inputs[6:]
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_out, grad_lse):
    out, lse, *tensors = ctx.saved_tensors
    if is_differentiated_again(grad_out, grad_lse, *tensors):
        gradients = recomputed_gradients(
            lambda *x: neighborhood_attention_gather(*x, *ctx.geometry), tensors, (grad_out, grad_lse)
        )
        return *gradients, None, None, None, None, None
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    grads = torch.ops.visionattn.neighborhood_attention_triton_backward(
        grad_out, grad_lse, out, lse, *tensors, *ctx.geometry
    )
    grads = (None if x is None else grad for x, grad in zip(tensors, grads, strict=True))
    return *grads, None, None, None, None, None


torch.library.register_autograd(NAME, _differentiate, setup_context=_setup_context)


def neighborhood_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    is_causal: tuple[bool, ...],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the Triton backend; the arguments have been checked by `api`."""
    return torch.ops.visionattn.neighborhood_attention_triton(
        q, k, v, rpb, extra_k, extra_v, kernel_size, stride, dilation, is_causal, scale
    )
