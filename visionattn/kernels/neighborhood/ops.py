"""The portable backend as PyTorch operators, so that compile, export and autograd treat it as one step."""

import torch
from torch import Tensor

from visionattn.kernels.neighborhood import torch_strips, torch_tiles

__all__ = ["neighborhood_attention"]

NAME = "visionattn::neighborhood_attention"
GEOMETRY = "int[] kernel_size, int[] stride, int[] dilation, bool[] is_causal, float scale"

torch.library.define(NAME, f"(Tensor q, Tensor k, Tensor v, Tensor? rpb, {GEOMETRY}) -> (Tensor, Tensor)")
torch.library.define(
    f"{NAME}_backward",
    "(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor? rpb, Tensor out, Tensor lse, "
    f"{GEOMETRY}) -> (Tensor, Tensor, Tensor, Tensor)",
)


def _problem(kernel_size, stride, dilation, is_causal):
    return tuple(kernel_size), tuple(stride), tuple(dilation), tuple(map(bool, is_causal))


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _forward(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale):
    return torch_strips.forward(q, k, v, rpb, _problem(kernel_size, stride, dilation, is_causal), scale)


@torch.library.register_fake(NAME)
def _(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale):
    return (
        q.new_empty(*q.shape[:-1], v.shape[-1]),
        q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32)),
    )


@torch.library.impl(f"{NAME}_backward", "CompositeExplicitAutograd")
def _backward(grad_out, grad_lse, q, k, v, rpb, out, lse, kernel_size, stride, dilation, is_causal, scale):
    problem = _problem(kernel_size, stride, dilation, is_causal)
    dq, dk, dv, drpb = torch_tiles.backward(grad_out, grad_lse, q, k, v, rpb, out, lse, problem, scale)
    # Compiled programs hold the strides to what the fake kernel says; the sum over windows leaves rpb's padded.
    return dq, dk, dv, q.new_empty(0) if drpb is None else drpb.contiguous()


@torch.library.register_fake(f"{NAME}_backward")
def _(grad_out, grad_lse, q, k, v, rpb, out, lse, kernel_size, stride, dilation, is_causal, scale):
    drpb = q.new_empty(0) if rpb is None else rpb.new_empty(rpb.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), drpb


def _setup_context(ctx, inputs, output):
    q, k, v, rpb, *ctx.geometry = inputs
    ctx.save_for_backward(q, k, v, rpb, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_out, grad_lse):
    q, k, v, rpb, out, lse = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    dq, dk, dv, drpb = torch.ops.visionattn.neighborhood_attention_backward(
        grad_out, grad_lse, q, k, v, rpb, out, lse, *ctx.geometry
    )
    return dq, dk, dv, None if rpb is None else drpb, None, None, None, None, None


torch.library.register_autograd(NAME, _differentiate, setup_context=_setup_context)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    is_causal: tuple[bool, ...],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp by the portable backend; arguments have been checked by `api`."""
    return torch.ops.visionattn.neighborhood_attention(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale)
