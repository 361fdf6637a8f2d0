"""Long windows, processed one by one in place, in pieces of tokens that stay in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["attend", "differentiate"]

PIECE_TOKENS = 4096


def _pieces(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Slices of ``[tokens, heads, d]`` as ``[heads, tokens of the slice, d]``, in at least float32."""
    exact = torch.promote_types(tensors[0].dtype, torch.float32)
    for pieces in zip(*(x.split(PIECE_TOKENS) for x in tensors), strict=True):
        yield [x.transpose(0, 1).to(exact) for x in pieces]


def _sums(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of keys times values, ``[heads, d, value_dim]``, and of keys, ``[heads, d, 1]``."""
    exact = torch.promote_types(k.dtype, torch.float32)
    kv = k.new_zeros(k.shape[1], k.shape[2], v.shape[2], dtype=exact)
    k_sum = k.new_zeros(k.shape[1], k.shape[2], 1, dtype=exact)
    for k_p, v_p in _pieces(k, v):
        kv.baddbmm_(k_p.transpose(1, 2), v_p)
        k_sum += k_p.sum(1)[..., None]
    return kv, k_sum


def attend(q: Tensor, k: Tensor, v: Tensor, eps: float, out: Tensor) -> None:
    """Linear attention of the tokens ``[tokens, heads, d]`` of one window, written to `out`."""
    kv, k_sum = _sums(k, v)
    for (q_p,), out_p in zip(_pieces(q), out.split(PIECE_TOKENS), strict=True):
        y = torch.bmm(q_p, kv).div_(torch.bmm(q_p, k_sum).add_(eps))
        out_p.copy_(y.transpose(0, 1))


def differentiate(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, eps: float, results: list[Tensor]) -> None:
    """Gradients of q, k and v, written to `results`."""
    dq, dk, dv = (x.split(PIECE_TOKENS) for x in results)
    kv, k_sum = _sums(k, v)
    d_kv, d_k_sum = torch.zeros_like(kv), torch.zeros_like(k_sum)
    for (grad_p, q_p), dq_p in zip(_pieces(grad, q), dq, strict=True):
        denominator = torch.bmm(q_p, k_sum).add_(eps)
        grad_p = grad_p / denominator
        d_q = torch.bmm(grad_p, kv.transpose(1, 2))
        d_denominator = (q_p * d_q).sum(2, keepdim=True).div_(denominator).neg_()
        dq_p.copy_(d_q.addcmul_(d_denominator, k_sum.transpose(1, 2)).transpose(0, 1))
        d_kv.baddbmm_(q_p.transpose(1, 2), grad_p)
        d_k_sum.baddbmm_(q_p.transpose(1, 2), d_denominator)
    for (k_p, v_p), dk_p, dv_p in zip(_pieces(k, v), dk, dv, strict=True):
        dk_p.copy_(torch.bmm(v_p, d_kv.transpose(1, 2)).add_(d_k_sum.transpose(1, 2)).transpose(0, 1))
        dv_p.copy_(torch.bmm(k_p, d_kv).transpose(0, 1))
