"""What the neighborhood-attention backbones share: block, level of blocks, timm's model interface."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, Mlp
from timm.models import checkpoint_seq
from torch import Tensor, nn

from visionattn.backbones._backbone import NormLayer, StagedBackbone, check_levels, drop_path_rates
from visionattn.backbones._conversion import Conversion
from visionattn.backbones._weights_neighborhood import convert_neighborhood
from visionattn.layers import NeighborhoodAttention2d

__all__ = [
    "NeighborhoodBackbone",
    "NeighborhoodBlock",
    "NeighborhoodLevel",
    "NormLayer",
    "check_levels",
    "default_cfg",
    "drop_path_rates",
]


def default_cfg(path: str = "", **kwargs: Any) -> dict[str, Any]:
    """A pretrained cfg for timm, with the weights at `path` on the authors' site; no path, no weights."""
    published = {
        "url": f"https://shi-labs.com/projects/{path}",
        "license": "mit",
        "origin_url": "https://github.com/SHI-Labs/Neighborhood-Attention-Transformer",
        "paper_ids": "arXiv:2204.07143" if path.startswith("nat/") else "arXiv:2209.15001",
    }
    return {
        **(published if path else {}),
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj.0",
        "classifier": "head",
        **kwargs,
    }


class NeighborhoodBlock(nn.Module):
    """Pre-norm transformer block, ``[B, H, W, dim]`` to the same: attention, then an MLP with exact GELU.

    Args:
        attn: the attention module, with its own projections.
        dim: channels.
        mlp_ratio: hidden width of the MLP over `dim`.
        layer_scale: initial value of ``gamma1`` and ``gamma2``, learned factors per channel on the branches;
            None leaves them out (0 is a value, not "off").
        proj_drop: dropout in the MLP.
        drop_path: stochastic-depth rate of each branch.
        norm_layer: makes a norm from a number of channels.
    """

    def __init__(
        self,
        attn: nn.Module,
        dim: int,
        mlp_ratio: float,
        layer_scale: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: NormLayer = nn.LayerNorm,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.norm1 = norm_layer(dim, **dd)
        self.attn = attn
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        if layer_scale is None:
            self.register_parameter("gamma1", None)
            self.register_parameter("gamma2", None)
        else:
            self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale), **dd))
            self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale), **dd))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.norm1(x))
        gamma = self.gamma1  # a local name lets TorchScript see that it is not None below
        if gamma is not None:
            attended = gamma * attended
        x = x + self.drop_path1(attended)
        hidden = self.mlp(self.norm2(x))
        gamma = self.gamma2
        if gamma is not None:
            hidden = gamma * hidden
        return x + self.drop_path2(hidden)


class NeighborhoodLevel(nn.Module):
    """The blocks of one resolution, and the step to the next one.

    `forward` runs the blocks only; the model applies `downsample` after it, because dense prediction takes
    the map in between.

    Args:
        dim: channels.
        num_heads: attention heads.
        dilations: one per block.
        drop_path: one rate per block.
        downsample: to the next level; Identity at the last.
        attn_kwargs: for `NeighborhoodAttention2d`.
        block_kwargs: for `NeighborhoodBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dilations: Sequence[Any],
        drop_path: Sequence[float],
        downsample: nn.Module,
        attn_kwargs: dict[str, Any],
        block_kwargs: dict[str, Any],
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList(
            NeighborhoodBlock(
                NeighborhoodAttention2d(dim, num_heads, dilation=dilation, **attn_kwargs),
                dim,
                drop_path=rate,
                **block_kwargs,
            )
            for dilation, rate in zip(dilations, drop_path, strict=True)
        )
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(tuple(self.blocks), x)
        for block in self.blocks:
            x = block(x)
        return x


class NeighborhoodBackbone(StagedBackbone):
    """A `StagedBackbone` of neighborhood attention, whose stages have a ``downsample``."""

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"*.rpb"}

    def convert_official(self, state_dict: dict[str, Any]) -> Conversion:
        """A published state dict of this family under this model's names; see `load_official`."""
        return convert_neighborhood(state_dict, self)
