"""Bi-level routing attention (BiFormer)."""

from visionattn.kernels.routing import flops as flops
from visionattn.kernels.routing.api import bilevel_routing_attention, route_regions

__all__ = ["bilevel_routing_attention", "route_regions"]
