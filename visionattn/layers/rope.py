"""Axial rotary position embedding for maps of one, two or three axes, over timm's functions.

Su et al., "RoFormer" (arXiv 2104.09864); Heo et al., "Rotary Position Embedding for Vision Transformer" (arXiv
2403.13298) for its axial form.
"""

import torch
import torch.nn.functional as F
from timm.layers import build_fourier_pos_embed
from torch import Tensor, nn

__all__ = ["AxialRope"]


class AxialRope(nn.Module):
    """Sines and cosines that rotate the channels of queries and keys, for a map of any size.

    On two axes these are the values of timm's `RotaryEmbeddingCat`. That class is for two axes only; here the
    channels of a head are shared out evenly over any number of them. Where they cannot be, the last
    ``dim % (2 * axes)`` channels are not rotated. There is nothing to learn and nothing in the state dict.

    Args:
        dim: channels of a head; even, and at least ``2 * axes``.
        axes: spatial axes of the map, 1 to 3.
        temperature: ratio of the largest to the smallest wavelength, for positions counted in steps.
        in_pixels: count positions from -1 to 1 over the map instead, whatever its size, with wavelengths up to
            ``max_res``.
        max_res: resolution in that mode.
        ref_feat_shape: size of map at which the model was trained; positions are scaled to it.
        grid_offset: added to positions counted in steps.
        grid_indexing: ``"ij"``, or ``"xy"`` for the horizontal axis first.
        rotate_half: pair channel ``i`` with ``i + dim / 2`` instead of with its neighbor.
        device: of the frequencies, which are kept in float32.

    Raises:
        ValueError: `dim` has too few channels for the axes, or is odd.
    """

    def __init__(
        self,
        dim: int,
        axes: int,
        temperature: float = 10000.0,
        in_pixels: bool = False,
        max_res: int = 224,
        ref_feat_shape: list[int] | None = None,
        grid_offset: float = 0.0,
        grid_indexing: str = "ij",
        rotate_half: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if dim % 2 or dim < 2 * axes:
            raise ValueError(f"a rotary embedding over {axes} axes needs an even head_dim >= {2 * axes}, got {dim}")
        self.dim = dim
        self.bands = dim // (2 * axes)
        self.temperature = float(temperature)
        self.in_pixels = in_pixels
        self.max_res = max_res
        self.ref_feat_shape = ref_feat_shape
        self.grid_offset = grid_offset
        self.grid_indexing = grid_indexing
        self.rotate_half = rotate_half
        self.register_buffer("anchor", torch.empty(0, device=device), persistent=False)  # tells the device

    def get_embed(self, shape: list[int]) -> Tensor:
        """``[places, 2 * dim]`` in float32 for a map of this size: sines, then cosines, as timm lays them out."""
        sin, cos = build_fourier_pos_embed(
            shape,
            num_bands=self.bands,
            max_res=self.max_res,
            temperature=self.temperature,
            in_pixels=self.in_pixels,
            ref_feat_shape=self.ref_feat_shape,
            grid_offset=self.grid_offset,
            grid_indexing=self.grid_indexing,
            device=self.anchor.device,
        )
        # [*shape, axes, bands] to [places, axes * bands]; what is left of the channels keeps its angle of 0.
        sin, cos = sin.flatten(-2).flatten(0, -2), cos.flatten(-2).flatten(0, -2)
        rest = self.dim // 2 - sin.shape[-1]
        sin = F.pad(sin, [0, rest])
        cos = F.pad(cos, [0, rest], value=1.0)
        if self.rotate_half:
            return torch.cat([sin, sin, cos, cos], -1)
        return torch.cat([sin.repeat_interleave(2, -1), cos.repeat_interleave(2, -1)], -1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, in_pixels={self.in_pixels}, rotate_half={self.rotate_half}"
