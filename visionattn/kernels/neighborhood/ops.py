"""The PyTorch backend as custom operators, opaque to compile, export and autograd."""

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.gather import neighborhood_attention_gather
from visionattn.kernels.neighborhood.torch import dense as torch_dense
from visionattn.kernels.neighborhood.torch import tiles as torch_tiles
from visionattn.kernels.nonfinite import has_nan
from visionattn.kernels.transforms import is_differentiated_again, is_plain, recomputed_gradients

__all__ = ["neighborhood_attention"]

NAME = "visionattn::neighborhood_attention"
GEOMETRY = "int[] kernel_size, int[] stride, SymInt[] dilation, int[] is_causal, float scale"

torch.library.define(
    NAME, f"(Tensor q, Tensor k, Tensor v, Tensor? rpb, {GEOMETRY}, bool return_lse) -> (Tensor, Tensor)"
)
torch.library.define(
    f"{NAME}_backward",
    f"(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor? rpb, {GEOMETRY}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)


def _problem(kernel_size, stride, dilation, is_causal):
    return tuple(kernel_size), tuple(stride), tuple(dilation), tuple(map(bool, is_causal))


def _compute(q, k, v, rpb, problem, scale, return_lse):
    whole = torch_dense.choose(q, k, v, rpb, problem)
    if whole is None:
        return torch_tiles.forward(q, k, v, rpb, problem, scale, return_lse)
    out, lse = torch_dense.forward(q, k, v, rpb, whole, scale, return_lse)
    if whole.plan.masked and has_nan(out):
        return torch_tiles.forward(q, k, v, rpb, problem, scale, return_lse, pairwise=True)
    return out, lse


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _forward(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale, return_lse):
    return _compute(q, k, v, rpb, _problem(kernel_size, stride, dilation, is_causal), scale, return_lse)


@torch.library.register_fake(NAME)
def _(q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale, return_lse):
    return (
        q.new_empty(*q.shape[:-1], v.shape[-1]),
        q.new_empty(q.shape[:-1] if return_lse else (0,), dtype=torch.promote_types(q.dtype, torch.float32)),
    )


@torch.library.impl(f"{NAME}_backward", "CompositeExplicitAutograd")
def _backward(grad_out, grad_lse, q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale):
    problem = _problem(kernel_size, stride, dilation, is_causal)
    dq, dk, dv, drpb = torch_tiles.backward(grad_out, grad_lse, q, k, v, rpb, problem, scale)
    return dq, dk, dv, q.new_empty(0) if drpb is None else drpb


@torch.library.register_fake(f"{NAME}_backward")
def _(grad_out, grad_lse, q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale):
    drpb = q.new_empty(0) if rpb is None else rpb.new_empty(rpb.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), drpb


def _setup_context(ctx, inputs, output):
    q, k, v, rpb, *ctx.geometry, ctx.return_lse = inputs
    # The outputs are not saved: backward recomputes the probabilities tile by tile.
    ctx.save_for_backward(q, k, v, rpb)
    ctx.set_materialize_grads(False)


def _recompute(ctx, grad_out, grad_lse, *tensors):
    def attention(q, k, v, rpb):
        return neighborhood_attention_gather(q, k, v, rpb, None, None, *ctx.geometry)

    return recomputed_gradients(attention, tensors, (grad_out, grad_lse if ctx.return_lse else None))


def _differentiate(ctx, grad_out, grad_lse):
    q, k, v, rpb = ctx.saved_tensors
    if is_differentiated_again(grad_out, grad_lse, q, k, v, rpb):
        return *_recompute(ctx, grad_out, grad_lse, q, k, v, rpb), *[None] * 6
    if grad_out is None:
        grad_out = q.new_zeros(*q.shape[:-1], v.shape[-1])
    grads = torch.ops.visionattn.neighborhood_attention_backward(
        grad_out, grad_lse if ctx.return_lse else None, q, k, v, rpb, *ctx.geometry
    )
    return *grads[:3], None if rpb is None else grads[3], *[None] * 6


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
    return_lse: bool = True,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of the PyTorch backend; the arguments have been checked by `api`.

    Without ``return_lse`` the log-sum-exp is not computed and has no elements.
    """
    if is_plain(q, k, v, rpb):  # the overhead of the operator is a third of the time of a call on a small map
        return _compute(q, k, v, rpb, (kernel_size, stride, dilation, is_causal), scale, return_lse)
    return torch.ops.visionattn.neighborhood_attention(
        q, k, v, rpb, kernel_size, stride, dilation, is_causal, scale, return_lse
    )
