"""`scattered_linear_attention`: linear attention within windows with different numbers of tokens."""

import math

import torch
from torch import Tensor

from visionattn.kernels import backends
from visionattn.kernels.scattered.ops import linear_attention_torch, linear_attention_triton
from visionattn.kernels.scattered.reference import attend_reference
from visionattn.kernels.scattered.sums import attend_sums
from visionattn.kernels.scattered.windows import check_offsets
from visionattn.kernels.transforms import autocast_dtype, full_precision, is_transformed

__all__ = ["scattered_linear_attention"]

OPERATOR = "scattered_linear_attention"


def _check_tokens(name: str, x: Tensor, query: Tensor) -> None:
    if x.dim() != 3:
        raise ValueError(f"`{name}` must have 3 dimensions (tokens, heads, head_dim), got shape {list(x.shape)}")
    if x.dtype != query.dtype or x.device != query.device:
        raise ValueError(
            f"`{name}` must have the dtype and device of `query`, {query.dtype} on {query.device}, "
            f"got {x.dtype} on {x.device}"
        )
    if x.shape[:2] != query.shape[:2]:
        raise ValueError(
            f"`{name}` must have the tokens and heads of `query`, {query.shape[0]} and {query.shape[1]}, "
            f"got {x.shape[0]} and {x.shape[1]}"
        )
    if 0 in x.shape[1:]:
        raise ValueError(f"`{name}` must not be empty except for the tokens, got shape {list(x.shape)}")
    if x.dtype not in backends.DTYPES:
        raise ValueError(f"`{name}` must have a dtype of {', '.join(map(str, backends.DTYPES))}, got {x.dtype}")


def _check_offsets(offsets: Tensor, query: Tensor) -> None:
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"`offsets` must have shape [windows + 1], got {list(offsets.shape)}")
    if offsets.dtype not in (torch.int32, torch.int64) or offsets.device != query.device:
        raise ValueError(
            f"`offsets` must be int32 or int64 on the device of `query`, {query.device}, "
            f"got {offsets.dtype} on {offsets.device}"
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

    The tokens of all windows are concatenated. With sums over the tokens j in the window of token i,

        out_i = (q_i · sum_j k_j v_jᵀ) / (q_i · sum_j k_j + eps)

    per head, without scale and softmax. Time and memory are linear in the number of tokens for any sizes of the
    windows. The feature map (ReLU in the paper) must be applied to queries and keys before; they should not be
    negative, since the denominator could vanish.

    Args:
        query: ``[tokens, heads, head_dim]``, sorted by window.
        key: ``[tokens, heads, head_dim]``.
        value: ``[tokens, heads, value_dim]``.
        offsets: int32 or int64 ``[windows + 1]``: window w has the tokens ``offsets[w]`` to
            ``offsets[w + 1] - 1`` and may be empty. The first value must be 0, the last one the number of tokens, and
            values must not decrease. They are checked on a CPU, but not on a GPU, where this would require a
            synchronization: there, invalid windows have undefined results, but no memory outside the tensors is
            accessed.
        eps: added to the denominator; positive, so that the output of an all-zero query is exactly zero.
        backend: ``"triton"``, ``"torch"``, ``"reference"``, or None for the best available one (see
            `kernels.backends.explain`).

    Returns:
        ``[tokens, heads, value_dim]`` in the dtype of the query. Sums are accumulated in at least float32. Up to
        rounding, the result does not depend on the order of the tokens in a window.

    Raises:
        ValueError: invalid arguments.
        BackendError: the given backend cannot run.
    """
    for name, x in (("query", query), ("key", key), ("value", value)):
        _check_tokens(name, x, query)
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"`key` must have the head_dim of `query`, {query.shape[-1]}, got {key.shape[-1]}")
    _check_offsets(offsets, query)
    eps = float(eps)
    if not (eps > 0 and math.isfinite(eps)):
        raise ValueError(f"`eps` must be a positive number, got {eps!r}")
    device = query.device.type
    dtype = autocast_dtype(device, query.dtype)
    head_dim = max(query.shape[-1], value.shape[-1])
    chosen = backends.select(OPERATOR, query.device, dtype, backend, head_dim=head_dim)
    with full_precision(device):
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        if chosen != "reference" and is_transformed(query, key, value):
            if not (torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(offsets)):
                check_offsets(offsets, query.shape[0])
            return attend_sums(query, key, value, offsets, eps)
        if chosen == "reference":
            check_offsets(offsets, query.shape[0])
            return attend_reference(query, key, value, offsets, eps)
        run = linear_attention_triton if chosen == "triton" else linear_attention_torch
        return run(query, key, value, offsets, eps)
