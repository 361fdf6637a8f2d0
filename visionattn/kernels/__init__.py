"""Attention on tensors: functions over layouts ``[batch, *spatial, heads, head_dim]``, no modules."""

from visionattn.kernels import backends
from visionattn.kernels.neighborhood import na1d, na2d, na3d

__all__ = ["backends", "na1d", "na2d", "na3d"]
