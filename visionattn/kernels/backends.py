"""Backends of the operators: which ones can run on a device, and the reason if one cannot."""

import importlib.util
import os
from dataclasses import dataclass

import torch

from visionattn.errors import BackendError
from visionattn.kernels import natten

__all__ = ["Availability", "explain", "select"]

OPERATORS: dict[str, tuple[str, ...]] = {  # best first; natten and the reference are not selected automatically
    "na1d": ("triton", "torch", "natten", "reference"),
    "na2d": ("triton", "torch", "natten", "reference"),
    "na3d": ("triton", "torch", "natten", "reference"),
    "bilevel_routing_attention": ("triton", "torch", "reference"),
    "scattered_linear_attention": ("triton", "torch", "reference"),
    "sparse_conv3d": ("triton", "torch", "reference"),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TRITON_HEAD_DIM = 256
# This operator keeps matrices of head_dim x value_dim in registers.
TRITON_HEAD_DIM_OF = {"scattered_linear_attention": 128}
_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run an operator; ``reason`` is empty if it can."""

    backend: str
    can_run: bool
    reason: str = ""


def _triton_unsupported(op: str, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str:
    """The reason why the Triton kernels cannot run; empty if they can."""
    if not _HAS_TRITON:
        return "Triton is not installed; run: pip install triton (on platforms with CUDA builds of PyTorch)"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the Triton kernels need a CUDA device, got {device.type}, or Triton's interpreter: TRITON_INTERPRET=1"
    if dtype == torch.float64:
        return "torch.float64 is not supported by the Triton kernels; use backend='torch'"
    if device.type == "cuda" and torch.version.hip is not None:
        return "the Triton kernels are tested on NVIDIA GPUs only; use backend='torch'"
    if device.type == "cuda" and torch.cuda.get_device_properties(device).major < 8:
        return "the Triton kernels need compute capability 8.0 or newer; use backend='torch'"
    most = TRITON_HEAD_DIM_OF.get(op, TRITON_HEAD_DIM)
    if head_dim is not None and head_dim > most:
        return f"the Triton kernels support a head_dim of up to {most}, got {head_dim}"
    return ""


def explain(
    op: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    head_dim: int | None = None,
) -> list[Availability]:
    """List the backends of an operator, best first, with whether each can run and the reason if it cannot.

    Args:
        op: ``"na1d"``, ``"na2d"``, ``"na3d"``, ``"bilevel_routing_attention"``, ``"scattered_linear_attention"`` or
            ``"sparse_conv3d"``, also for the depthwise convolution.
        device: the device of the tensors.
        dtype: the dtype of the tensors.
        head_dim: the larger of the head dimensions of keys and values, if known.

    Raises:
        ValueError: an unknown operator.
    """
    if op not in OPERATORS:
        raise ValueError(f"`op` must be one of {', '.join(OPERATORS)}, got {op!r}")
    device = torch.device(device)
    result = []
    for backend in OPERATORS[op]:
        reason = ""
        if dtype not in DTYPES:
            reason = f"{dtype} is not supported; supported are {', '.join(map(str, DTYPES))}"
        elif device.type == "cuda" and not torch.cuda.is_available():
            reason = "PyTorch has no CUDA device available"
        elif backend == "triton":
            reason = _triton_unsupported(op, device, dtype, head_dim)
        elif backend == "natten":
            reason = natten.unsupported(device, dtype)
        result.append(Availability(backend, not reason, reason))
    return result


def select(
    op: str, device: torch.device, dtype: torch.dtype, backend: str | None = None, *, head_dim: int | None = None
) -> str:
    """Select a backend: the given one, else ``VISIONATTN_BACKEND``, else the best that can run.

    The reference, the NATTEN library and Triton's interpreter, which is for tests, are used only if given explicitly.

    Raises:
        BackendError: the given backend does not exist or cannot run; there is no fallback to another one.
    """
    named = backend or os.environ.get("VISIONATTN_BACKEND") or None
    if named in (None, "torch") and device.type == "cpu" and dtype in DTYPES and op in OPERATORS:
        return "torch"  # shortcut for the common case: calls on small maps take a tenth of a millisecond
    choices = explain(op, device, dtype, head_dim=head_dim)
    if named is None:
        for choice in choices:
            unasked = choice.backend in ("reference", "natten") or (
                choice.backend == "triton" and device.type != "cuda"
            )
            if choice.can_run and not unasked:
                return choice.backend
        raise BackendError(f"{op}: no backend can run on {device} with {dtype}: {choices[0].reason}")
    for choice in choices:
        if choice.backend == named:
            if choice.can_run:
                return named
            raise BackendError(f"{op}: backend {named!r} cannot run: {choice.reason}")
    raise BackendError(f"{op}: `backend` must be one of {', '.join(repr(c.backend) for c in choices)}, got {named!r}")
