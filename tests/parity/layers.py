"""Cases of the attention modules and of the layers around them, most with their gradients."""

from functools import partial

import torch
from torch import nn

from parity.recipe import Recipe, Result
from visionattn.layers import (
    ULSAM,
    AgentAttention,
    AttentivePillarPool,
    BiLevelRoutingAttention,
    CrossWindowFFN,
    EfficientLocalAttention,
    EfficientProbing,
    GatedPositionalAttention,
    GlobalAttentionRpb,
    InLineAttention,
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
    ScatteredLinearAttention,
    ScatterFormerStage,
    SparseConv3d,
    SparseTensor,
    SparsifinerAttention,
)
from visionattn.layers.pose_attention import PoseBlock, PoseBlocks
from visionattn.layers.spatial_reduction import SpatialReductionAttention

PLAIN = {  # constructor, shape of the input
    "neighborhood_1d": (partial(NeighborhoodAttention1d, 24, 3, 5, 3), (2, 31, 24)),
    "neighborhood_2d": (partial(NeighborhoodAttention2d, 24, 3, 7, 2), (2, 16, 19, 24)),
    "neighborhood_2d_padded": (partial(NeighborhoodAttention2d, 24, 3, 7, 2), (2, 6, 9, 24)),
    "neighborhood_2d_rope": (partial(NeighborhoodAttention2d, 24, 3, 5, qk_norm=True, rope=True), (2, 8, 9, 24)),
    "neighborhood_3d": (partial(NeighborhoodAttention3d, 16, 2, (3, 5, 3), (1, 1, 2)), (1, 4, 6, 7, 16)),
    "global_rpb": (partial(GlobalAttentionRpb, 24, 3, (6, 5)), (2, 6, 5, 24)),
    "routing": (partial(BiLevelRoutingAttention, 32, 4, 7, 4), (2, 14, 14, 32)),
    "routing_masked": (partial(BiLevelRoutingAttention, 32, 4, (4, 3), 3), (2, 13, 10, 32)),
    "routing_input": (partial(BiLevelRoutingAttention, 32, 4, 4, 3, padding="input"), (2, 13, 10, 32)),
    "routing_projected": (partial(BiLevelRoutingAttention, 32, 4, 4, 3, padding="projected"), (2, 13, 10, 32)),
    "routing_soft": (partial(BiLevelRoutingAttention, 32, 4, 4, 3, soft_routing=True), (2, 12, 8, 32)),
    "routing_pooled": (
        partial(BiLevelRoutingAttention, 32, 4, 4, 3, kv_pool="ada_avgpool", kv_pool_size=2),
        (2, 16, 16, 32),
    ),
    "agent_deit": (partial(AgentAttention, 48, 4, 7, 16, num_prefix_tokens=1), (2, 50, 48)),
    "agent_swin": (partial(AgentAttention, 48, 4, 7, 9, qkv_bias=True), (2, 49, 48)),
    "inline_deit": (partial(InLineAttention, 48, 4, 7, 1), (2, 50, 48)),
    "inline_swin_relu": (partial(InLineAttention, 48, 4, 7, qkv_bias=True, kernel_func="relu"), (2, 49, 48)),
    "inline_swin_exp": (partial(InLineAttention, 48, 4, 7, qkv_bias=True, kernel_func="exp"), (2, 49, 48)),
    "gpsa": (partial(GatedPositionalAttention, 48, 4, 7), (2, 49, 48)),
    "efficient_probing": (partial(EfficientProbing, 48, 6, 2), (2, 37, 48)),
    "ela_t": (partial(EfficientLocalAttention, 64, "T"), (2, 64, 9, 14)),
    "ela_b": (partial(EfficientLocalAttention, 64, "B"), (2, 64, 9, 14)),
    "ela_s": (partial(EfficientLocalAttention, 64, "S"), (2, 64, 9, 14)),
    "ela_l": (partial(EfficientLocalAttention, 64, "L"), (2, 64, 9, 14)),
    "ulsam": (partial(ULSAM, 32, 4), (2, 32, 9, 14)),
}


def _plain(make, shape):
    def run(recipe: Recipe) -> Result:
        return recipe.run(recipe.module(make()), recipe.input("x", *shape), grad=True)

    return run


