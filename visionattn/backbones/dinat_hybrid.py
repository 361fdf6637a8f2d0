"""Small DiNAT whose first levels are convolutional, for training on small datasets and CPUs; not a published model.

Convolutions with batch norm replace the stem and the blocks of the high-resolution levels, where attention costs most
and learns slowest from few images; the levels at strides 16 and 32 are those of DiNAT (arXiv 2209.15001).
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer, drop_path_rates
from visionattn.backbones._neighborhood import NeighborhoodBackbone, create_hierarchical, default_cfg
from visionattn.backbones.dinat import ConvDownsample

__all__ = ["HybridDiNAT"]

VARIANTS: dict[str, dict[str, Any]] = {
    "dinat_nano": {
        "embed_dim": 32,
        "depths": (2, 2, 6, 2),
        "num_heads": (1, 2, 4, 8),
        "mlp_ratio": 2.5,
        "drop_path_rate": 0.0,
        "dilations": "classification",
    },
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
    """Residual block of two 3x3 convolutions with batch norm (He et al., CVPR 2016), on ``[B, C, H, W]``."""

    def __init__(self, dim: int, drop_path: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False, **dd)
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(x)).relu()
        return (x + self.drop_path(self.norm2(self.conv2(hidden)))).relu()


class ConvLevel(nn.Module):
    """The convolutional blocks of one resolution, and the downsampling to the next one, on ``[B, H, W, C]``.

    As in `NeighborhoodLevel`, `forward` runs the blocks only.
    """

    def __init__(self, dim: int, drop_path: Sequence[float], downsample: nn.Module, **dd: Any) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(ConvBlock(dim, rate, **dd) for rate in drop_path)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(tuple(self.blocks), x)
        else:
            for block in self.blocks:
                x = block(x)
        return x.permute(0, 2, 3, 1)


class HybridDiNAT(NeighborhoodBackbone):
    """DiNAT with a convolutional stem and convolutional first levels.

    Accepts images of any size. The levels with attention are those of `DiNAT`, with the same names and zero padding.

    Args:
        in_chans: image channels.
        num_classes: number of classes; 0 for no classifier.
        global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for no pooling.
        embed_dim: channels of the first level; they double with each further level.
        depths: blocks per level.
        num_heads: attention heads per level; those of convolutional levels are not used.
        conv_levels: number of levels, from the first, with convolutional blocks.
        kernel_size: size of the neighborhood, odd.
        dilations: as in `DiNAT`, with entries for the convolutional levels too.
        mlp_ratio: ratio of the MLPs' hidden width to their channels.
        qkv_bias: add a bias to the query, key and value projections.
        drop_rate: dropout rate before the classifier.
        proj_drop_rate: dropout rate after the attention projections and in the MLPs.
        drop_path_rate: stochastic depth rate of the last block, increasing linearly from 0 at the first.
        norm_layer: norm class or factory of the levels with attention, called with the number of channels.
        out_norms: as in `DiNAT`.
        backend: backend of the attention kernels; None selects the best available one.
        device, dtype: device and dtype of the parameters.

    Raises:
        ValueError: if an argument is out of range or contradicts another one.
    """

    STAGES = "levels"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 32,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (1, 2, 4, 8),
        conv_levels: int = 2,
        kernel_size: int = 7,
        dilations: str | Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 2.5,
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
        if not 0 <= conv_levels <= len(depths):
            raise ValueError(f"`conv_levels` must be in 0..{len(depths)}, the number of levels, got {conv_levels}")
        dd = {"device": device, "dtype": dtype}
        self.patch_embed = ConvStem(in_chans, embed_dim, **dd)
        feature_info = self._build_levels(
            embed_dim,
            depths,
            num_heads,
            dilations,
            drop_path_rate,
            downsample=lambda dim: ConvDownsample(dim, norm_layer, **dd),
            reduction=4,
            attn_kwargs=dict(
                kernel_size=kernel_size, qkv_bias=qkv_bias, proj_drop=proj_drop_rate, backend=backend, **dd
            ),
            block_kwargs=dict(mlp_ratio=mlp_ratio, proj_drop=proj_drop_rate, norm_layer=norm_layer, **dd),
        )
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        for index, depth in enumerate(depths[:conv_levels]):
            dim = feature_info[index]["num_chs"]
            # the last convolutional level is followed by the downsampling of DiNAT, or by none
            downsample = ConvStep(dim, 2 * dim, **dd) if index < conv_levels - 1 else self.levels[index].downsample
            self.levels[index] = ConvLevel(dim, [next(rates) for _ in range(depth)], downsample, **dd)
        self._build_head(in_chans, num_classes, global_pool, drop_rate, norm_layer, feature_info, out_norms, **dd)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return normed features ``[B, ceil(H / 32), ceil(W / 32), C]`` of images ``[B, in_chans, H, W]``."""
        x = self.patch_embed(x)
        for level in self.levels:
            x = level.downsample(level(x))
        return self.norm(x)


default_cfgs = generate_default_cfgs({"dinat_nano": default_cfg(first_conv="patch_embed.first.conv")})


@register_model
def dinat_nano(pretrained: bool = False, **kwargs: Any) -> HybridDiNAT:
    """DiNAT-Nano, not a published size: under 3 M parameters, the first two levels convolutional."""
    return create_hierarchical(HybridDiNAT, "dinat_nano", VARIANTS["dinat_nano"], pretrained, **kwargs)
