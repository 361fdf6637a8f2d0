"""Which implementation of an operator can run here, and the reason when one cannot."""

import importlib.util
import os
from dataclasses import dataclass

import torch

from visionattn.errors import BackendError

__all__ = ["Availability", "explain", "select"]

OPERATORS: dict[str, tuple[str, ...]] = {  # best first; the reference is the definition and is never picked
    "na1d": ("torch", "reference"),
    "na2d": ("torch", "reference"),
    "na3d": ("torch", "reference"),
    "bilevel_routing_attention": ("triton", "torch", "reference"),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Availability:
    """Whether one backend can run an operator; ``reason`` says why not, and is empty when it can."""

    backend: str
    can_run: bool
    reason: str = ""


def _triton_reason(device: torch.device, dtype: torch.dtype) -> str:
    """Why Triton kernels cannot run with this device and type; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; run: pip install triton"
    if dtype == torch.float64:
        return "the Triton kernels compute in float32; torch.float64 is for the torch and reference backends"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    if device.type != "cuda":
        return f"Triton kernels need a CUDA device, and the tensors are on {device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "Triton kernels need a GPU of compute capability 8.0 (Ampere) or later"
    return ""


def explain(op: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> list[Availability]:
    """Each backend of an operator, best first, whether it can run with this device and type, and why not.

    Args:
        op: ``"na1d"``, ``"na2d"``, ``"na3d"`` or ``"bilevel_routing_attention"``.

    Raises:
        ValueError: for an operator that does not exist.
    """
    if op not in OPERATORS:
        raise ValueError(f"op={op!r} is not an operator; there are {', '.join(OPERATORS)}")
    device = torch.device(device)
    result = []
    for backend in OPERATORS[op]:
        reason = ""
        if dtype not in DTYPES:
            reason = f"{dtype} is not supported; use one of {', '.join(map(str, DTYPES))}"
        elif device.type == "cuda" and not torch.cuda.is_available():
            reason = "this PyTorch sees no CUDA device"
        elif backend == "triton":
            reason = _triton_reason(device, dtype)
        result.append(Availability(backend, not reason, reason))
    return result


def select(op: str, device: torch.device, dtype: torch.dtype, backend: str | None = None) -> str:
    """The backend to use: the one named, else ``VISIONATTN_BACKEND``, else the best that can run.

    Raises:
        BackendError: if the named backend does not exist or cannot run, with the reason; nothing is substituted.
    """
    named = backend or os.environ.get("VISIONATTN_BACKEND") or None
    choices = explain(op, device, dtype)
    if named is None:
        for choice in choices:
            if choice.can_run and choice.backend != "reference":
                return choice.backend
        raise BackendError(f"{op}: no backend can run on {device} with {dtype}: {choices[0].reason}")
    for choice in choices:
        if choice.backend == named:
            if choice.can_run:
                return named
            raise BackendError(f"{op}: backend {named!r} cannot run: {choice.reason}")
    raise BackendError(f"{op} has no backend {named!r}; there are {', '.join(repr(c.backend) for c in choices)}")
