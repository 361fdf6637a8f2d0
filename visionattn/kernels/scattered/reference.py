"""Reference implementation of scattered linear attention, window by window; the backends are tested against it."""

import torch
from torch import Tensor

__all__ = ["attend_reference"]


def attend_reference(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """Linear attention within each window; arguments as in `api.scattered_linear_attention`; at least float32.

    Returns:
        ``[tokens, heads, value_dim]`` in the dtype of the query.
    """
    exact = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.to(exact) for x in (query, key, value))
    # By item, since `tolist` fails inside of transforms in PyTorch 2.8. Without windows, one empty window.
    lengths = [int(length) for length in offsets.diff()] or [0]
    windows = []
    for q_w, k_w, v_w in zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True):
        kv = torch.einsum("nhi,nhj->hij", k_w, v_w)
        k_sum = k_w.sum(0)
        numerator = torch.einsum("nhi,hij->nhj", q_w, kv)
        denominator = torch.einsum("nhi,hi->nh", q_w, k_sum) + eps
        windows.append(numerator / denominator[..., None])
    return torch.cat(windows).to(query.dtype)
