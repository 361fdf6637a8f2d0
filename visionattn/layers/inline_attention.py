"""InLine attention: linear attention with weights normalized by subtraction, and an input-dependent convolution.

Han et al., "Bridging the Divide: Reconsidering Softmax and Linear Attention" (arXiv 2412.06590). Parameter names are
the published ones.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from visionattn.layers._tokens import TokenAttention

__all__ = ["KERNEL_FUNCTIONS", "InLineAttention"]

KERNEL_FUNCTIONS = ("identity", "relu", "leakyrelu", "exp")


@register_notrace_module
class InLineAttention(TokenAttention):
    """Multi-head injective linear attention, linear in the number of tokens.

    The weight of key j for query i is ``scale * q_i (k_j - mean(k)) / N + 1 / N``; the weights sum to 1 and differ
    between queries. A depthwise 3x3 convolution of the values is added, whose kernels are predicted from the mean of
    the input. Prefix tokens are excluded from the convolution only.

    Args:
        dim: channels; a multiple of `num_heads`.
        num_heads: attention heads; also the groups of the layers that predict the kernels.
        input_size: default height and width of the map; there are no position parameters.
        num_prefix_tokens: number of tokens before those of the map, such as 1 for a class token.
        qkv_bias: add a bias to the query, key and value projection, as in the published Swin models.
        kernel_func: feature map of queries and keys: ``"identity"``, ``"relu"``, ``"leakyrelu"`` (slope 0.01),
            ``"exp"`` (``exp(0.2 x)``).
        attn_drop: must be 0, because there are no attention probabilities.
        proj_drop: dropout rate after the output projection.
        device, dtype: device and dtype of the parameters.

    Shapes: see `TokenAttention`.

    Raises:
        ValueError: if an argument is out of range or the input has the wrong shape.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        input_size: int | Sequence[int] = 14,
        num_prefix_tokens: int = 0,
        qkv_bias: bool = False,
        kernel_func: str = "identity",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, input_size, num_prefix_tokens)
        if kernel_func not in KERNEL_FUNCTIONS:
            raise ValueError(f"`kernel_func` must be one of {KERNEL_FUNCTIONS}, got {kernel_func!r}")
        if attn_drop:
            raise ValueError(
                f"`attn_drop` must be 0, because InLineAttention has no attention probabilities, got {attn_drop}"
            )
        dd = {"device": device, "dtype": dtype}
        self.kernel_func = kernel_func
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.residual = nn.Sequential(
            nn.Conv1d(dim, dim, 1, groups=num_heads, **dd),
            nn.GELU(),
            nn.Conv1d(dim, 9 * dim, 1, groups=num_heads, **dd),
        )

    def feature(self, x: Tensor) -> Tensor:
        """Apply the feature map `kernel_func`."""
        if self.kernel_func == "relu":
            return F.relu(x)
        if self.kernel_func == "leakyrelu":
            return F.leaky_relu(x, 0.01)
        if self.kernel_func == "exp":
            return torch.exp(0.2 * x)
        return x

    def attend(self, x: Tensor, height: int, width: int) -> Tensor:
        prefix, count = self.num_prefix_tokens, x.shape[1]
        q, k, v = self.qkv(x).chunk(3, -1)
        kernels = self.residual(x.mean(1)[..., None]).view(-1, self.dim, 3, 3)
        local = dynamic_conv(v[:, prefix:].transpose(1, 2).unflatten(2, (height, width)), kernels)
        q, k, v = self.heads(self.feature(q)), self.heads(self.feature(k)), self.heads(v)
        # Sums over N tokens can overflow float16, so the square root of the factor is applied to both sides.
        root = (self.scale / count) ** 0.5
        state = (k * root).transpose(2, 3) @ (v * root)
        excess = 1 - self.scale * (q @ k.mean(2, keepdim=True).transpose(2, 3))
        out = q @ state + excess * v.mean(2, keepdim=True)
        out = out.transpose(1, 2).flatten(2)
        local = local.flatten(2).transpose(1, 2)
        if prefix:
            local = F.pad(local, (0, 0, prefix, 0))
        return self.proj_drop(self.proj(out + local))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel_func={self.kernel_func!r}"


def dynamic_conv(x: Tensor, kernels: Tensor) -> Tensor:
    """Depthwise convolution of ``[B, C, H, W]`` with separate kernels ``[B, C, 3, 3]`` for each sample."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    out = 0
    for row in range(3):
        for column in range(3):
            shifted = padded[:, :, row : row + height, column : column + width]
            out = out + shifted * kernels[:, :, row, column, None, None]
    return out
