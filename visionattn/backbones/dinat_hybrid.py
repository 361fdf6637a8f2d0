"""Small networks of residual blocks with convolutions and neighborhood attention; not published models.

Convolutions with batch norm learn fast from few images and are the fastest operations on a CPU. In the levels with few
positions, each block first attends to a neighborhood, as in DiNAT (arXiv 2209.15001). Few blocks per level learn faster
in short training than many; `benchmarks/backbone_comparison.py` compares them with networks of timm at equal time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer, check_levels, drop_path_rates
from visionattn.backbones._neighborhood import (
    NeighborhoodBackbone,
    create_hierarchical,
    default_cfg,
    resolve_dilations,
)
from visionattn.layers.neighborhood import NeighborhoodAttention2d

__all__ = ["HybridDiNAT"]

VARIANTS: dict[str, dict[str, Any]] = {
    "dinat_nano": {"embed_dim": 32, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)},
}


class ConvStep(nn.Module):
    """A 3x3 convolution with stride 2, batch norm and ReLU, on channels-last maps ``[B, H, W, C]``."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).relu().permute(0, 2, 3, 1)


class ConvStem(nn.Module):
    """Two convolutions with stride 2: ``[B, C, H, W]`` to ``[B, ceil(H / 4), ceil(W / 4), dim]``."""

    def __init__(self, in_chans: int, dim: int, **dd: Any) -> None:
        super().__init__()
        self.first = ConvStep(in_chans, dim // 2, **dd)
        self.second = ConvStep(dim // 2, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        # a copy, so that the maps of all convolutions have this memory format too, in which they are fastest on CPUs
        return self.second(self.first(x.permute(0, 2, 3, 1).contiguous()))


class ConvBlock(nn.Module):
    """Residual block of two 3x3 convolutions with batch norm (He et al., CVPR 2016), on ``[B, H, W, C]``.

    The weight of the second norm starts at 0, so that the block does at first what it would do without convolutions.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False, **dd)
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        nn.init.zeros_(self.norm2.weight)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        hidden = self.norm1(self.conv1(x)).relu()
        return (x + self.drop_path(self.norm2(self.conv2(hidden)))).relu().permute(0, 2, 3, 1)


class AttentionBlock(nn.Module):
    """Neighborhood attention of the normalized map, added to it, and then a `ConvBlock`; on ``[B, H, W, C]``."""

    def __init__(self, attn: nn.Module, dim: int, drop_path: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.convs = ConvBlock(dim, drop_path, **dd)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.convs(x + self.drop_path(self.attn(normed)))


class HybridLevel(nn.Module):
    """The blocks of one resolution, and the downsampling to the next one, on ``[B, H, W, C]``.

    As in `NeighborhoodLevel`, `forward` runs the blocks only.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(tuple(self.blocks), x)
        for block in self.blocks:
            x = block(x)
        return x


class HybridDiNAT(NeighborhoodBackbone):
    """Residual convolutional network with neighborhood attention in its later levels, for images of any size.

    Maps that are smaller than a window are padded with zeros, as in `DiNAT`.

    Args:
        in_chans: image channels.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for no pooling.
        embed_dim: channels of the first level; they double with each further level.
        depths: blocks per level.
        num_heads: attention heads per level; those of levels without attention are not used.
        conv_levels: number of levels, from the first, without attention.
        kernel_size: size of the neighborhood, odd.
        dilations: as in `DiNAT`, with entries for the levels without attention too.
        qkv_bias: add a bias to the query, key and value projections.
        drop_rate: dropout rate before the classifier.
        proj_drop_rate: dropout rate after the attention projections.
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        norm_layer: norm class or factory before the classifier and of the outputs, called with the number of channels.
        out_norms: as in `DiNAT`.
        backend: backend of the attention kernels; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range or contradicts another one.
    """

    STAGES = "levels"
    OUT_NORM = False
    """Dense models need no layer norms of the outputs, since all blocks end with a batch norm."""

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 32,
        depths: Sequence[int] = (1, 1, 1, 1),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        conv_levels: int = 2,
        kernel_size: int = 7,
        dilations: str | Sequence[Sequence[int]] | None = None,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        out_norms: Sequence[int] = (),
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_levels(depths=depths, num_heads=num_heads)
        if not 0 <= conv_levels <= len(depths):
            raise ValueError(f"`conv_levels` must be in 0..{len(depths)}, the number of levels, got {conv_levels}")
        dd = {"device": device, "dtype": dtype}
        options = dict(kernel_size=kernel_size, qkv_bias=qkv_bias, proj_drop=proj_drop_rate, backend=backend, **dd)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        levels, feature_info = [], []
        for level, per_block in enumerate(resolve_dilations(dilations, depths)):
            dim = embed_dim * 2**level
            blocks: list[nn.Module] = []
            for dilation in per_block:
                if level < conv_levels:
                    blocks.append(ConvBlock(dim, next(rates), **dd))
                else:
                    attn = NeighborhoodAttention2d(dim, num_heads[level], dilation=dilation, **options)
                    blocks.append(AttentionBlock(attn, dim, next(rates), **dd))
            downsample = ConvStep(dim, 2 * dim, **dd) if level < len(depths) - 1 else nn.Identity()
            levels.append(HybridLevel(blocks, downsample))
            feature_info.append({"num_chs": dim, "reduction": 4 * 2**level, "module": f"levels.{level}"})
        self.patch_embed = ConvStem(in_chans, embed_dim, **dd)
        self.levels = nn.ModuleList(levels)
        self._build_head(in_chans, num_classes, global_pool, drop_rate, norm_layer, feature_info, out_norms, **dd)
        for module in self.modules():
            if isinstance(module, AttentionBlock):  # without effect at first, as the convolutions
                nn.init.zeros_(module.attn.proj.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normed features ``[B, ceil(H / 32), ceil(W / 32), C]`` of images ``[B, in_chans, H, W]``."""
        x = self.patch_embed(x)
        for level in self.levels:
            x = level.downsample(level(x))
        return self.norm(x)


default_cfgs = generate_default_cfgs({"dinat_nano": default_cfg(first_conv="patch_embed.first.conv")})


@register_model
def dinat_nano(pretrained: bool = False, **kwargs: Any) -> HybridDiNAT:
    """Four residual blocks, two of them with neighborhood attention; 2.3 M parameters. Not a published model."""
    return create_hierarchical(HybridDiNAT, "dinat_nano", VARIANTS["dinat_nano"], pretrained, **kwargs)
