"""Modules over the kernels, one file per mechanism; everything common comes from `timm.layers`."""

from visionattn.layers.global_rpb import GlobalAttentionRpb
from visionattn.layers.neighborhood import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)

__all__ = [
    "GlobalAttentionRpb",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
]
