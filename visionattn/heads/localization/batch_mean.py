"""What the localization models share."""

import torch.distributed as dist
from torch import Tensor

__all__ = ["batch_mean"]


def batch_mean(value: Tensor, sync: bool) -> Tensor:
    """A scalar's mean over all processes where asked, with the gradient that averaging over processes expects."""
    if not (sync and dist.is_available() and dist.is_initialized()):
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total / dist.get_world_size() - value).detach()
