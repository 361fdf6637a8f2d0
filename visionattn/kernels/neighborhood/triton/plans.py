"""Calls of the operator by plans: launches prepared once for the layout of the arguments.

Selecting tiles and building the arguments of the kernels takes the host longer than a small map takes the GPU, so plans
are kept, and a call only allocates its results and launches.
"""

import os
from typing import Any

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.triton import launch as triton_launch
from visionattn.kernels.neighborhood.triton.problem import Problem, precision
from visionattn.kernels.triton_launch import Launch, Layout, Prepared, layout, plan_cache

__all__ = ["backward", "forward"]

ZEROED = ("partial_ptr",)  # memory that kernels add to, or write only in part


def _layout(x: Tensor | None) -> Layout | None:
    return None if x is None else layout(x)


def _examples(layouts: tuple[Layout | None, ...], device: torch.device) -> list[Tensor | None]:
    """Tensors of the layouts; with memory only if the tiles are selected by timing."""
    where = device if _tunes() else torch.device("meta")
    return [
        None if x is None else torch.empty_strided(x[0], x[1], dtype=x[2], device=where) for x in layouts
    ]  # fmt: skip


def _tunes() -> bool:
    return os.environ.get("VISIONATTN_AUTOTUNE") == "1"


class _Plan:
    """Prepared launches, and the tensors that they need beside the arguments of the call."""

    def __init__(self, launches: list[Launch], given: set[str]) -> None:
        self.launches = [Prepared(launch) for launch in launches]
        new = {
            name: x for launch in launches for name, x in launch.arguments.items()
            if isinstance(x, Tensor) and name not in given
        }  # fmt: skip
        self.new = [(name, tuple(x.shape), x.dtype, name in ZEROED) for name, x in new.items()]

    def __call__(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Run the launches. Tensors that are not given are allocated, and added to ``tensors``."""
        for name, shape, dtype, is_zero in self.new:
            tensors[name] = (torch.zeros if is_zero else torch.empty)(shape, dtype=dtype, device=device)
        for run in self.launches:
            run(tensors)


@plan_cache
def _forward_plan(layouts: tuple[Layout | None, ...], geometry: tuple, device: torch.device, *_: Any) -> _Plan:
    problem = Problem.of(*_examples(layouts, device), *geometry, device=device)
    *_, launch = triton_launch.forward(problem)
    return _Plan([launch], {"q_ptr", "k_ptr", "v_ptr", "rpb_ptr", "extra_k_ptr", "extra_v_ptr"})


@plan_cache
def _backward_plan(
    layouts: tuple[Layout | None, ...], geometry: tuple, device: torch.device, packed: bool, *_: Any
) -> _Plan:
    *inputs, grad_out, grad_lse, out, lse = _examples(layouts, device)
    problem = Problem.of(*inputs, *geometry, device=device)
    _, launches = triton_launch.backward(problem, grad_out, grad_lse, out, lse, packed=packed)
    given = ("q", "k", "v", "rpb", "extra_k", "extra_v", "grad_out", "grad_lse", "out", "lse")
    return _Plan(launches, {f"{name}_ptr" for name in (*given, "grad_q", "grad_k", "grad_v")})


def forward(
    q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, extra_k: Tensor | None, extra_v: Tensor | None, *geometry: Any
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp.

    Args:
        geometry: kernel size, stride, dilation, causal axes and scale, all but the last as tuples.
    """
    rpb = rpb if rpb is None else rpb.contiguous()
    layouts = (layout(q), layout(k), layout(v), _layout(rpb), _layout(extra_k), _layout(extra_v))
    plan = _forward_plan(layouts, geometry, q.device, precision(q.dtype), _tunes())
    tensors = dict(q_ptr=q, k_ptr=k, v_ptr=v, rpb_ptr=rpb, extra_k_ptr=extra_k, extra_v_ptr=extra_v)
    plan(tensors, q.device)
    return tensors["out_ptr"], tensors["lse_ptr"]


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    tensors: tuple[Tensor | None, ...],
    geometry: tuple,
    packed: bool = False,
) -> list[Tensor | None]:
    """Gradients of q, k, v, the table and the additional keys and values; ``tensors`` are these arguments.

    With ``packed`` q, k and v are views of one tensor ``[batch, *axes, 3, heads, head_dim]``, and the result starts
    with its gradient instead of the three.
    """
    q, k, v, rpb, extra_k, extra_v = tensors
    rpb = rpb if rpb is None else rpb.contiguous()
    out, lse = out.contiguous(), lse.contiguous()
    grad_lse = grad_lse if grad_lse is None else grad_lse.contiguous()
    given = dict(
        q_ptr=q, k_ptr=k, v_ptr=v, rpb_ptr=rpb, extra_k_ptr=extra_k, extra_v_ptr=extra_v, grad_out_ptr=grad_out,
        grad_lse_ptr=grad_lse, out_ptr=out, lse_ptr=lse,
    )  # fmt: skip
    layouts = tuple(map(_layout, given.values()))
    plan = _backward_plan(layouts, geometry, q.device, packed, precision(q.dtype), _tunes())
    if packed:
        grads = [torch.empty(*q.shape[:-2], 3, *q.shape[-2:], dtype=q.dtype, device=q.device)]
        given["grad_q_ptr"], given["grad_k_ptr"], given["grad_v_ptr"] = grads[0].unbind(-3)
    else:
        grads = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v)]
        given["grad_q_ptr"], given["grad_k_ptr"], given["grad_v_ptr"] = grads
    plan(given, q.device)
    for x, name in ((tensors[3], "partial_ptr"), (extra_k, "partial_k_ptr"), (extra_v, "partial_v_ptr")):
        # The second stage of the reductions.
        grads.append(None if x is None else given[name].sum(0).view(x.shape).to(x.dtype))
    return grads
