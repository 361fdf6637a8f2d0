"""NaN and infinity in some keys must reach only the queries that attend to them.

The backends exclude pairs of query and key with additive masks and zero probabilities, but NaN + -inf and 0 * NaN are
NaN. This is detected from the result, which is then computed again with functions that skip excluded pairs.
"""

import math

import torch
from torch import Tensor

__all__ = ["has_nan", "masked_product"]


def has_nan(*tensors: Tensor) -> bool:
    """Return True if a tensor contains NaN; can also be True if it contains infinities of both signs.

    Synchronizes with the device. The result is False on the meta device, and during the capture of a CUDA graph, which
    does not allow this.
    """
    if tensors[0].is_meta or (tensors[0].is_cuda and torch.cuda.is_current_stream_capturing()):
        return False
    return any(math.isnan(x.sum().item()) for x in tensors)  # the fastest test: one pass without temporary memory


def masked_product(weight: Tensor, values: Tensor, allowed: Tensor) -> Tensor:
    """``weight @ values``, to which only the pairs in `allowed` contribute, also if values are not finite.

    Args:
        weight: ``[..., M, N]``, 0 for pairs that are not allowed.
        values: ``[..., N, d]``.
        allowed: bool ``[..., M, N]``.

    Returns:
        ``[..., M, d]``.
    """
    finite = values.isfinite()
    result = weight @ values.where(finite, 0)
    if bool(finite.all()):
        return result
    infinite = values.nan_to_num(nan=0, posinf=1, neginf=-1).where(~finite, 0)
    signs = weight.sign()
    total, net = signs.abs() @ infinite.abs(), signs @ infinite  # equal magnitudes if all infinities have one sign
    result = result + torch.where(total > 0, torch.where(net.abs() == total, net * torch.inf, torch.nan), 0)
    return result.masked_fill(allowed.to(weight.dtype) @ values.isnan().to(weight.dtype) > 0, torch.nan)
