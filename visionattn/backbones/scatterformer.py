"""ScatterFormer: a LiDAR backbone that maps the voxels of a point cloud to a bird's-eye-view feature map.

He et al., "ScatterFormer: Efficient Voxel Transformer with Scattered Linear Attention" (ECCV 2024, arXiv 2401.00912).
Parameter names are the official ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import create_classifier, register_notrace_function, register_notrace_module
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from visionattn.backbones._conversion import Conversion, backbone_tensors
from visionattn.backbones._weights import checkpoint_filter_fn, register_description
from visionattn.layers.scattered import AttentivePillarPool, ScatterFormerStage
from visionattn.layers.sparse_conv import RowNorm, SparseConv3d, SparseTensor, SubMConv3d

__all__ = ["ScatterFormer"]


@register_notrace_module  # sparse convolutions have data-dependent shapes
class _SubMBlock(nn.Module):
    """Residual block of two submanifold convolutions."""

    def __init__(self, dim: int, device: torch.device | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = SubMConv3d(dim, dim, device=device, dtype=dtype), RowNorm(dim, device, dtype)
        self.conv2, self.bn2 = SubMConv3d(dim, dim, device=device, dtype=dtype), RowNorm(dim, device, dtype)

    def forward(self, x: SparseTensor) -> SparseTensor:
        y = self.conv1(x)
        y = self.conv2(y.with_features(self.bn1(y.features).relu()))
        return x.with_features((self.bn2(y.features) + x.features).relu())


@register_notrace_module
class _ConvNormReLU(nn.Sequential):
    """Sparse convolution, norm and ReLU."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self[0](x)
        return x.with_features(self[1](x.features).relu())


@register_notrace_function  # torch.fx does not wrap functions whose names start with an underscore
def dense_voxels(x: Tensor, depth: int) -> SparseTensor:
    """Return a sparse tensor with one voxel per pixel of ``[B, C, H, W]``, in the lowest of `depth` layers."""
    batch, _, height, width = x.shape
    sample, row, column = torch.meshgrid(
        *(torch.arange(n, device=x.device) for n in (batch, height, width)), indexing="ij"
    )
    coords = torch.stack([sample, torch.zeros_like(sample), row, column], -1).view(-1, 4)
    return SparseTensor(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), coords, (depth, height, width), batch)


