"""The branches of NFA-ViT, "Noise-guided Forgery Amplification Vision Transformer" (arXiv 2504.11922).

A frozen network extracts a noise residual. A small transformer on the residual selects, for each position, the keys
with the most different noise; a second transformer on the image attends to those. `visionattn.heads.forgery.nfa_vit`
combines them. Parameter names match the official code.
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
    """DnCNN as in Noiseprint: a stack of convolutions that predicts a noise residual of one channel.

    As in the published code, the output is added to the first channel of the input.

    Args:
        in_chans: number of input channels.
        features: number of hidden channels.
        depth: number of convolutions.
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
        """Map images ``[B, in_chans, H, W]`` to residuals ``[B, 1, H, W]``."""
        return self.layers(x) + x[:, :1]


class _PatchEmbed(nn.Module):
    """Overlapping patch embedding."""

    def __init__(self, kernel: int, stride: int, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        size = (x.shape[2], x.shape[3])
        return self.norm(x.flatten(2).transpose(1, 2)), size


class _DWConv(nn.Module):
    """Wrapper of a depthwise convolution that keeps the published parameter names."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)


class _Mlp(nn.Module):
    """Linear layer, depthwise convolution, GELU (tanh approximation), linear layer."""

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
    """Transformer block of both branches: spatial-reduction attention and an MLP with a depthwise convolution.

    Args:
        dim: number of channels.
        num_heads: number of attention heads.
        sr_ratio: spatial reduction ratio of keys and values.
        pattern: attention pattern: ``"noise"`` (all keys), ``"fixed"`` (fixed sparse groups) or ``"guided"`` (keys of
            a mask).
        block: structure of noise blocks: ``"prenorm"`` (``x + attn(norm1(x))``), or ``"published"``, in which the
            attention replaces its input, is doubled, and ``norm1`` is unused.
        drop_path: stochastic depth probability.
        mlp_ratio: ratio of hidden channels of the MLP to ``dim``.
        sparse_rate: number of groups per axis of ``"fixed"``.
        keep_ratio: fraction of the keys that the mask of a noise block keeps.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        pattern: Literal["noise", "fixed", "guided"] = "guided",
        block: str = "prenorm",
        drop_path: float = 0.0,
        mlp_ratio: float = 4.0,
        sparse_rate: int = 2,
        keep_ratio: float = 0.25,
    ) -> None:
        super().__init__()
        if pattern not in ("noise", "fixed", "guided"):
            raise ValueError(f"`pattern` must be 'noise', 'fixed' or 'guided', got {pattern!r}")
        if block not in BLOCKS:
            raise ValueError(f"`block` must be one of {', '.join(BLOCKS)}, got {block!r}")
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"`keep_ratio` must be in (0, 1], got {keep_ratio}")
        self.pattern, self.block, self.keep_ratio = pattern, block, keep_ratio
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SpatialReductionAttention(dim, num_heads, sr_ratio, sparse_rate=sparse_rate)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = _Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int], keep: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: tokens ``[B, H * W, dim]``.
            size: (H, W).
            keep: mask of the keys of a guided block, ``[B, heads, H * W, M]``; None for all keys.

        Returns:
            ``[B, H * W, dim]``.
        """
        if self.pattern == "noise":
            return self._rest(x, self.attn(self._normed(x), size), size)
        x = x + self.drop_path(self.attn(self.norm1(x), size, keep=keep, fixed_sparse=self.pattern == "fixed"))
        return x + self.drop_path(self.mlp(self.norm2(x), size))

    def forward_with_mask(
        self, x: Tensor, size: tuple[int, int], differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Apply a noise block; return its output and the mask of its least attended keys, ``[B, heads, H * W, M]``."""
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
    """Pyramid of four stages of `NFABlock` at strides 4, 8, 16 and 32."""

    def __init__(
        self,
        in_chans: int,
        dims: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        sr_ratios: Sequence[int],
        drop_path_rate: float,
        patterns: tuple[str, str],
        in_stride: int = 1,
        **options,
    ) -> None:
        super().__init__()
        for name, value in (("dims", dims), ("depths", depths), ("num_heads", num_heads), ("sr_ratios", sr_ratios)):
            if len(value) != 4 or min(value) < 1:
                raise ValueError(f"`{name}` must be four whole numbers of at least 1, got {value}")
        self.dims, self.depths = tuple(dims), tuple(depths)
        last = max(1, sum(depths) - 1)
        rates = iter([drop_path_rate * i / last for i in range(sum(depths))])
        for stage, (dim, depth, heads, reduction) in enumerate(zip(dims, depths, num_heads, sr_ratios, strict=True), 1):
            first = stage == 1
            step = 4 // in_stride if first else 2
            embed = _PatchEmbed(7 if step == 4 else 3, step, in_chans if first else dims[stage - 2], dim)
            self.add_module(f"patch_embed{stage}", embed)
            blocks = [
                NFABlock(dim, heads, reduction, patterns[i == depth - 1], drop_path=next(rates), **options)
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
    """MiT-b0 on a noise residual, which returns features and a mask of the least similar keys for each stage.

    Args:
        in_chans: channels of the residual.
        dims, depths, num_heads, sr_ratios: one value for each of the four stages.
        drop_path_rate: stochastic depth probability of the last block; it increases linearly from 0.
        keep_ratio: fraction of the keys that the masks keep.
        block: ``"prenorm"`` or ``"published"``, see `NFABlock`.
        differentiable: whether the masks pass gradients with a straight-through estimator.
        mlp_ratio: ratio of hidden to input channels of the MLPs.
        in_stride: stride of the residual relative to the image, 1, 2 or 4; the output strides refer to the image.
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
        """Compute features ``[B, dims[i], H_i, W_i]`` at strides 4 to 32 and masks ``[B, heads_i, H_i * W_i, M_i]``."""
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
    """MiT-b2 on the image with fixed sparse attention; the last block of each stage has noise-guided attention.

    Args:
        in_chans: channels of the image.
        dims, depths, num_heads, sr_ratios: one value for each of the four stages.
        drop_path_rate: stochastic depth probability of the last block; it increases linearly from 0.
        sparse_rate: number of groups per axis of the fixed sparse attention.
        mlp_ratio: ratio of hidden to input channels of the MLPs.
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
        """Compute features ``[B, dims[i], H_i, W_i]`` at strides 4 to 32.

        Args:
            image: ``[B, in_chans, H, W]``.
            noise_masks: one mask for each stage, ``[B, heads_i, H_i * W_i, M_i]``, nonzero for keys to attend to, such
                as those of `NoiseBranch`. With None, the guided blocks attend to all keys.

        Raises:
            ValueError: if there are not four masks, or they do not match the image.
        """
        if noise_masks is not None and len(noise_masks) != 4:
            raise ValueError(f"`noise_masks` must have one mask for each of the 4 stages, got {len(noise_masks)}")
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
    """Initialize as SegFormer: truncated normal for linear layers, normal scaled by fan-out for convolutions."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
