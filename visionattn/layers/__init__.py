"""Modules over the kernels, one file per mechanism; everything common comes from `timm.layers`."""

from visionattn.layers.global_rpb import GlobalAttentionRpb
from visionattn.layers.neighborhood import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)
from visionattn.layers.rope import AxialRope
from visionattn.layers.routing import BiLevelRoutingAttention

__all__ = [
    "AxialRope",
    "BiLevelRoutingAttention",
    "GlobalAttentionRpb",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
]
