"""Class activation maps (LayerCAM) of any timm classifier."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionattn.inference.explain.attention import token_grid

__all__ = ["class_relevance"]


def class_relevance(model: nn.Module, image: Tensor, label: int | None = None) -> Tensor:
    """Return the class activation map of LayerCAM (Jiang et al., IEEE TIP 2021), summed over all levels.

    Args:
        model: timm model with ``feature_info``. Without a classifier, the gradient of the squared norm of the features
            is used.
        image: ``[1, C, H, W]``.
        label: class index; None is the top class.

    Returns:
        ``[H, W]`` in [0, 1].
    """
    found: list[tuple[Tensor, int]] = []

    def keep(channels: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, (tuple, list)) else output
            if isinstance(output, Tensor) and output.requires_grad:
                found.append((output, channels))

        return hook

    modules = dict(model.named_modules())
    levels = [info for info in model.feature_info if info["module"] in modules]
    handles = [modules[info["module"]].register_forward_hook(keep(info["num_chs"])) for info in levels]
    try:
        with torch.enable_grad():
            out = model(image.detach().clone().requires_grad_())
            classified = bool(getattr(model, "num_classes", 0))
            score = out[0, int(out[0].argmax()) if label is None else label] if classified else out.square().sum()
            grads = torch.autograd.grad(score, [tensor for tensor, _ in found], allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    total = torch.zeros(image.shape[2:])
    for (level, channels), grad in zip(found, grads, strict=True):
        product = None if grad is None else _as_map((grad.relu() * level).detach(), channels, model, image)
        if product is None:
            continue
        cam = product.sum(1, keepdim=True).relu().float().cpu()
        cam = F.interpolate(cam / cam.amax().clamp(min=1e-9), image.shape[2:], mode="bilinear", align_corners=False)
        total += cam[0, 0]
    return total / total.amax().clamp(min=1e-9)


def _as_map(x: Tensor, channels: int, model: nn.Module, image: Tensor) -> Tensor | None:
    """Convert NCHW, NHWC or token features to ``[1, C, h, w]``; return None if they do not form a map."""
    if x.dim() == 4:
        return x if x.shape[1] == channels else x.permute(0, 3, 1, 2) if x.shape[3] == channels else None
    if x.dim() != 3 or x.shape[2] != channels:
        return None
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    grid = token_grid(x.shape[1] - prefix, image.shape[2] / image.shape[3])
    return None if grid is None else x[:, prefix:].transpose(1, 2).unflatten(2, grid)
