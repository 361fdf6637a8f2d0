"""Linear attention with differentiable operators, for transforms (see `kernels.transforms`).

It stores a matrix of keys times values for every token.
"""

import torch
from torch import Tensor

__all__ = ["attend_sums"]


def attend_sums(query: Tensor, key: Tensor, value: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """Linear attention within each window; arguments as in `api.scattered_linear_attention`; at least float32."""
    exact = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.to(exact) for x in (query, key, value))
    token = torch.arange(q.shape[0], dtype=offsets.dtype, device=q.device)
    window = torch.searchsorted(offsets[1:].contiguous(), token, right=True)
    products = k[..., :, None] * v[..., None, :]
    shape = (offsets.shape[0] - 1, *k.shape[1:])
    kv = products.new_zeros(*shape, v.shape[-1]).index_add(0, window, products)
    k_sum = k.new_zeros(shape).index_add(0, window, k)
    numerator = torch.einsum("nhi,nhij->nhj", q, kv[window])
    denominator = torch.einsum("nhi,nhi->nh", q, k_sum[window]) + eps
    return (numerator / denominator[..., None]).to(query.dtype)
