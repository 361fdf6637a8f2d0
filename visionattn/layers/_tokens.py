"""What the attention modules over token maps share: their inputs, and how they know height and width."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["TokenAttention", "TokenGrid", "pair", "resize_grid"]


def pair(value: int | Sequence[int], name: str) -> tuple[int, int]:
    """A positive integer, or two of them, as two."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ValueError(f"{name}={value!r} must be an integer >= 1, or (height, width)")
    return values


def resize_grid(table: Tensor, size: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Rows ``[prefix + H * W, C]``, the last ones a map in row-major order, to another map; others stay."""
    prefix = table.shape[0] - size[0] * size[1]
    grid = table[prefix:].T.unflatten(1, size)[None]
    wide = F.interpolate(grid.float() if grid.dtype in (torch.float16, torch.bfloat16) else grid, new, mode="bilinear")
    return torch.cat([table[:prefix], wide[0].flatten(1).T.to(table.dtype)])


class TokenGrid:
    """Height and width of the token map of a model, which its attention modules share."""

    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None


class TokenAttention(nn.Module):
    """Base of modules that attend within a token map of any height and width.

    The map is ``[B, C, H, W]``, or ``[B, num_prefix_tokens + H * W, C]`` in row-major order with class token and its
    like first. Of the second form the size must be known: `size` of `forward`, else that of the model
    (`visionattn.layers.replace_attention` sees to it), else `input_size`. It is never guessed from a number of tokens.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads.
        input_size: height and width for which there are parameters; they are interpolated for other maps.
        num_prefix_tokens: tokens before those of the map.

    Raises:
        ValueError: an argument out of its range, or an input that does not fit.
    """

    def __init__(self, dim: int, num_heads: int, input_size: int | Sequence[int], num_prefix_tokens: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads, but dim={dim} and num_heads={num_heads}")
        if num_prefix_tokens < 0:
            raise ValueError(f"num_prefix_tokens={num_prefix_tokens} must be at least 0")
        self.dim = dim
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.input_size = pair(input_size, "input_size")
        self.num_prefix_tokens = num_prefix_tokens
        self.grid: TokenGrid | None = None

    def tokens(self, x: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, int, int]:
        """The input as ``[B, N, C]``, with height and width of its map."""
        prefix = self.num_prefix_tokens
        if x.dim() == 4:
            if prefix:
                raise ValueError(f"x must be [B, N, C] where num_prefix_tokens={prefix}, got {tuple(x.shape)}")
            height, width = x.shape[2:]
            x = x.flatten(2).transpose(1, 2)
        elif x.dim() == 3:
            if size is None and self.grid is not None:
                size = self.grid.size
            height, width = self.input_size if size is None else size
            if x.shape[1] != prefix + height * width:
                raise ValueError(
                    f"size={(height, width)} needs {prefix + height * width} tokens with num_prefix_tokens={prefix}, "
                    f"but x has {x.shape[1]}; give the size of the map as size=(height, width)"
                )
        else:
            raise ValueError(f"x must be [B, N, C] or [B, C, H, W], got {x.dim()} axes")
        if x.shape[2] != self.dim:
            raise ValueError(f"x must have dim={self.dim} channels, got {x.shape[2]}")
        return x, height, width

    def heads(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, heads, N, C / heads]``."""
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Attend within the map.

        Args:
            x: ``[B, C, H, W]``, or ``[B, num_prefix_tokens + H * W, C]``.
            attn_mask, is_causal: as timm's `Attention` has them; must be None and False.
            size: height and width of the map of the second form.

        Returns:
            The same shape.
        """
        if attn_mask is not None or is_causal:
            what = f"is_causal={is_causal}" if is_causal else "attn_mask"
            raise ValueError(f"{what} is not supported by {type(self).__name__}; it must be left out")
        tokens, height, width = self.tokens(x, size)
        out = self.attend(tokens, height, width)
        return out if x.dim() == 3 else out.transpose(1, 2).reshape(x.shape)

    def attend(self, x: Tensor, height: int, width: int) -> Tensor:
        """``[B, N, C]`` to the same shape."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_heads={self.num_heads}, input_size={self.input_size}, "
            f"num_prefix_tokens={self.num_prefix_tokens}"
        )
