"""Attention modules, one file per mechanism."""

import timm  # noqa: F401  first: its import registers the backbones, which import modules of this package

from visionattn.layers.agent_attention import AgentAttention
from visionattn.layers.dual_cross_attention import DualCrossAttention
from visionattn.layers.efficient_probing import EfficientProbe, EfficientProbing
from visionattn.layers.ela import EfficientLocalAttention
from visionattn.layers.gated_positional import GatedPositionalAttention
from visionattn.layers.global_rpb import GlobalAttentionRpb
from visionattn.layers.inline_attention import InLineAttention
from visionattn.layers.insert import insert_after, replace_blocks
from visionattn.layers.neighborhood import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
)
from visionattn.layers.replace import ReplaceReport, filter_official, replace_attention
from visionattn.layers.rope import AxialRope
from visionattn.layers.routing import BiLevelRoutingAttention
from visionattn.layers.scattered import (
    AttentivePillarPool,
    CrossWindowFFN,
    ScatteredLinearAttention,
    ScatterFormerStage,
)
from visionattn.layers.sparse_conv import RowNorm, SparseConv3d, SparseTensor, SubMConv3d, SubMDepthwiseConv3d
from visionattn.layers.sparsifiner import SparsifinerAttention, record_reconstruction
from visionattn.layers.ulsam import ULSAM

__all__ = [
    "ULSAM",
    "AgentAttention",
    "AttentivePillarPool",
    "AxialRope",
    "BiLevelRoutingAttention",
    "CrossWindowFFN",
    "DualCrossAttention",
    "EfficientLocalAttention",
    "EfficientProbe",
    "EfficientProbing",
    "GatedPositionalAttention",
    "GlobalAttentionRpb",
    "InLineAttention",
    "NeighborhoodAttention1d",
    "NeighborhoodAttention2d",
    "NeighborhoodAttention3d",
    "ReplaceReport",
    "RowNorm",
    "ScatterFormerStage",
    "ScatteredLinearAttention",
    "SparseConv3d",
    "SparseTensor",
    "SparsifinerAttention",
    "SubMConv3d",
    "SubMDepthwiseConv3d",
    "filter_official",
    "insert_after",
    "record_reconstruction",
    "replace_attention",
    "replace_blocks",
]
