"""Attention and related operations as functions on tensors ``[batch, *spatial, heads, head_dim]``."""

from visionattn.kernels import backends
from visionattn.kernels.neighborhood import na1d, na2d, na3d
from visionattn.kernels.routing import bilevel_routing_attention, route_regions
from visionattn.kernels.scattered import scattered_linear_attention

__all__ = [
    "backends",
    "bilevel_routing_attention",
    "na1d",
    "na2d",
    "na3d",
    "route_regions",
    "scattered_linear_attention",
]
