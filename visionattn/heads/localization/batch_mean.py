"""Mean over all processes of distributed training, shared by the localization models."""

import torch.distributed as dist
from torch import Tensor

__all__ = ["batch_mean"]


def batch_mean(value: Tensor, sync: bool) -> Tensor:
    """Average a scalar over all processes.

    The gradient is that of the local value, as expected by DistributedDataParallel, which averages gradients.

    Args:
        value: scalar tensor.
        sync: whether to average; if False, or without distributed training, ``value`` is returned.
    """
    if not (sync and dist.is_available() and dist.is_initialized()):
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return value + (total / dist.get_world_size() - value).detach()