def ulsam_training(recipe: Recipe) -> Result:
    """Batch statistics in place of the running ones, which change."""
    layer = recipe.module(ULSAM(32, 4)).train()
    result = recipe.run(layer, recipe.input("x", 3, 32, 9, 14), grad=True)
    statistics = [b.detach().flatten() for n, b in layer.named_buffers() if not n.endswith("num_batches_tracked")]
    return result | {"running statistics": torch.cat(statistics)}


def sparsifiner(recipe: Recipe) -> Result:
    layer = recipe.module(SparsifinerAttention(48, 4, 7, 1, qkv_bias=True, keep_rate=0.5, reduce_n=3))
    with torch.no_grad():
        out, forecast = layer.forward_forecast(recipe.input("x", 2, 50, 48))
    kept = forecast.mask.to(recipe.dtype)
    return {"output": out, "mask": kept, "forecast": forecast.approximate, "coefficients": forecast.coefficients}


def spatial_reduction(recipe: Recipe) -> Result:
    """Dense, within fixed groups, and with the mask of the keys attended to least."""
    layer, x, size = recipe.module(SpatialReductionAttention(24, 3, 2)), recipe.input("x", 2, 80, 24), (8, 10)
    with torch.no_grad():
        dense, mask = layer.forward_with_mask(x, size, 0.25)
        outputs = {"dense": dense, "grouped": layer(x, size, fixed_sparse=True), "masked": layer(x, size, keep=mask)}
    return {**outputs, "mask": mask.to(recipe.dtype)}


def _pose(attention: str, count: int):
    def run(recipe: Recipe) -> Result:
        norm = partial(nn.LayerNorm, eps=1e-6)
        blocks = recipe.module(PoseBlocks(PoseBlock(24, 3, attention, norm_layer=norm) for _ in range(count)))
        prefix, patches = recipe.input("prefix", 2, 1, 24), recipe.input("patches", 2, 12, 4, 24)
        mask = recipe.mask("mask", 0.4, 2, 12, 4).to(recipe.dtype)
        prefix.requires_grad_()
        patches.requires_grad_()
        outputs = blocks(prefix, patches, mask)
        result = {"prefix": outputs[0], "patches": outputs[1]}
        return result | recipe.gradients(outputs, [prefix, patches], blocks)

    return run


def _sparse_tensor(recipe: Recipe, dim: int, shape: tuple[int, int, int], share: float = 0.15) -> SparseTensor:
    coords = recipe.voxels("voxels", share, 2, shape)
    return SparseTensor(recipe.input("features", len(coords), dim, grad=True), coords, shape, 2)


def _voxels(make, dim, shape):
    def run(recipe: Recipe) -> Result:
        layer, x = recipe.module(make()), _sparse_tensor(recipe, dim, shape)
        out = layer(x)
        # The order of the output voxels is not part of the interface.
        depth, height, width = out.spatial_shape
        b, z, y, x_ = out.coords.unbind(1)
        rows = out.features[(((b * depth + z) * height + y) * width + x_).argsort()]
        return {"output": rows, **recipe.gradients([rows], [x.features], layer)}

    return run


def scattered_attention(recipe: Recipe) -> Result:
    layer, x = recipe.module(ScatteredLinearAttention(32, 4)), recipe.input("x", 84, 32)
    offsets = torch.tensor([0, 1, 40, 40, 53, 84])
    return recipe.run(layer, x, offsets, grad=True)


CASES = {
    **{name: _plain(*case) for name, case in PLAIN.items()},
    "ulsam_training": ulsam_training,
    "sparsifiner": sparsifiner,
    "spatial_reduction": spatial_reduction,
    "pose_spatial": _pose("spatial", 1),
    "pose_joint": _pose("joint", 2),
    "pose_spatiotemporal": _pose("spatiotemporal", 2),
    "scattered_attention": scattered_attention,
    "cross_window_ffn": _voxels(partial(CrossWindowFFN, 32, 4), 32, (4, 12, 10)),
    "scatterformer_stage": _voxels(partial(ScatterFormerStage, 32, 4, 2, 4), 32, (4, 12, 10)),
    "attentive_pillar_pool": _voxels(partial(AttentivePillarPool, 32, 4, 4), 32, (4, 12, 10)),
    "sparse_conv_layer": _voxels(partial(SparseConv3d, 16, 24, 3, 2, 1), 16, (5, 10, 8)),
}