class ScatterFormer(nn.Module):
    """ScatterFormer: sparse convolutions, two stages of scattered linear attention, and attentive pillar pooling.

    `forward_sparse` takes voxels. The timm interface takes dense maps ``[B, in_chans, H, W]``, whose pixels become
    voxels in the lowest layer of the grid; the model then is an image backbone with stride 2.

    Args:
        in_chans: channels of the voxels.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for no pooling.
        drop_rate: dropout rate before the classifier.
        embed_dim: channels.
        num_heads: heads of the window attention.
        depths: number of layers of the two stages.
        window_size: window size in cells of each stage's grid; even.
        grid_size: number of voxels along x, y, z. The model's grid has one more layer in z, and the pillars of the
            second stage must be ``(z + 1) // 4`` voxels high. `forward_sparse` uses x and y, too.
        stem_depth: number of residual blocks of sparse convolutions in the stem.
        pool_heads: heads of the pillar pooling.
        backend: backend of `visionattn.kernels.scattered_linear_attention`; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        in_chans: int = 64,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        embed_dim: int = 128,
        num_heads: int = 4,
        depths: Sequence[int] = (3, 3),
        window_size: int = 12,
        grid_size: Sequence[int] = (480, 480, 32),
        stem_depth: int = 3,
        pool_heads: int = 8,
        backend: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(depths) != 2 or min(depths) < 1:
            raise ValueError(f"`depths` must be two integers >= 1, got {tuple(depths)}")
        if len(grid_size) != 3 or min(grid_size) < 1:
            raise ValueError(f"`grid_size` must be three integers >= 1 (x, y, z), got {tuple(grid_size)}")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes, self.drop_rate = in_chans, num_classes, drop_rate
        self.grid_size, self.grad_checkpointing = tuple(int(n) for n in grid_size), False
        # The published model adds a layer of voxels; cpe's last layer and stage1.2 then halve the height.
        self.depth = self.grid_size[2] + 1
        halved = (self.depth - 3) // 2 + 1
        pillar = (halved - 1) // 2 + 1 if halved > 0 else 0
        if pillar != self.depth // 4 or pillar < 1:
            raise ValueError(
                f"z of `grid_size` must be a multiple of 4, or 1 or 2 more, got {self.grid_size} (pillars of {pillar} "
                f"voxels for {self.depth // 4} position embeddings)"
            )
        self.cpe = nn.ModuleList(
            [
                _ConvNormReLU(SubMConv3d(in_chans, embed_dim, bias=False, **dd), RowNorm(embed_dim, **dd)),
                *[_SubMBlock(embed_dim, device, dtype) for _ in range(stem_depth)],
                _ConvNormReLU(
                    SparseConv3d(embed_dim, embed_dim, (3, 1, 1), (2, 1, 1), 0, **dd), RowNorm(embed_dim, **dd)
                ),
            ]
        )
        stage = dict(num_heads=num_heads, window_size=window_size, backend=backend, **dd)
        self.stage1 = nn.ModuleList(
            [
                ScatterFormerStage(embed_dim, depth=depths[0], **stage),
                RowNorm(embed_dim, **dd),
                SparseConv3d(embed_dim, embed_dim, 3, 2, 1, **dd),
            ]
        )
        self.stage2 = nn.ModuleList([ScatterFormerStage(embed_dim, depth=depths[1], **stage), RowNorm(embed_dim, **dd)])
        self.app = AttentivePillarPool(embed_dim, pillar, pool_heads, **dd)
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=1, module="cpe"),
            dict(num_chs=embed_dim, reduction=1, module="stage1"),
            dict(num_chs=embed_dim, reduction=2, module="app"),
        ]
        self.num_features = embed_dim
        self.head_drop = nn.Dropout(drop_rate)
        self._set_classifier(num_classes, global_pool, device, dtype)

    def _set_classifier(self, num_classes: int, global_pool: str, device: Any = None, dtype: Any = None) -> None:
        pool, head = create_classifier(self.num_features, num_classes, global_pool, device=device, dtype=dtype)
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * pool.feat_mult()
        self.global_pool, self.head = pool.train(self.training), head.train(self.training)

    def forward_sparse(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Return the bird's-eye-view map of voxels.

        Args:
            features: ``[V, in_chans]``; V may be 0.
            coords: int64 ``[V, 4]``, unique (batch, z, y, x) within `grid_size`, in any order.
            batch_size: number of samples, including those without voxels.

        Returns:
            ``[batch_size, embed_dim, ceil(grid y / 2), ceil(grid x / 2)]``, zero where a pillar has no voxels.
        """
        return self.forward_pillars(features, coords, batch_size).dense()[:, :, 0]

    def forward_pillars(self, features: Tensor, coords: Tensor, batch_size: int) -> SparseTensor:
        """Return the occupied pillars as rows sorted by (batch, y, x); arguments as for `forward_sparse`.

        Raises:
            ValueError: if the pillar pooling was pruned.
        """
        if self.app is None:
            raise ValueError("the pillar pooling was removed by `prune_intermediate_layers`; create the model again")
        x, y, _ = self.grid_size
        return self._levels(SparseTensor(features, coords, (self.depth, y, x), batch_size))[-1]

    def _levels(self, x: SparseTensor, last: int = 2, norm: bool = True) -> list[SparseTensor]:
        """Return the outputs of the stem, the first stage and the pooling, up to level `last` or the last one kept."""
        for layer in self.cpe:
            x = self._run(layer, x)
        levels = [x]
        if last >= 1 and self.stage1 is not None:
            x = self._run(self.stage1[0], x)
            x = x.with_features(self.stage1[1](x.features))
            levels.append(x)
        if last >= 2 and self.app is not None:
            x = self._run(self.stage2[0], self.stage1[2](x))
            levels.append(self.app(x.with_features(self.stage2[1](x.features)), norm))
        return levels

    def _run(self, layer: nn.Module, x: SparseTensor) -> SparseTensor:
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            return layer(x)
        kept: list[SparseTensor] = []

        def run(features: Tensor) -> Tensor:
            kept.append(layer(x.with_features(features)))
            return kept[-1].features

        features = checkpoint(run, x.features)
        return kept[0].with_features(features)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return features ``[B, embed_dim, ceil(H / 2), ceil(W / 2)]`` of dense maps ``[B, in_chans, H, W]``."""
        return self._levels(dense_voxels(x, self.depth))[-1].dense()[:, :, 0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify features; returns logits ``[B, num_classes]`` or the classifier's input."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[B, num_classes]`` of dense maps ``[B, in_chans, H, W]``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the final features and the feature maps of selected levels: stem, first stage, pillar pooling.

        Args:
            x: dense maps ``[B, in_chans, H, W]``.
            indices: levels to return; an integer n selects the last n, None selects all.
            norm: apply the final norm, that of the pillar pooling, to the map of the last level.
            stop_early: do not run levels after the last selected one.
            output_fmt: layout of the maps; must be ``"NCHW"``.
            intermediates_only: return only the list of maps.

        Returns:
            The final features, as returned by `forward_features`, and the list of maps ``[B, embed_dim, H / r, W /
            r]``. Maps of the first two levels are those of the lowest layer of voxels, which holds the pixels.

        Raises:
            ValueError: if `output_fmt` is unknown.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"`output_fmt` must be 'NCHW', got {str(output_fmt)!r}")
        take, highest = feature_take_indices(len(self.feature_info), indices)
        levels = self._levels(dense_voxels(x, self.depth), highest if stop_early else 2, norm=False)
        maps = [levels[index].dense()[:, :, 0] for index in take]
        if intermediates_only and not (norm and 2 in take):
            return maps
        final = levels[-1]
        if len(levels) == 3:
            final = final.with_features(self.app.norm(final.features))
            if norm and 2 in take:
                maps[-1] = final.dense()[:, :, 0]
        return maps if intermediates_only else (final.dense()[:, :, 0], maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the modules that the levels in `indices` do not need; returns the indices as non-negative integers."""
        take, highest = feature_take_indices(len(self.feature_info), indices)
        if highest < 2:
            self.stage2 = self.app = None
            self.stage1 = self.stage1[:2] if highest == 1 else None
        elif prune_norm:
            self.app.norm = nn.Identity()
        if prune_head or highest < 2:
            self.reset_classifier(0, "")
        return take

    def convert_official(self, state_dict: Mapping[str, Any]) -> Conversion:
        """Convert an official checkpoint, of the backbone or of a whole detector; see `load_official`."""
        return backbone_tensors(state_dict)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that group parameters by depth, for layer-wise learning rate decay."""
        last = (r"^app", (99999,))
        if coarse:
            return dict(stem=r"^cpe", blocks=[(r"^stage(\d+)", None), last])
        layers = [(r"^stage(\d+)\.0\.\w+_layers\.(\d+)", None), (r"^stage(\d+)\.[12]\.", (99,))]
        return dict(stem=r"^cpe", blocks=[*layers, last])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable gradient checkpointing."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes: remove it) and, if given, the pooling (``""``: none)."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        weight = next(self.parameters())
        self._set_classifier(num_classes, pool, weight.device, weight.dtype)


@register_description
def describe(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the size of a ScatterFormer checkpoint; None for another family."""
    stem = tensors.get("cpe.0.0.weight")
    if stem is None or "app.pos_embedding.weight" not in tensors:
        return None
    return f"ScatterFormer (embed_dim={stem.shape[0]}, in_chans={stem.shape[-1]})"


