"""The Triton backend as custom operators, opaque to compile, export and autograd."""

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.gather import neighborhood_attention_gather
from visionattn.kernels.neighborhood.triton import plans
from visionattn.kernels.transforms import is_differentiated_again, is_plain, recomputed_gradients

__all__ = ["neighborhood_attention_triton", "neighborhood_attention_triton_packed"]

NAME = "visionattn::neighborhood_attention_triton"
TENSORS = "Tensor q, Tensor k, Tensor v, Tensor? rpb, Tensor? extra_k, Tensor? extra_v"
GEOMETRY = "int[] kernel_size, int[] stride, int[] dilation, int[] is_causal, float scale"
PACKED = f"{NAME}_packed"  # q, k and v are views of one tensor [batch, *axes, 3, heads, head_dim]

torch.library.define(NAME, f"({TENSORS}, {GEOMETRY}) -> (Tensor, Tensor)")
torch.library.define(
    f"{NAME}_backward",
    f"(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, {TENSORS}, {GEOMETRY}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(PACKED, f"(Tensor qkv, Tensor? rpb, {GEOMETRY}) -> (Tensor, Tensor)")
torch.library.define(
    f"{PACKED}_backward",
    f"(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, Tensor qkv, Tensor? rpb, {GEOMETRY}) "
    "-> (Tensor, Tensor)",
)


def _hashable(kernel_size, stride, dilation, is_causal, scale):
    return tuple(kernel_size), tuple(stride), tuple(dilation), tuple(map(bool, is_causal)), float(scale)


@torch.library.impl(NAME, "CompositeExplicitAutograd")
def _forward(q, k, v, rpb, extra_k, extra_v, *geometry):
    with torch.cuda.device_of(q):
        return plans.forward(q, k, v, rpb, extra_k, extra_v, *_hashable(*geometry))


@torch.library.register_fake(NAME)
def _(q, k, v, *_):
    return q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.impl(f"{NAME}_backward", "CompositeExplicitAutograd")
def _backward(grad_out, grad_lse, out, lse, *arguments):
    tensors, geometry = arguments[:6], _hashable(*arguments[6:])
    with torch.cuda.device_of(out):
        grads = plans.backward(grad_out, grad_lse, out, lse, tensors, geometry)
    # Operators cannot return None.
    return tuple(out.new_empty(0) if x is None else x for x in grads)


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


@torch.library.impl(PACKED, "CompositeExplicitAutograd")
def _forward_packed(qkv, rpb, *geometry):
    with torch.cuda.device_of(qkv):
        return plans.forward(*qkv.unbind(-3), rpb, None, None, *_hashable(*geometry))


@torch.library.register_fake(PACKED)
def _(qkv, *_):
    q = qkv.select(-3, 0)
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=torch.float32)


@torch.library.impl(f"{PACKED}_backward", "CompositeExplicitAutograd")
def _backward_packed(grad_out, grad_lse, out, lse, qkv, rpb, *geometry):
    tensors = (*qkv.unbind(-3), rpb, None, None)
    with torch.cuda.device_of(out):
        grad_qkv, grad_rpb, *_ = plans.backward(
            grad_out, grad_lse, out, lse, tensors, _hashable(*geometry), packed=True
        )
    return grad_qkv, out.new_empty(0) if rpb is None else grad_rpb


@torch.library.register_fake(f"{PACKED}_backward")
def _(grad_out, grad_lse, out, lse, qkv, rpb, *_):
    return qkv.new_empty(qkv.shape), out.new_empty(0) if rpb is None else rpb.new_empty(rpb.shape)


def _setup_packed(ctx, inputs, output):
    ctx.save_for_backward(*output, *inputs[:2])
    ctx.geometry = inputs[2:]
    ctx.set_materialize_grads(False)


def _differentiate_packed(ctx, grad_out, grad_lse):
    out, lse, qkv, rpb = ctx.saved_tensors
    if is_differentiated_again(grad_out, grad_lse, qkv, rpb):

        def attention(qkv, rpb):
            return neighborhood_attention_gather(*qkv.unbind(-3), rpb, None, None, *ctx.geometry)

        return *recomputed_gradients(attention, (qkv, rpb), (grad_out, grad_lse)), *[None] * 5
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    grad_qkv, grad_rpb = torch.ops.visionattn.neighborhood_attention_triton_packed_backward(
        grad_out, grad_lse, out, lse, qkv, rpb, *ctx.geometry
    )
    return grad_qkv, None if rpb is None else grad_rpb, *[None] * 5


torch.library.register_autograd(PACKED, _differentiate_packed, setup_context=_setup_packed)


def neighborhood_attention_triton_packed(qkv: Tensor, rpb: Tensor | None, *geometry) -> tuple[Tensor, Tensor]:
    """The same for ``qkv`` of shape ``[batch, *axes, 3, heads, head_dim]``, whose gradient is one tensor, too."""
    return torch.ops.visionattn.neighborhood_attention_triton_packed(qkv, rpb, *geometry)


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
    if is_plain(q, k, v, rpb, extra_k, extra_v):  # the overhead of the operator exceeds that of the launch
        with torch.cuda.device_of(q):
            return plans.forward(q, k, v, rpb, extra_k, extra_v, kernel_size, stride, dilation, is_causal, scale)
    return torch.ops.visionattn.neighborhood_attention_triton(
        q, k, v, rpb, extra_k, extra_v, kernel_size, stride, dilation, is_causal, scale
    )
