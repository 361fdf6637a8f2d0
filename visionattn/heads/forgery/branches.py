"""The branches of NFA-ViT, "Noise-guided Forgery Amplification Vision Transformer" (arXiv 2504.11922).

A frozen network gives a noise residual; a small transformer on it tells, for each position, which places look least
alike in noise; a second transformer on the image attends to those. `visionattn.heads.forgery.nfa_vit` combines them.
Parameter names are the official ones.
"""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from visionattn.layers.spatial_reduction import SpatialReductionAttention

__all__ = ["ImageBranch", "NFABlock", "NoiseBranch", "NoiseExtractor"]

BLOCKS = ("prenorm", "published")
STRIDES = (4, 8, 16, 32)


class NoiseExtractor(nn.Module):
    """A DnCNN as in Noiseprint: 17 convolutions that give a noise residual of one channel.

    The output is added to the first channel of the input, as published. ``[B, 3, H, W]`` to ``[B, 1, H, W]``.

    Args:
        in_chans: channels of the input.
        features: channels inside.
        depth: convolutions, the first and the last included.
    """

    def __init__(self, in_chans: int = 3, features: int = 64, depth: int = 17) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_chans, features, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(features, features, 3, padding=1, bias=False),
                nn.BatchNorm2d(features),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(features, 1, 3, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The residual of an image."""
        return self.layers(x) + x[:, :1]


class _PatchEmbed(nn.Module):
    """Overlapping patches, each a token."""

    def __init__(self, kernel: int, stride: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        size = (x.shape[2], x.shape[3])
        return self.norm(x.flatten(2).transpose(1, 2)), size


class _DWConv(nn.Module):
    """A module of its own for the published names."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class _Mlp(nn.Module):
    """Linear, depthwise convolution, GELU in its tanh form, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = _DWConv(hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.fc1(x)
        grid = self.dwconv.dwconv(x.transpose(1, 2).reshape(x.shape[0], -1, *size))
        return self.fc2(F.gelu(grid.flatten(2).transpose(1, 2), approximate="tanh"))


class NFABlock(nn.Module):
    """A transformer block of either branch: spatial-reduction attention and an MLP with a depthwise convolution.

    Args:
        dim: channels.
        num_heads: attention heads.
        sr_ratio: reduction of the keys.
        kind: ``"noise"`` attends to all keys; ``"fixed"`` within fixed sparse groups; ``"guided"`` to the keys of
            a mask.
        block: of a noise block, ``"prenorm"`` (``x + attn(norm1(x))``) or ``"published"``, in which the attention
            replaces its input and is doubled and ``norm1`` is not used.
        drop_path: probability of stochastic depth.
        mlp_ratio: hidden channels of the MLP by ``dim``.
        sparse_rate: groups per axis of ``"fixed"``.
        keep_ratio: share of the keys that a noise block's mask keeps.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        kind: Literal["noise", "fixed", "guided"] = "guided",
        block: str = "prenorm",
        drop_path: float = 0.0,
        mlp_ratio: float = 4.0,
        sparse_rate: int = 2,
        keep_ratio: float = 0.25,
    ) -> None:
        super().__init__()
        if kind not in ("noise", "fixed", "guided"):
            raise ValueError(f"kind={kind!r} must be 'noise', 'fixed' or 'guided'")
        if block not in BLOCKS:
            raise ValueError(f"block={block!r} must be one of {BLOCKS}")
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio={keep_ratio} must be above 0 and at most 1")
        self.kind, self.block, self.keep_ratio = kind, block, keep_ratio
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SpatialReductionAttention(dim, num_heads, sr_ratio, sparse_rate=sparse_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int], keep: Tensor | None = None) -> Tensor:
        """``[B, H * W, dim]`` to the same; ``keep``, ``[B, heads, H * W, M]``, is the mask of a guided block."""
        if self.kind == "noise":
            return self._rest(x, self.attn(self._normed(x), size), size)
        x = x + self.drop_path(self.attn(self.norm1(x), size, keep=keep, fixed_sparse=self.kind == "fixed"))
        return x + self.drop_path(self.mlp(self.norm2(x), size))

    def forward_with_mask(
        self, x: Tensor, size: tuple[int, int], differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """A noise block's output and its mask of the keys attended to least, ``[B, heads, H * W, M]``."""
        attended, mask = self.attn.forward_with_mask(self._normed(x), size, self.keep_ratio, differentiable)
        return self._rest(x, attended, size), mask

    def _normed(self, x: Tensor) -> Tensor:
        return self.norm1(x) if self.block == "prenorm" else x

    def _rest(self, x: Tensor, attended: Tensor, size: tuple[int, int]) -> Tensor:
        if self.block == "published":
            x = attended
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x), size))


