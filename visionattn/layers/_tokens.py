"""Base class of the attention modules over token maps."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TokenAttention", "TokenGrid", "pair", "resize_grid"]


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """Return a positive integer, or a pair of them, as a pair."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ValueError(f"`{name}` must be an integer >= 1, or two of them (height, width), got {value!r}")
    return values


def resize_grid(table: Tensor, size: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Interpolate (bilinear) the map part of a table ``[prefix + H * W, C]``, in row-major order, to the size `new`."""
    prefix = table.shape[0] - size[0] * size[1]
    grid = table[prefix:].T.unflatten(1, size)[None]
    wide = F.interpolate(grid.float() if grid.dtype in (torch.float16, torch.bfloat16) else grid, new, mode="bilinear")
    return torch.cat([table[:prefix], wide[0].flatten(1).T.to(table.dtype)])


class TokenGrid:
    """Height and width of the current token map, shared by the attention modules of a model."""

    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None


class TokenAttention(nn.Module):
    """Base class of attention over a token map of any height and width.

    The input is ``[B, C, H, W]``, or ``[B, num_prefix_tokens + H * W, C]`` in row-major order, with class and register
    tokens first. For the second form the map size is the `size` argument of `forward`, else the size that
    `visionattn.layers.replace_attention` records, else `input_size`. It is never inferred from the number of tokens.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        input_size: height and width of the map that position parameters are for; they are interpolated to other sizes.
        num_prefix_tokens: number of tokens before those of the map.

    Raises:
        ValueError: if an argument is out of range or the input has the wrong shape.
    """

    def __init__(self, dim: int, num_heads: int, input_size: int | Sequence[int], num_prefix_tokens: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"`dim` must be a multiple of `num_heads`={num_heads}, got {dim}")
        if num_prefix_tokens < 0:
            raise ValueError(f"`num_prefix_tokens` must be at least 0, got {num_prefix_tokens}")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.input_size = pair(input_size, "input_size")
        self.num_prefix_tokens = num_prefix_tokens
        self.grid: TokenGrid | None = None

    def tokens(self, x: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, int, int]:
        """Return the input as ``[B, N, C]``, and the height and width of its map."""
        prefix = self.num_prefix_tokens
        if x.dim() == 4:
            if prefix:
                raise ValueError(f"`x` must be [B, N, C] with `num_prefix_tokens`={prefix}, got shape {tuple(x.shape)}")
            height, width = x.shape[2:]
            x = x.flatten(2).transpose(1, 2)
        elif x.dim() == 3:
            if size is None and self.grid is not None:
                size = self.grid.size
            height, width = self.input_size if size is None else size
            if x.shape[1] != prefix + height * width:
                raise ValueError(
                    f"`x` must have {prefix + height * width} tokens for `size`={(height, width)} and "
                    f"`num_prefix_tokens`={prefix}, got {x.shape[1]}"
                )
        else:
            raise ValueError(f"`x` must be [B, N, C] or [B, C, H, W], got shape {tuple(x.shape)}")
        if x.shape[2] != self.dim:
            raise ValueError(f"`x` must have `dim`={self.dim} channels, got {x.shape[2]}")
        return x, height, width

    def heads(self, x: Tensor) -> Tensor:
        """Split ``[B, N, C]`` into heads ``[B, heads, N, C / heads]``."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Compute attention.

        Args:
            x: ``[B, C, H, W]`` or ``[B, num_prefix_tokens + H * W, C]``.
            attn_mask, is_causal: accepted for compatibility with timm's `Attention`; must be None and False.
            size: height and width of the map, for the second form of `x`.

        Returns:
            Tensor of the shape of `x`.
        """
        if attn_mask is not None or is_causal:
            name, value = ("is_causal", False) if is_causal else ("attn_mask", None)
            raise ValueError(f"`{name}` must be {value}, because {type(self).__name__} does not support it")
        tokens, height, width = self.tokens(x, size)
        out = self.attend(tokens, height, width)
        return out if x.dim() == 3 else out.transpose(1, 2).reshape(x.shape)

    def attend(self, x: Tensor, height: int, width: int) -> Tensor:
        """Compute attention of tokens ``[B, N, C]``; returns the same shape."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, input_size={self.input_size}, "
            f"num_prefix_tokens={self.num_prefix_tokens}"
        )
