"""Axial rotary position embedding for maps with one, two or three axes.

Su et al., "RoFormer" (arXiv 2104.09864); Heo et al., "Rotary Position Embedding for Vision Transformer" (arXiv
2403.13298) for its axial form.
"""

import torch
import torch.nn.functional as F
from timm.layers import build_fourier_pos_embed
from torch import Tensor, nn

__all__ = ["AxialRope"]


class AxialRope(nn.Module):
    """Axial rotary position embedding of queries and keys for maps of any size.

    With two axes the values are those of timm's `RotaryEmbeddingCat`, which supports no other number of axes. The
    channels of a head are split evenly among the axes; the last ``dim % (2 * axes)`` channels are not rotated. The
    module has no parameters and no entries in the state dict.

    Args:
        dim: channels of a head; even, and at least ``2 * axes``.
        axes: number of spatial axes, 1 to 3.
        temperature: ratio of the largest to the smallest wavelength, for positions counted in steps.
        in_pixels: use positions from -1 to 1 over the map, with wavelengths up to `max_res`.
        max_res: maximum resolution with `in_pixels`.
        ref_feat_shape: map size used in training; positions are scaled to it.
        grid_offset: offset of positions counted in steps.
        grid_indexing: ``"ij"``, or ``"xy"`` for the horizontal axis first.
        rotate_half: pair channel ``i`` with ``i + dim / 2`` instead of its neighbor.
        device: device of the frequencies, which are float32.

    Raises:
        ValueError: if `dim` is odd or too small.
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
            raise ValueError(
                f"`dim` must be even and at least {2 * axes} for a rotary embedding of {axes} axes, got {dim}"
            )
        self.dim = dim
        self.bands = dim // (2 * axes)
        self.temperature = float(temperature)
        self.in_pixels = in_pixels
        self.max_res = max_res
        self.ref_feat_shape = ref_feat_shape
        self.grid_offset = grid_offset
        self.grid_indexing = grid_indexing
        self.rotate_half = rotate_half
        self.register_buffer("anchor", torch.empty(0, device=device), persistent=False)  # follows the module's device

    def get_embed(self, shape: list[int]) -> Tensor:
        """Return sines, then cosines, for a map of this size, float32 ``[positions, 2 * dim]``, in timm's layout."""
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
        # [*shape, axes, bands] to [positions, axes * bands]; remaining channels have the angle 0.
        sin, cos = sin.flatten(-2).flatten(0, -2), cos.flatten(-2).flatten(0, -2)
        rest = self.dim // 2 - sin.shape[-1]
        sin = F.pad(sin, [0, rest])
        cos = F.pad(cos, [0, rest], value=1.0)
        if self.rotate_half:
            return torch.cat([sin, sin, cos, cos], -1)
        return torch.cat([sin.repeat_interleave(2, -1), cos.repeat_interleave(2, -1)], -1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, in_pixels={self.in_pixels}, rotate_half={self.rotate_half}"