class _Branch(nn.Module):
    """A pyramid of four stages at strides 4, 8, 16 and 32, built from `NFABlock`."""

    def __init__(
        self,
        in_chans: int,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        sr_ratios: Sequence[int],
        drop_path_rate: float,
        kinds: tuple[str, str],
        in_stride: int = 1,
        **options,
    ) -> None:
        super().__init__()
        for name, value in (("dims", dims), ("depths", depths), ("num_heads", num_heads), ("sr_ratios", sr_ratios)):
            if len(value) != 4 or min(value) < 1:
                raise ValueError(f"{name}={value} must be four whole numbers of at least 1")
        self.dims, self.depths = tuple(dims), tuple(depths)
        last = max(1, sum(depths) - 1)
        rates = iter([drop_path_rate * i / last for i in range(sum(depths))])
        for stage, (dim, depth, heads, reduction) in enumerate(zip(dims, depths, num_heads, sr_ratios, strict=True), 1):
            first = stage == 1
            step = 4 // in_stride if first else 2
            embed = _PatchEmbed(7 if step == 4 else 3, step, in_chans if first else dims[stage - 2], dim)
            self.add_module(f"patch_embed{stage}", embed)
            blocks = [
                NFABlock(dim, heads, reduction, kinds[i == depth - 1], drop_path=next(rates), **options)
                for i in range(depth)
            ]
            self.add_module(f"block{stage}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage}", nn.LayerNorm(dim))
        self.apply(_init_weights)

    def _stage(self, stage: int) -> tuple[nn.Module, nn.ModuleList, nn.Module]:
        return getattr(self, f"patch_embed{stage}"), getattr(self, f"block{stage}"), getattr(self, f"norm{stage}")

    @staticmethod
    def _to_map(x: Tensor, size: tuple[int, int]) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], -1, *size).contiguous()


class NoiseBranch(_Branch):
    """MiT-b0 on a noise residual: features, and for each stage which keys are least alike.

    Args:
        in_chans: channels of the residual.
        dims, depths, num_heads, sr_ratios: of the four stages.
        drop_path_rate: of the last block; it rises linearly from 0.
        keep_ratio: share of the keys that the masks keep.
        block: ``"prenorm"`` or ``"published"``, see `NFABlock`.
        differentiable: masks that pass a gradient on, straight-through.
        mlp_ratio: hidden channels of the MLPs by their input's.
        in_stride: stride of the residual itself, 1, 2 or 4; the features' strides are those of the picture.
    """

    def __init__(
        self,
        in_chans: int = 1,
        dims: Sequence[int] = (32, 64, 160, 256),
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.1,
        keep_ratio: float = 0.25,
        block: str = "prenorm",
        differentiable: bool = False,
        mlp_ratio: float = 4.0,
        in_stride: int = 1,
    ) -> None:
        super().__init__(
            in_chans, dims, depths, num_heads, sr_ratios, drop_path_rate, ("noise", "noise"), in_stride,
            block=block, keep_ratio=keep_ratio, mlp_ratio=mlp_ratio,
        )  # fmt: skip
        self.differentiable = differentiable

    def forward(self, noise: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Features ``[B, dims[i], H_i, W_i]`` at strides 4 to 32, and masks ``[B, heads_i, H_i * W_i, M_i]``."""
        features, masks, x = [], [], noise
        for stage in range(1, 5):
            embed, blocks, norm = self._stage(stage)
            x, size = embed(x)
            for block in blocks[:-1]:
                x = block(x, size)
            x, mask = blocks[-1].forward_with_mask(x, size, self.differentiable)
            x = self._to_map(norm(x), size)
            features.append(x)
            masks.append(mask)
        return features, masks


class ImageBranch(_Branch):
    """MiT-b2 on the image: fixed sparse attention, and in the last block of a stage attention that noise guides.

    Args:
        in_chans: channels of the image.
        dims, depths, num_heads, sr_ratios: of the four stages.
        drop_path_rate: of the last block; it rises linearly from 0.
        sparse_rate: groups per axis of the fixed sparse attention.
        mlp_ratio: hidden channels of the MLPs by their input's.
    """

    def __init__(
        self,
        in_chans: int = 3,
        dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        drop_path_rate: float = 0.1,
        sparse_rate: int = 2,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__(
            in_chans, dims, depths, num_heads, sr_ratios, drop_path_rate, ("fixed", "guided"),
            sparse_rate=sparse_rate, mlp_ratio=mlp_ratio,
        )  # fmt: skip

    def forward(self, image: Tensor, noise_masks: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Features ``[B, dims[i], H_i, W_i]`` at strides 4 to 32.

        Args:
            image: ``[B, in_chans, H, W]``.
            noise_masks: one mask for each stage, ``[B, heads_i, H_i * W_i, M_i]`` with nonzero for a kept key, from
                a `NoiseBranch` or elsewhere; without them the guided blocks attend to all keys.

        Raises:
            ValueError: the masks are not four, or do not fit the image.
        """
        if noise_masks is not None and len(noise_masks) != 4:
            raise ValueError(f"noise_masks has {len(noise_masks)} masks; there must be one for each of the 4 stages")
        features, x = [], image
        for stage in range(1, 5):
            embed, blocks, norm = self._stage(stage)
            x, size = embed(x)
            for block in blocks[:-1]:
                x = block(x, size)
            x = blocks[-1](x, size, None if noise_masks is None else noise_masks[stage - 1])
            x = self._to_map(norm(x), size)
            features.append(x)
        return features


def _init_weights(module: nn.Module) -> None:
    """As SegFormer: truncated normal for linear maps, normal by fan-out for convolutions."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