def _cfg(**kwargs: Any) -> dict[str, Any]:
    # `first_conv` is empty because timm cannot adapt the weights of a sparse convolution to other `in_chans`.
    return {
        "num_classes": 0, "input_size": (64, 128, 128), "pool_size": (64, 64), "classifier": "head",
        "first_conv": (), "paper_ids": "arXiv:2401.00912", "origin_url": "https://github.com/skyhehe123/ScatterFormer",
        **kwargs,
    }  # fmt: skip


default_cfgs = generate_default_cfgs(
    {"scatterformer_waymo": _cfg(), "scatterformer_nuscenes": _cfg(), "scatterformer_pico": _cfg()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ScatterFormer:
    return build_model_with_cfg(
        ScatterFormer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2), feature_cls="getter"),
        **kwargs,
    )


@register_model
def scatterformer_waymo(pretrained: bool = False, **kwargs: Any) -> ScatterFormer:
    """ScatterFormer for Waymo: 480 x 480 x 32 voxels, window size 12."""
    return _create("scatterformer_waymo", pretrained, **dict(dict(window_size=12, grid_size=(480, 480, 32)), **kwargs))


@register_model
def scatterformer_nuscenes(pretrained: bool = False, **kwargs: Any) -> ScatterFormer:
    """ScatterFormer for nuScenes: 360 x 360 x 40 voxels, window size 20."""
    defaults = dict(window_size=20, grid_size=(360, 360, 40))
    return _create("scatterformer_nuscenes", pretrained, **dict(defaults, **kwargs))


@register_model
def scatterformer_pico(pretrained: bool = False, **kwargs: Any) -> ScatterFormer:
    """ScatterFormer-Pico, not a published size, for CPUs: 32 channels, two layers per stage, one block in the stem."""
    defaults = dict(
        embed_dim=32, depths=(2, 2), stem_depth=1, window_size=12, grid_size=(192, 192, 8), pool_heads=4,
    )  # fmt: skip
    return _create("scatterformer_pico", pretrained, **dict(defaults, **kwargs))
