"""The portable backend: windows of about one length together, as batched products of small matrices.

A block of windows is gathered head by head, so that each product is one call for all its windows and heads; the copies
stay in the cache. Long windows are read in place.
"""

from math import prod

import torch
from torch import Tensor

from visionattn.kernels import workspace
from visionattn.kernels.scattered import torch_long, torch_products
from visionattn.kernels.scattered.torch_plan import Block, make_plan

__all__ = ["backward", "forward"]


class _Rows:
    """A tensor ``[tokens, heads, d]`` as a matrix of rows ``d``, in place where its layout allows that."""

    def __init__(self, x: Tensor) -> None:
        tokens, heads, dim = x.shape
        if x.stride(2) != 1 or x.stride(1) != dim or x.stride(0) % dim or x.stride(0) < heads * dim:
            x = x.contiguous()
        self.tokens = x
        self.pitch = x.stride(0) // dim
        self.matrix = x.as_strided(((tokens - 1) * self.pitch + heads, dim), (dim, 1)) if tokens else x.view(0, dim)


class _Memory:
    """Gathers from inputs and scatters to results; every block overwrites the same buffers."""

    def __init__(self, like: Tensor) -> None:
        self.dtype, self.exact = like.dtype, torch.promote_types(like.dtype, torch.float32)
        self.scratch = workspace.scratch(like.device)
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def buffer(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialised memory, float32 at least."""
        key = name, dtype or self.exact
        numel = prod(shape)
        flat = self.flat.get(key)
        if flat is None or flat.numel() < numel:
            size = 1 << (numel - 1).bit_length()  # few sizes, however the windows change from call to call
            flat = self.flat[key] = self.scratch.take((f"scattered {name}", (size,), key[1]))
        return flat[:numel].view(shape)

    def gather(self, name: str, source: _Rows, block: Block, zero_padding: bool = False) -> Tensor:
        """``[windows * heads, length, d]``, float32 at least."""
        rows, dim = block.rows(source.pitch), source.matrix.shape[1]
        shape = rows.numel(), dim
        out = self.buffer(name, *shape)
        if self.dtype == self.exact:
            torch.index_select(source.matrix, 0, rows, out=out)
        else:
            out.copy_(torch.index_select(source.matrix, 0, rows, out=self.buffer("raw", *shape, dtype=self.dtype)))
        if zero_padding and block.real is not None:
            windows = block.token.shape[0]
            out.view(windows, -1, block.length, dim).mul_(block.real[..., None])
        return out.view(block.items, block.length, dim)

    def scatter(self, values: Tensor, result: Tensor, block: Block) -> None:
        values = values.view(-1, values.shape[-1])
        if self.dtype != self.exact:
            values = self.buffer("raw", *values.shape, dtype=self.dtype).copy_(values)
        result.view(-1, values.shape[1]).index_copy_(0, block.destinations(), values)


def _result(like: Tensor, dim: int) -> Tensor:
    """Memory for ``[tokens, heads, dim]`` and one more token, which takes what is computed for padding."""
    return like.new_empty(like.shape[0] + 1, like.shape[1], dim)


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """Arguments as in `reference.attend_reference`."""
    blocks, long = make_plan(offsets, *q.shape[:2])
    memory = _Memory(q)
    out = _result(v, v.shape[2])
    q_rows, k_rows, v_rows = _Rows(q), _Rows(k), _Rows(v)
    for block in blocks:
        y = torch_products.attend(
            memory.gather("q", q_rows, block),
            memory.gather("k", k_rows, block, zero_padding=True),
            memory.gather("v", v_rows, block),
            eps,
            memory.buffer,
        )
        memory.scatter(y, out, block)
    for start, stop in long:
        torch_long.attend(*(x.tokens[start:stop] for x in (q_rows, k_rows, v_rows)), eps, out[start:stop])
    return out.resize_(*v.shape)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward` with respect to q, k and v. The sums of the windows are computed again."""
    blocks, long = make_plan(offsets, *q.shape[:2])
    memory = _Memory(q)
    results = [_result(x, x.shape[2]) for x in (q, k, v)]
    sources = [_Rows(x) for x in (grad_out, q, k, v)]
    for block in blocks:
        inputs = [
            memory.gather(name, source, block, zero_padding=name in "gk")
            for name, source in zip("gqkv", sources, strict=True)
        ]
        gradients = torch_products.differentiate(*inputs, eps, memory.buffer)
        for gradient, result in zip(gradients, results, strict=True):
            memory.scatter(gradient, result, block)
    for start, stop in long:
        torch_long.differentiate(
            *(x.tokens[start:stop] for x in sources), eps, tuple(x[start:stop] for x in results)
        )
    dq, dk, dv = (result.resize_(*x.shape) for result, x in zip(results, (q, k, v), strict=True))
    return dq, dk, dv
