"""PyTorch's fused attention, also inside of transforms."""

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.transforms import is_transformed

__all__ = ["attend"]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """Same as `torch.nn.functional.scaled_dot_product_attention`.

    PyTorch's fused kernels support neither forward-mode differentiation nor all `torch.func` transforms. Inside of
    these, the attention is computed with differentiable operators.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips only whole statements
        if is_transformed(query, key, value, attn_mask):
            return _differentiable(query, key, value, attn_mask, dropout_p, scale)
    return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, scale=scale)


@torch.jit.unused
def _differentiable(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, scale: float | None
) -> Tensor:
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value
