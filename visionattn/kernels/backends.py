"""Which implementation of an operator can run here, and the reason when one cannot."""

import importlib.util
import os
from dataclasses import dataclass

import torch

from visionattn.errors import BackendError

__all__ = ["Availability", "explain", "select"]

OPERATORS: dict[str, tuple[str, ...]] = {  # best first; the reference is the definition and is never picked
    "na1d": ("triton", "torch", "reference"),
    "na2d": ("triton", "torch", "reference"),
    "na3d": ("triton", "torch", "reference"),
    "bilevel_routing_attention": ("triton", "torch", "reference"),
    "scattered_linear_attention": ("triton", "torch", "reference"),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TRITON_HEAD_DIM = 256
TRITON_HEAD_DIM_OF = {"scattered_linear_attention": 128}  # where it is less: this one holds matrices of that size
_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Availability:
    """Whether one backend can run an operator; ``reason`` says why not, and is empty when it can."""

    backend: str
    can_run: bool
    reason: str = ""


def _triton_refuses(op: str, device: torch.device, dtype: torch.dtype, head_dim: int | None) -> str:
    """Why the Triton kernels cannot run; empty if they can."""
    if not _HAS_TRITON:
        return "Triton is not installed; pip install triton brings it where PyTorch's CUDA builds run"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton kernels need a CUDA device, not {device.type}, or its interpreter: TRITON_INTERPRET=1"
    if dtype == torch.float64:
        return "torch.float64 is not supported by the Triton kernels; use backend='torch'"
    if device.type == "cuda" and torch.version.hip is not None:
        return "the Triton kernels are tested on NVIDIA GPUs only; use backend='torch'"
    if device.type == "cuda" and torch.cuda.get_device_properties(device).major < 8:
        return "the Triton kernels need compute capability 8.0 or newer; use backend='torch'"
    most = TRITON_HEAD_DIM_OF.get(op, TRITON_HEAD_DIM)
    if head_dim is not None and head_dim > most:
        return f"head_dim {head_dim} is over {most}, the most that the Triton kernels hold"
    return ""


def explain(
    op: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    head_dim: int | None = None,
) -> list[Availability]:
    """Each backend of an operator, best first, whether it can run with this device and type, and why not.

    Args:
        op: ``"na1d"``, ``"na2d"``, ``"na3d"``, ``"bilevel_routing_attention"`` or ``"scattered_linear_attention"``.
        head_dim: the larger one of the keys' and values' dimensions, if known.

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
            reason = _triton_refuses(op, device, dtype, head_dim)
        result.append(Availability(backend, not reason, reason))
    return result


def select(
    op: str, device: torch.device, dtype: torch.dtype, backend: str | None = None, *, head_dim: int | None = None
) -> str:
    """The backend to use: the one named, else ``VISIONATTN_BACKEND``, else the best that can run.

    Never picked unless named: the reference, and Triton's interpreter, which is for tests.

    Raises:
        BackendError: if the named backend does not exist or cannot run, with the reason; nothing is substituted.
    """
    named = backend or os.environ.get("VISIONATTN_BACKEND") or None
    if named in (None, "torch") and device.type == "cpu" and dtype in DTYPES and op in OPERATORS:
        return "torch"  # the answer of what follows, without its time: small maps take a tenth of a millisecond
    choices = explain(op, device, dtype, head_dim=head_dim)
    if named is None:
        for choice in choices:
            unasked = choice.backend == "reference" or (choice.backend == "triton" and device.type != "cuda")
            if choice.can_run and not unasked:
                return choice.backend
        raise BackendError(f"{op}: no backend can run on {device} with {dtype}: {choices[0].reason}")
    for choice in choices:
        if choice.backend == named:
            if choice.can_run:
                return named
            raise BackendError(f"{op}: backend {named!r} cannot run: {choice.reason}")
    raise BackendError(f"{op} has no backend {named!r}; there are {', '.join(repr(c.backend) for c in choices)}")
