"""The backends as custom operators, opaque to compile, export and autograd."""

import torch
from torch import Tensor

from visionattn.kernels.nonfinite import has_nan
from visionattn.kernels.routing.gather import attend_gather
from visionattn.kernels.routing.torch import chunks as torch_chunks
from visionattn.kernels.routing.torch import dense as torch_dense
from visionattn.kernels.transforms import is_differentiated_again, is_plain, recomputed_gradients

__all__ = ["region_means_triton", "routing_attention_torch", "routing_attention_triton"]

INPUTS = "Tensor q, Tensor k, Tensor v, Tensor key_regions, Tensor? padding_mask"
PROBLEM = "int rows, int columns, float scale"

TORCH = "visionattn::routing_attention"
torch.library.define(TORCH, f"({INPUTS}, {PROBLEM}) -> Tensor")
torch.library.define(f"{TORCH}_backward", f"(Tensor grad_out, {INPUTS}, {PROBLEM}) -> (Tensor, Tensor, Tensor)")

TRITON = "visionattn::routing_attention_triton"
torch.library.define(TRITON, f"({INPUTS}, {PROBLEM}) -> (Tensor, Tensor)")
torch.library.define(
    f"{TRITON}_backward",
    f"(Tensor grad_out, {INPUTS}, Tensor out, Tensor lse, {PROBLEM}) -> (Tensor, Tensor, Tensor)",
)


def _portable(q, k, v, key_regions, padding_mask, regions, scale):
    dense = torch_dense.is_better(q, k, v, key_regions.shape[-1], regions)
    if dense:
        out = torch_dense.forward(q, k, v, key_regions, padding_mask, regions, scale)
        everything = padding_mask is None and key_regions.shape[-1] == regions[0] * regions[1]
        if everything or not has_nan(out):
            return out
    return torch_chunks.forward(q, k, v, key_regions, padding_mask, regions, scale)


@torch.library.impl(TORCH, "CompositeExplicitAutograd")
def _forward(q, k, v, key_regions, padding_mask, rows, columns, scale):
    return _portable(q, k, v, key_regions, padding_mask, (rows, columns), scale)


@torch.library.register_fake(TORCH)
def _(q, k, v, key_regions, padding_mask, rows, columns, scale):
    return q.new_empty(*q.shape[:-1], v.shape[-1])


@torch.library.impl(f"{TORCH}_backward", "CompositeExplicitAutograd")
def _backward(grad_out, q, k, v, key_regions, padding_mask, rows, columns, scale):
    return torch_chunks.backward(grad_out, q, k, v, key_regions, padding_mask, (rows, columns), scale)


@torch.library.register_fake(f"{TORCH}_backward")
def _(grad_out, q, k, v, key_regions, padding_mask, rows, columns, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _recompute(problem, grad_out, q, k, v, key_regions, padding_mask):
    rows, columns, scale = problem

    def attention(q, k, v):
        return (attend_gather(q, k, v, key_regions, padding_mask, (rows, columns), scale),)

    return recomputed_gradients(attention, (q, k, v), (grad_out,))


def _setup_context(ctx, inputs, output):
    *tensors, rows, columns, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.problem = rows, columns, scale


def _differentiate(ctx, grad_out):
    saved = ctx.saved_tensors  # activation checkpointing allows a single access
    if is_differentiated_again(grad_out, *saved[:3]):
        return *_recompute(ctx.problem, grad_out, *saved), None, None, None, None, None
    gradients = torch.ops.visionattn.routing_attention_backward(grad_out, *saved, *ctx.problem)
    return *gradients, None, None, None, None, None


torch.library.register_autograd(TORCH, _differentiate, setup_context=_setup_context)


@torch.library.impl(TRITON, "CompositeExplicitAutograd")
def _triton_forward(q, k, v, key_regions, padding_mask, rows, columns, scale):
    from visionattn.kernels.routing.triton import launch as triton_launch  # imports Triton on the first call

    with torch.cuda.device_of(q):
        return triton_launch.forward(q, k, v, key_regions, padding_mask, (rows, columns), scale)


@torch.library.register_fake(TRITON)
def _(q, k, v, key_regions, padding_mask, rows, columns, scale):
    lse = q.new_empty(q.shape[0], q.shape[3], q.shape[1], q.shape[2], dtype=torch.float32)
    return q.new_empty(*q.shape[:-1], v.shape[-1]), lse


@torch.library.impl(f"{TRITON}_backward", "CompositeExplicitAutograd")
def _triton_backward(grad_out, q, k, v, key_regions, padding_mask, out, lse, rows, columns, scale):
    from visionattn.kernels.routing.triton import launch as triton_launch

    with torch.cuda.device_of(q):
        return triton_launch.backward(grad_out, q, k, v, key_regions, padding_mask, out, lse, (rows, columns), scale)


@torch.library.register_fake(f"{TRITON}_backward")
def _(grad_out, q, k, v, key_regions, padding_mask, out, lse, rows, columns, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_triton_context(ctx, inputs, output):
    *tensors, rows, columns, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.problem = rows, columns, scale


def _differentiate_triton(ctx, grad_out, _):
    saved = ctx.saved_tensors  # activation checkpointing allows a single access
    if is_differentiated_again(grad_out, *saved[:3]):
        return *_recompute(ctx.problem, grad_out, *saved[:5]), None, None, None, None, None
    gradients = torch.ops.visionattn.routing_attention_triton_backward(grad_out, *saved, *ctx.problem)
    return *gradients, None, None, None, None, None


torch.library.register_autograd(TRITON, _differentiate_triton, setup_context=_setup_triton_context)


MEANS = "visionattn::region_means_triton"
torch.library.define(
    MEANS, "(Tensor q, Tensor k, Tensor? padding_mask, int rows, int columns) -> (Tensor, Tensor, Tensor)"
)


@torch.library.impl(MEANS, "CompositeExplicitAutograd")
def _triton_means(q, k, padding_mask, rows, columns):
    from visionattn.kernels.routing.triton import launch as triton_launch

    with torch.cuda.device_of(q):
        return triton_launch.means(q, k, padding_mask, (rows, columns))


@torch.library.register_fake(MEANS)
def _(q, k, padding_mask, rows, columns):
    regions = rows * columns
    q_means, k_means = (q.new_empty(q.shape[0], regions, x.shape[3] * x.shape[4], dtype=torch.float32) for x in (q, k))
    return q_means, k_means, q.new_empty(q.shape[0], regions, dtype=torch.int32)


def region_means_triton(
    q: Tensor, k: Tensor, padding_mask: Tensor | None, regions: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Means of queries and keys of each region, and its number of tokens, see `triton.launch.means`; no gradients."""
    return torch.ops.visionattn.region_means_triton(q, k, padding_mask, *regions)


def routing_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, key_regions: Tensor, padding_mask: Tensor | None, regions, scale: float
) -> Tensor:
    """The PyTorch backend; the arguments have been checked by `api`."""
    if is_plain(q, k, v) and not q.is_meta:
        # Without gradients, the dispatch of the operator can be skipped, a sixth of the time of a call on a small map.
        return _portable(q, k, v, key_regions, padding_mask, regions, scale)
    return torch.ops.visionattn.routing_attention(q, k, v, key_regions, padding_mask, *regions, scale)


def routing_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, key_regions: Tensor, padding_mask: Tensor | None, regions, scale: float
) -> Tensor:
    """The Triton backend; the arguments have been checked by `api`."""
    return torch.ops.visionattn.routing_attention_triton(q, k, v, key_regions, padding_mask, *regions, scale)[0]
