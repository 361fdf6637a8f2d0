"""Modules over the kernels, one file per mechanism; everything common comes from `timm.layers`."""

from visionattn.layers.global_rpb import GlobalAttentionRpb
from visionattn.layers.neighborhood import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)
from visionattn.layers.rope import AxialRope
from visionattn.layers.routing import BiLevelRoutingAttention
from visionattn.layers.scattered import (
    AttentivePillarPool,
    CrossWindowFFN,
    ScatteredLinearAttention,
    ScatterFormerStage,
)
from visionattn.layers.sparse_conv import RowNorm, SparseConv3d, SparseTensor, SubMConv3d, SubMDepthwiseConv3d
from visionattn.layers.voxel_encoder import VoxelEncoder

__all__ = [
    "AttentivePillarPool",
    "AxialRope",
    "BiLevelRoutingAttention",
    "CrossWindowFFN",
    "GlobalAttentionRpb",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
    "RowNorm",
    "ScatterFormerStage",
    "ScatteredLinearAttention",
    "SparseConv3d",
    "SparseTensor",
    "SubMConv3d",
    "SubMDepthwiseConv3d",
    "VoxelEncoder",
]
