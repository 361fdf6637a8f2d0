"""Neighborhood attention by the NATTEN library, if it is installed: ``backend="natten"``.

NATTEN (https://natten.org) since 0.20 has kernels for CUDA devices, without a position bias. It is not a dependency of
this package. `visionattn.compat.natten` is the reverse: its interface on top of the kernels of this package.
"""

import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from visionattn.errors import BackendError

__all__ = ["is_preferred", "neighborhood_attention_natten", "refused", "unsupported"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cuda",)
OLDEST = (0, 20)


def _library() -> ModuleType | None:
    """Return the NATTEN library, or None if it is not installed; the interface of this package does not count."""
    if getattr(sys.modules.get("natten"), "__visionattn__", False) or importlib.util.find_spec("natten") is None:
        return None
    return importlib.import_module("natten")


def is_preferred() -> bool:
    """Return True if the environment variable ``VISIONATTN_NATTEN`` is 1: use NATTEN wherever it can run."""
    return os.environ.get("VISIONATTN_NATTEN") == "1"


def unsupported(device: torch.device, dtype: torch.dtype) -> str:
    """Return the reason why NATTEN cannot run on a device, or an empty string."""
    if dtype not in DTYPES:
        return f"{dtype} is not supported by NATTEN"
    if device.type not in DEVICES:
        return f"NATTEN needs a CUDA device, got {device.type}"
    library = _library()
    if library is None:
        return "NATTEN is not installed; see https://natten.org"
    version = str(getattr(library, "__version__", ""))
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or tuple(map(int, found.groups())) < OLDEST:
        return f"NATTEN {version} is older than 0.20"
    return ""


def refused(
    rank: int, device: torch.device, dtype: torch.dtype, kernel_size: Sequence[int], has_rpb: bool, return_lse: bool
) -> str:
    """Return the reason why NATTEN cannot solve a problem, or an empty string."""
    if has_rpb:
        return "NATTEN has no relative position bias"
    if min(kernel_size) < 2:
        return f"NATTEN needs a `kernel_size` of at least 2, got {tuple(kernel_size)}"
    if reason := unsupported(device, dtype):
        return reason
    if return_lse and "return_lse" not in inspect.signature(getattr(_library(), f"na{rank}d")).parameters:
        return "this version of NATTEN does not return the log-sum-exp"
    return ""


def neighborhood_attention_natten(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extra_k: Tensor | None,
    extra_v: Tensor | None,
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    is_causal: tuple[bool, ...],
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output, and the log-sum-exp if it is asked for; the arguments have been checked by `neighborhood.api`.

    Raises:
        BackendError: a scale of 0, which NATTEN takes for its default.
    """
    if scale == 0:
        raise BackendError("backend 'natten' cannot run: NATTEN has no `scale` of 0")
    options = dict(kernel_size=kernel_size, stride=stride, dilation=dilation, is_causal=is_causal, scale=scale)
    if extra_k is not None:
        options |= dict(additional_keys=extra_k, additional_values=extra_v)
    if return_lse:
        options["return_lse"] = True
    result = getattr(_library(), f"na{q.dim() - 3}d")(q, k, v, **options)
    return result if return_lse else (result, None)
