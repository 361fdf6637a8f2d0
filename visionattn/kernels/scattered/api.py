"""`scattered_linear_attention`: linear attention within windows that hold different numbers of tokens."""

import math

import torch
from torch import Tensor

from visionattn.kernels import backends
from visionattn.kernels.scattered.ops import linear_attention_torch, linear_attention_triton
from visionattn.kernels.scattered.reference import attend_reference
from visionattn.kernels.scattered.windows import check_offsets

__all__ = ["scattered_linear_attention"]

OPERATOR = "scattered_linear_attention"


def _check_tokens(name: str, x: Tensor, query: Tensor) -> None:
    if x.dim() != 3:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have 3 dimensions: tokens, heads, head_dim")
    if x.dtype != query.dtype or x.device != query.device:
        raise ValueError(
            f"{name} is {x.dtype} on {x.device}, but query is {query.dtype} on {query.device}; they must agree"
        )
    if x.shape[:2] != query.shape[:2]:
        raise ValueError(
            f"{name} has {x.shape[0]} tokens and {x.shape[1]} heads, but query has {query.shape[0]} tokens and "
            f"{query.shape[1]} heads; they must be equal"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; only the number of tokens may be zero")
    if x.dtype not in backends.DTYPES:
        raise ValueError(f"{name} is {x.dtype}; use one of {', '.join(map(str, backends.DTYPES))}")


def _check_offsets(offsets: Tensor, query: Tensor) -> None:
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"offsets has shape {tuple(offsets.shape)}; it must be (windows + 1,)")
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.device != query.device:
        raise ValueError(
            f"offsets is {offsets.dtype} on {offsets.device}; it must be int32 or int64 on {query.device}, as the query"
        )


def scattered_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    offsets: Tensor,
    *,
    eps: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """Linear attention within windows of different sizes (He et al., ScatterFormer, arXiv 2401.00912, section 3.2).

    The tokens of all windows lie one behind the other. With the sums over the tokens j of a token's window,

        out_i = (q_i · sum_j k_j v_jᵀ) / (q_i · sum_j k_j + eps)

    per head: no scale, no softmax, and time and memory linear in the number of tokens, however unequal the windows
    are. Queries and keys come with their feature map applied (ReLU in the paper); they should not be negative, or the
    denominator may vanish.

    Args:
        query: ``[tokens, heads, head_dim]``, sorted by window.
        key: ``[tokens, heads, head_dim]``.
        value: ``[tokens, heads, value_dim]``.
        offsets: int32 or int64 ``[windows + 1]``: window w holds the tokens from ``offsets[w]`` up to
            ``offsets[w + 1]``, and may be empty. It begins with 0, ends with the number of tokens and never falls.
            The values are checked on a CPU. Not on a GPU, which would have to wait for them: tokens of windows that
            break the rule have undefined results there, but no memory outside of the tensors is touched.
        eps: added once to the denominator; positive, so that the output of an all-zero query is exactly zero.
        backend: ``"triton"``, ``"torch"``, ``"reference"``, or None for the best that can run (see
            `kernels.backends.explain`).

    Returns:
        ``[tokens, heads, value_dim]`` in the type of the query. Sums are accumulated in float32 at least. It does
        not depend on the order of a window's tokens, up to rounding.

    Raises:
        ValueError: for arguments that do not fit together; the message names the argument.
        BackendError: when the backend named cannot run here.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_tokens(name, x, query)
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key has head_dim {key.shape[-1]}, but query has {query.shape[-1]}; they must be equal")
    _check_offsets(offsets, query)
    eps = float(eps)
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"eps={eps!r} must be a positive number")
    device = query.device.type
    dtype = query.dtype
    autocast = torch.amp.is_autocast_available(device)  # not for tensors without memory
    if dtype != torch.float64 and autocast and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    head_dim = max(query.shape[-1], value.shape[-1])
    chosen = backends.select(OPERATOR, query.device, dtype, backend, head_dim=head_dim)
    with torch.autocast(device if autocast else "cpu", enabled=False):
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if chosen == "reference":
            check_offsets(offsets, query.shape[0])
            return attend_reference(query, key, value, offsets, eps)
        run = linear_attention_triton if chosen == "triton" else linear_attention_torch
        return run(query, key, value, offsets, eps)
