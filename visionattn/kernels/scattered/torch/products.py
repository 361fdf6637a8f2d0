"""Linear attention of windows of equal length, and its gradients, as batched matrix products.

Tokens are ``[windows * heads, length, d]``. There are two ways to compute a window: as attention without softmax over
all pairs of tokens, which takes fewer operations if the window is shorter than the head dimension; or with the matrix
of sums of keys times values.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["attend", "differentiate"]

Buffer = Callable[..., Tensor]  # from a name and shape to uninitialized memory


def _pairs_are_fewer(length: int, dim: int, value_dim: int) -> bool:
    return length * (dim + value_dim) <= 2 * dim * value_dim


def attend(q: Tensor, k: Tensor, v: Tensor, eps: float, buffer: Buffer) -> Tensor:
    """Linear attention; padding must be zero in k."""
    items, length, dim = q.shape
    value_dim = v.shape[2]
    out = buffer("out", items, length, value_dim)
    if _pairs_are_fewer(length, dim, value_dim):
        scores = torch.bmm(q, k.transpose(1, 2), out=buffer("scores", items, length, length))
        scores /= scores.sum(2, keepdim=True).add_(eps)
        return torch.bmm(scores, v, out=out)
    kv = torch.bmm(k.transpose(1, 2), v, out=buffer("kv", items, dim, value_dim))
    denominator = torch.bmm(q, k.sum(1)[..., None]).add_(eps)
    return torch.bmm(q, kv, out=out).div_(denominator)


def differentiate(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, eps: float, buffer: Buffer
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. Padding must be zero in k and grad, which is overwritten."""
    items, length, dim = q.shape
    value_dim = v.shape[2]
    dq, dk = buffer("dq", items, length, dim), buffer("dk", items, length, dim)
    dv = buffer("dv", items, length, value_dim)
    if _pairs_are_fewer(length, dim, value_dim):
        scores = torch.bmm(q, k.transpose(1, 2), out=buffer("scores", items, length, length))
        denominator = scores.sum(2, keepdim=True).add_(eps)
        grad /= denominator
        d_scores = torch.bmm(grad, v.transpose(1, 2), out=buffer("d_scores", items, length, length))
        torch.bmm(scores.transpose(1, 2), grad, out=dv)
        d_scores -= scores.mul_(d_scores).sum(2, keepdim=True).div_(denominator)
        torch.bmm(d_scores, k, out=dq)
        torch.bmm(d_scores.transpose(1, 2), q, out=dk)
        return dq, dk, dv
    k_sum = k.sum(1)
    kv = torch.bmm(k.transpose(1, 2), v, out=buffer("kv", items, dim, value_dim))
    denominator = torch.bmm(q, k_sum[..., None]).add_(eps)
    grad /= denominator
    torch.bmm(grad, kv.transpose(1, 2), out=dq)
    # The output times its gradient equals the query times the first part of the gradient of the query, so the output
    # is not needed.
    d_denominator = torch.mul(q, dq, out=dk).sum(2, keepdim=True).div_(denominator).neg_()
    dq.addcmul_(d_denominator, k_sum[:, None])
    d_kv = torch.bmm(q.transpose(1, 2), grad, out=kv)
    torch.bmm(k, d_kv, out=dv)
    torch.bmm(v, d_kv.transpose(1, 2), out=dk).add_(torch.bmm(d_denominator.transpose(1, 2), q))
    return dq, dk, dv
