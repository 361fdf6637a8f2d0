"""Transforms of PyTorch that the operators of the backends do not support by themselves.

The backends compute their gradients by hand. `torch.func` transforms (``grad``, ``vmap``, ``jvp``, ...), forward-mode
differentiation and second derivatives therefore use an implementation with differentiable PyTorch operators, which
takes more time and memory.
"""

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    "autocast_dtype",
    "full_precision",
    "is_differentiated_again",
    "is_plain",
    "is_symbolic",
    "is_transformed",
    "recomputed_gradients",
]


def is_transformed(*tensors: Tensor | None) -> bool:
    """Return True inside a `torch.func` transform, or if a tensor has a tangent of forward-mode differentiation."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def is_plain(*tensors: Tensor | None) -> bool:
    """Return True if there is no gradient, compiler, tracer or dispatch mode."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._len_torch_dispatch_stack():
        return False
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return False
    return type(tensors[0]) is Tensor


def is_symbolic(*tensors: Tensor) -> bool:
    """Return True if the values of tensors cannot be inspected: transforms, tracing, compilation, meta tensors."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
        return True
    return is_transformed(*tensors) or any(x.is_meta for x in tensors)


def is_differentiated_again(*tensors: Tensor | None) -> bool:
    """Return True if the gradients that are about to be computed must be differentiable or are batched."""
    given = [x for x in tensors if x is not None]
    if is_transformed(*given) or any(torch._C._functorch.is_legacy_batchedtensor(x) for x in given):
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in given)


def recomputed_gradients(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor | None], upstream: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of a function of differentiable operators; differentiable themselves if gradients are enabled.

    Args:
        function: maps `inputs` to a sequence of tensors.
        inputs: arguments; those that do not require gradients get None.
        upstream: gradient of each result, or None.
    """
    again = torch.is_grad_enabled()
    wanted = [i for i, x in enumerate(inputs) if x is not None and x.requires_grad]
    with torch.enable_grad():
        results = function(*inputs)
        pairs = [(y, grad) for y, grad in zip(results, upstream, strict=True) if grad is not None and y.requires_grad]
        found = torch.autograd.grad(
            [y for y, _ in pairs], [inputs[i] for i in wanted], [grad for _, grad in pairs],
            create_graph=again, allow_unused=True,
        )  # fmt: skip
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, grad in zip(wanted, found, strict=True):
        gradients[i] = grad
    return gradients


def _is_autocast_enabled(device: str) -> bool:
    # `torch.amp.is_autocast_available` would not need the special case, but PyTorch 2.11 cannot compile it.
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which an operator computes: that of autocast if it is enabled, except for float64.

    Args:
        device: type of the device, such as ``"cuda"``.
        dtype: dtype of the inputs.
    """
    if dtype == torch.float64 or not _is_autocast_enabled(device):
        return dtype
    return torch.get_autocast_dtype(device)


def full_precision(device: str) -> contextlib.AbstractContextManager:
    """Disable autocast on a device type if it is enabled there.

    If it is not, nothing is done, because regions without autocast cannot be saved by `torch.export`.
    """
    if _is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()
