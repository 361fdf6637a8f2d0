"""Dense attention of one tile, and the tables of masks and biases: what forward and backward share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["attend", "outer", "padded_table", "scores", "window_table"]


def outer(tables: Sequence[Tensor], combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine per-axis ``[queries, keys]`` tables into one over the product of the axes."""
    result = tables[0]
    for table in tables[1:]:
        result = combine(result[:, None, :, None], table[None, :, None, :])
        result = result.reshape(result.shape[0] * result.shape[1], -1)
    return result


def window_table(windows: Sequence[tuple[int, int]], keys: int) -> Tensor:
    """Boolean ``[queries, keys]``: the keys inside each query's half-open interval."""
    bounds, positions = torch.tensor(windows), torch.arange(keys)
    return (positions >= bounds[:, :1]) & (positions < bounds[:, 1:])


def padded_table(rpb: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The bias table as ``[heads, entries + 1]``; the last entry is -inf, and masked pairs read it."""
    if rpb is None:
        return None
    table = rpb.to(dtype).flatten(1)
    return torch.cat([table, table.new_full((table.shape[0], 1), -torch.inf)], dim=1)


def scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Scaled products plus bias, in float32 at least."""
    result = ((q * scale) @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    return result if bias is None else result.add_(bias)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of ``[N, M, positions, d]``: output and the logarithm of the softmax denominator ``[N, M, queries]``.

    Args:
        bias: added to the scaled scores; broadcasts to ``[N, M, queries, keys]``.
    """
    if q.device.type == "cpu" and q.shape[-1] == v.shape[-1]:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        if bias is not None:
            bias = bias.expand(*q.shape[:2], -1, -1)
        results = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=bias, scale=scale
        )
        return results[0], results[1]
    logits = scores(q, k, bias, scale)
    lse = torch.logsumexp(logits, dim=-1)
    return torch.exp(logits - lse[..., None]).to(v.dtype) @ v, lse
