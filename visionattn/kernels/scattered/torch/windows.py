"""The PyTorch backend: windows of similar length are processed together as batched products of small matrices.

A block of windows is gathered and transposed to heads first, so that each product is one call for all its windows and
heads; the copies stay in the cache. Long windows are read in place.
"""

from math import prod

import torch
from torch import Tensor

from visionattn.kernels import workspace
from visionattn.kernels.scattered.torch import long as torch_long
from visionattn.kernels.scattered.torch import products as torch_products
from visionattn.kernels.scattered.torch.plan import Block, make_plan

__all__ = ["backward", "forward"]


class _Memory:
    """Gathers from inputs and scatters to results, reusing the same buffers for all blocks."""

    def __init__(self, like: Tensor) -> None:
        self.heads, self.dtype = like.shape[1], like.dtype
        self.exact = torch.promote_types(like.dtype, torch.float32)
        self.scratch = workspace.scratch(like.device)
        self.flat: dict[tuple[str, torch.dtype], Tensor] = {}

    def buffer(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Uninitialized memory, in at least float32."""
        key = name, dtype or self.exact
        numel = prod(shape)
        flat = self.flat.get(key)
        if flat is None or flat.numel() < numel:
            size = 1 << (numel - 1).bit_length()  # powers of two, so that buffers are reused when windows change
            flat = self.flat[key] = self.scratch.take((f"scattered {name}", (size,), key[1]))
        return flat[:numel].view(shape)

    def gather(self, name: str, source: Tensor, block: Block, zero_padding: bool = False) -> Tensor:
        """Gather from ``[tokens, heads * d]`` to ``[windows * heads, length, d]``, in at least float32."""
        windows, length = block.token.shape
        index, width = block.sources(), source.shape[1]
        rows = torch.index_select(source, 0, index, out=self.buffer("rows", len(index), width, dtype=self.dtype))
        out = self.buffer(name, windows, self.heads, length, width // self.heads)
        out.copy_(rows.view(windows, length, self.heads, -1).transpose(1, 2))
        if zero_padding and block.real is not None:
            out.mul_(block.real[:, None, :, None])
        return out.flatten(0, 1)

    def scatter(self, values: Tensor, result: Tensor, block: Block) -> None:
        """The inverse of `gather`; `result` has one more row, for the results of padding."""
        windows, length = block.token.shape
        rows = self.buffer("rows", windows, length, self.heads, values.shape[2], dtype=self.dtype)
        rows.copy_(values.view(windows, self.heads, length, -1).transpose(1, 2))
        rows = rows.view(-1, result.shape[1])
        if rows.shape[1] * rows.element_size() % 8 == 0:
            rows, result = rows.view(torch.int64), result.view(torch.int64)  # the copy works element by element
        result.index_copy_(0, block.destinations(len(result) - 1), rows)


def _result(like: Tensor) -> Tensor:
    """Uninitialized ``[tokens + 1, heads * d]``."""
    return like.new_empty(like.shape[0] + 1, like.shape[1] * like.shape[2])


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """Arguments as in `reference.attend_reference`."""
    blocks, long = make_plan(offsets)
    memory = _Memory(q)
    out = _result(v)
    q_rows, k_rows, v_rows = (x.flatten(1) for x in (q, k, v))
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
        torch_long.attend(*(x[start:stop] for x in (q, k, v)), eps, out[start:stop].view(-1, *v.shape[1:]))
    return out.resize_(v.shape)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward` with respect to q, k and v. The sums of the windows are recomputed."""
    blocks, long = make_plan(offsets)
    memory = _Memory(q)
    results = [_result(x) for x in (q, k, v)]
    sources = [x.flatten(1) for x in (grad_out, q, k, v)]
    for block in blocks:
        inputs = [
            memory.gather(name, source, block, zero_padding=name in ("grad", "k"))
            for name, source in zip(("grad", "q", "k", "v"), sources, strict=True)
        ]
        gradients = torch_products.differentiate(*inputs, eps, memory.buffer)
        for gradient, result in zip(gradients, results, strict=True):
            memory.scatter(gradient, result, block)
    for start, stop in long:
        torch_long.differentiate(
            *(x[start:stop] for x in (grad_out, q, k, v)),
            eps,
            [y[start:stop].view(-1, *x.shape[1:]) for x, y in zip((q, k, v), results, strict=True)],
        )
    dq, dk, dv = (y.resize_(x.shape) for x, y in zip((q, k, v), results, strict=True))
    return dq, dk, dv
