"""Inference in half precision, with float32 where numbers are coordinates or probabilities."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["use_amp"]

DTYPES = {"cuda": torch.float16, "cpu": torch.bfloat16}


def use_amp(model: nn.Module) -> None:
    """Make backbone, neck and heads of a model compute under autocast: float16 on CUDA, bfloat16 on a CPU.

    Their outputs are converted to float32, so that regions are cropped, boxes decoded, overlapping ones suppressed and
    maps resized in float32. The weights remain in float32.

    Args:
        model: a model of mmengine, on its device.
    """
    device = next(model.parameters()).device.type
    for module in _parts(model):
        module.forward = _under_autocast(module.forward, device, DTYPES.get(device, torch.bfloat16))


def _parts(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest modules whose outputs are features or those of a head."""
    for name, child in model.named_children():
        if name == "roi_head":  # crops regions between its parts
            yield from (part for key in ("bbox_head", "mask_head") for part in _listed(getattr(child, key, None)))
        elif name != "data_preprocessor":
            yield from _listed(child)


def _listed(module: nn.Module | None) -> list[nn.Module]:
    """Return the modules of a list, such as the stages of Cascade R-CNN."""
    return [] if module is None else list(module) if isinstance(module, nn.ModuleList) else [module]


def _under_autocast(forward: Callable[..., Any], device: str, dtype: torch.dtype) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device, dtype):
            output = forward(*args, **kwargs)
        return _float32(output)

    return run


def _float32(value: Any) -> Any:
    """Return the floating-point tensors in nested containers as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return type(value)((key, _float32(entry)) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        parts = [_float32(entry) for entry in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: _float32(getattr(value, name)) for name in fields})
    return value
