"""ScatterFormer (He et al., ECCV 2024, arXiv 2401.00912): voxels of a point cloud to a map seen from above."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from visionattn.layers.scattered import AttentivePillarPool, ScatterFormerStage
from visionattn.layers.sparse_conv import RowNorm, SparseConv3d, SparseTensor, SubMConv3d

__all__ = ["ScatterFormer"]


class _SubMBlock(nn.Module):
    """Two submanifold convolutions with a shortcut; parameter names are the official ones."""

    def __init__(self, dim: int, device: torch.device | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.conv1, self.bn1 = SubMConv3d(dim, dim, device=device, dtype=dtype), RowNorm(dim, device, dtype)
        self.conv2, self.bn2 = SubMConv3d(dim, dim, device=device, dtype=dtype), RowNorm(dim, device, dtype)

    def forward(self, x: SparseTensor) -> SparseTensor:
        y = self.conv1(x)
        y = self.conv2(y.with_features(self.bn1(y.features).relu()))
        return x.with_features((self.bn2(y.features) + x.features).relu())


class _ConvNormReLU(nn.Sequential):
    """A sparse convolution, then norm and ReLU on its rows."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = self[0](x)
        return x.with_features(self[1](x.features).relu())


class ScatterFormer(nn.Module):
    """Sparse convolutions as position encoding, two stages of scattered linear attention, attentive pillar pooling.

    Two entries: `forward_sparse` takes voxels, and everything of timm takes a dense map ``[B, in_chans, H, W]`` whose
    every pixel is a voxel at the bottom of the grid, so that the model is a backbone of stride 2 for pictures too.

    Args:
        in_chans: channels of the voxels.
        num_classes, global_pool, drop_rate: of timm's classifier.
        embed_dim: channels.
        num_heads: of the attention within windows.
        depths: layers of the two stages.
        window_size: cells of a window, of either stage's own grid; even.
        grid_size: voxels along x, y, z. Only z matters: with z cells, the grid has one more, and the pillars of the
            second stage must be ``(z + 1) // 4`` high.
        stem_depth: residual blocks of sparse convolutions.
        pool_heads: heads of the pillar pooling.
        backend: of `visionattn.kernels.scattered_linear_attention`.

    Raises:
        ValueError: an argument out of its range; the message names it.
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
            raise ValueError(f"depths={tuple(depths)} must be two whole numbers of at least 1")
        if len(grid_size) != 3 or min(grid_size) < 1:
            raise ValueError(f"grid_size={tuple(grid_size)} must be three whole numbers of at least 1: x, y, z")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_chans, self.num_classes, self.drop_rate = in_chans, num_classes, drop_rate
        self.grid_size, self.grad_checkpointing = tuple(int(n) for n in grid_size), False
        # the published model adds a cell on top; the strides are those of cpe's last layer and of stage1.2
        self.depth = self.grid_size[2] + 1
        halved = (self.depth - 3) // 2 + 1
        pillar = (halved - 1) // 2 + 1 if halved > 0 else 0
        if pillar != self.depth // 4 or pillar < 1:
            raise ValueError(
                f"grid_size={self.grid_size}: z={self.grid_size[2]} gives pillars of {pillar} voxels where the pooling "
                f"has {self.depth // 4} positions; take a multiple of 4, or one or two more"
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

    # voxels

    def forward_sparse(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        """Voxels to a map seen from above.

        Args:
            features: ``[V, in_chans]``; V may be 0.
            coords: int64 ``[V, 4]``, (batch, z, y, x) within ``grid_size``, each once, in any order.
            batch_size: number of samples, also those without voxels.

        Returns:
            ``[batch_size, embed_dim, ceil(grid y / 2), ceil(grid x / 2)]``, zero where there is no voxel.
        """
        return self.forward_pillars(features, coords, batch_size).dense()[:, :, 0]

    def forward_pillars(self, features: Tensor, coords: Tensor, batch_size: int) -> SparseTensor:
        """As `forward_sparse`, but the rows of the occupied pillars, sorted by (batch, y, x)."""
        x, y, _ = self.grid_size
        return self._levels(SparseTensor(features, coords, (self.depth, y, x), batch_size))[-1]

    def _levels(self, x: SparseTensor, last: int = 2) -> list[SparseTensor]:
        """After the stem, the first stage, and the pooling, up to the last one asked for."""
        for layer in self.cpe:
            x = self._run(layer, x)
        levels = [x]
        if last >= 1:
            x = self._run(self.stage1[0], x)
            x = x.with_features(self.stage1[1](x.features))
            levels.append(x)
        if last >= 2:
            x = self._run(self.stage2[0], self.stage1[2](x))
            levels.append(self.app(x.with_features(self.stage2[1](x.features))))
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

    # timm

    def _picture(self, image: Tensor) -> SparseTensor:
        batch, _, height, width = image.shape
        axes = [torch.arange(n, device=image.device) for n in (batch, height, width)]
        sample, y, x = torch.meshgrid(*axes, indexing="ij")
        coords = torch.stack([sample, torch.zeros_like(sample), y, x], -1).view(-1, 4)
        return SparseTensor(
            image.permute(0, 2, 3, 1).reshape(-1, image.shape[1]), coords, (self.depth, height, width), batch
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to ``[B, embed_dim, ceil(H / 2), ceil(W / 2)]``."""
        return self._levels(self._picture(x))[-1].dense()[:, :, 0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits ``[B, num_classes]``, or to what enters the classifier."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_chans, H, W]`` to logits ``[B, num_classes]``."""
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
        """Features and the maps ``[B, embed_dim, H / r, W / r]`` of the levels asked for; see timm.

        The first two levels are those of the lowest layer of voxels, where a picture's pixels are.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} must be 'NCHW'")
        take, highest = feature_take_indices(len(self.feature_info), indices)
        last = highest if stop_early and intermediates_only else len(self.feature_info) - 1
        maps = [level.dense()[:, :, 0] for level in self._levels(self._picture(x), last)]
        taken = [maps[index] for index in take]
        return taken if intermediates_only else (maps[-1], taken)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the classifier; every level is needed for the last, which is always kept."""
        take, _ = feature_take_indices(len(self.feature_info), indices)
        if prune_head:
            self.reset_classifier(0, "")
        return take

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that group parameters by depth."""
        last = (r"^app", (99999,))
        if coarse:
            return dict(stem=r"^cpe", blocks=[(r"^stage(\d+)", None), last])
        layers = [(r"^stage(\d+)\.0\.\w+_layers\.(\d+)", None), (r"^stage(\d+)\.[12]\.", (99,))]
        return dict(stem=r"^cpe", blocks=[*layers, last])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of layers for the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another number of classes, or 0 for none."""
        kind = self.global_pool.pool_type if global_pool is None else global_pool
        weight = next(self.parameters())
        self._set_classifier(num_classes, kind, weight.device, weight.dtype)


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Weights of this model or of a whole official detector, whose backbone they are."""
    for key in ("model_state", "state_dict", "model"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
            break
    prefix = "backbone_3d."
    if any(name.startswith(prefix) for name in state_dict):
        state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    return dict(state_dict)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 0, "input_size": (64, 128, 128), "pool_size": (64, 64), "classifier": "head",
        "first_conv": None, "paper_ids": "arXiv:2401.00912", "origin_url": "https://github.com/skyhehe123/ScatterFormer",
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
    """As published for Waymo: 480 x 480 x 32 voxels, windows of 12."""
    return _create("scatterformer_waymo", pretrained, **dict(dict(window_size=12, grid_size=(480, 480, 32)), **kwargs))


@register_model
def scatterformer_nuscenes(pretrained: bool = False, **kwargs: Any) -> ScatterFormer:
    """As published for nuScenes: 360 x 360 x 40 voxels, windows of 20."""
    defaults = dict(window_size=20, grid_size=(360, 360, 40))
    return _create("scatterformer_nuscenes", pretrained, **dict(defaults, **kwargs))


@register_model
def scatterformer_pico(pretrained: bool = False, **kwargs: Any) -> ScatterFormer:
    """A small one that trains on a CPU: 32 channels, two layers a stage, one block in the stem."""
    defaults = dict(
        embed_dim=32, depths=(2, 2), stem_depth=1, window_size=12, grid_size=(192, 192, 8), pool_heads=4,
    )  # fmt: skip
    return _create("scatterformer_pico", pretrained, **dict(defaults, **kwargs))
