"""CATANet: lightweight super-resolution by content-aware token aggregation (Liu et al., arXiv 2503.06896)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visionattn.heads.super_resolution.reconstruction import Reconstruction, reflect_to
from visionattn.layers.token_aggregation import LocalRegionAttention, TokenAggregationBlock

__all__ = ["CATANet"]


class CATANet(Reconstruction):
    """CATANet. Images are RGB in [0, 1], without normalization, and of any size.

    The defaults are the published model, with parameter names of the released files. Images with a side below the
    largest window, 28 pixels, are extended by reflection, and the result is cropped.

    Args:
        scale: see `Reconstruction`.
        dim: channels, a multiple of ``heads``.
        qk_dim: channels of queries and keys, a multiple of ``heads``.
        mlp_dim: hidden channels of the feed-forward layers.
        heads: attention heads.
        centers: number of centers in each block; its length is the number of blocks.
        group_sizes: tokens of a group in each block.
        windows: side of the windows of the local attention in each block.
        iterations: rounds of k-means in a training step.
        overlap: see `visionattn.layers.token_aggregation.LocalRegionAttention`; the released models need
            ``"published"``.
        sync: see `visionattn.layers.token_aggregation.TokenAggregationBlock`.
        backend: backend of the attention in groups, see `visionattn.layers.token_aggregation.grouped_attention`.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        scale: int = 4,
        dim: int = 40,
        qk_dim: int = 36,
        mlp_dim: int = 96,
        heads: int = 4,
        centers: Sequence[int] = (16, 32, 64, 128) * 2,
        group_sizes: Sequence[int] = (256, 128, 64, 32) * 2,
        windows: Sequence[int] = (16, 20, 24, 28) * 2,
        iterations: int = 5,
        overlap: str = "mean",
        sync: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(scale, dim)
        if not len(centers) == len(group_sizes) == len(windows) >= 1:
            lengths = f"{len(centers)}, {len(group_sizes)} and {len(windows)}"
            raise ValueError(f"`centers`, `group_sizes` and `windows` must have one entry per block, got {lengths}")
        self.smallest = max(windows)
        self.blocks, self.mid_convs = nn.ModuleList(), nn.ModuleList()
        for count, size, window in zip(centers, group_sizes, windows, strict=True):
            aggregation = TokenAggregationBlock(dim, qk_dim, mlp_dim, heads, count, size, iterations, sync, backend)
            local = LocalRegionAttention(dim, qk_dim, mlp_dim, heads, window, overlap)
            self.blocks.append(nn.Sequential(aggregation, local))
            self.mid_convs.append(nn.Conv2d(dim, dim, 3, padding=1))

    def forward_features(self, image: Tensor) -> Tensor:
        """Return the features before upsampling, ``[B, dim, H, W]``; both sides must have `smallest` pixels."""
        # channels-last, as the attention needs it
        first = self.first_conv(image.contiguous(memory_format=torch.channels_last))
        x = first
        for block, conv in zip(self.blocks, self.mid_convs, strict=True):
            x = x + conv(block(x))
        return x + first

    def forward(self, image: Tensor) -> Tensor:
        """Return the enlarged image.

        Args:
            image: RGB in [0, 1], ``[B, 3, H, W]``.

        Returns:
            ``[B, 3, scale * H, scale * W]``, not clipped.
        """
        height, width = image.shape[2:]
        if torch.compiler.is_exporting():
            return self.enlarge(self.forward_features(image), image)
        image = reflect_to(image, self.smallest)
        return self.enlarge(self.forward_features(image), image)[..., : self.scale * height, : self.scale * width]
