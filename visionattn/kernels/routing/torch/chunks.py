"""The PyTorch backend: chunks of query regions, with their keys and values gathered into small buffers.

A query region of one head attends densely to the tokens of its selected regions; a chunk of query regions is two
batched products and a softmax. Gathered copies exist for one chunk at a time, so the additional memory does not grow
with the size of the map, and the scores stay in the cache.
"""

import torch
from torch import Tensor

from visionattn.kernels.routing.regions import join, masked_bias, nothing_attended, split

__all__ = ["backward", "forward"]

# Bytes of the scores of one chunk; with the gathered keys and values they should fit into the caches.
CHUNK_BYTES = 1 << 21


class _Problem:
    """The inputs divided into regions, and the rows of keys of each query region."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, key_regions: Tensor, mask: Tensor | None, regions: tuple[int, int]
    ) -> None:
        batch, heads = q.shape[0], q.shape[-2]
        self.exact = torch.promote_types(q.dtype, torch.float32)
        self.regions, self.topk = regions, key_regions.shape[-1]
        self.q, self.k, self.v = (split(x, regions, self.exact) for x in (q, k, v))
        count = regions[0] * regions[1]
        offset = torch.arange(0, batch * heads * count, count, device=q.device)
        # Indices into the rows of `split`, one row per image, head and query region.
        self.index = (key_regions[:, None] + offset.view(batch, heads, 1, 1)).view(-1, self.topk)
        bias = masked_bias(tuple(k.shape[1:3]), regions, mask, self.exact, q.device)
        self.dead = None
        if bias is not None:
            dead = nothing_attended(bias, key_regions)
            self.dead = None if dead is None else dead[:, None].expand(-1, heads, -1).reshape(-1, 1, 1)
            bias = bias[:, None].expand(batch, heads, -1, -1).reshape(self.k.shape[:2])
            if mask is not None:  # padding may be NaN, which would remain NaN after the mask
                for x in (self.k, self.v):
                    x.masked_fill_(bias[..., None] < 0, 0)
        self.bias = bias

    def chunks(self):
        """Slices of query regions of about equal size."""
        items, rows = self.q.shape[0], self.q.shape[1] * self.k.shape[1] * self.topk * self.exact.itemsize
        if not items:
            return
        count = min(items, -(-items * rows // CHUNK_BYTES))
        length = -(-items // count)
        for start in range(0, items, length):
            yield start, min(start + length, items)

    def buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Buffers for the gathered keys, gathered values and scores of the largest chunk, reused by all chunks."""
        items = max((stop - start for start, stop in self.chunks()), default=0)
        keys = self.topk * self.k.shape[1]
        return (
            self.k.new_empty(items, keys, self.k.shape[2]),
            self.v.new_empty(items, keys, self.v.shape[2]),
            self.q.new_empty(items, self.q.shape[1], keys),
        )

    def gather(self, source: Tensor, start: int, stop: int, out: Tensor) -> Tensor:
        """The selected rows of ``source [rows, tokens, d]`` as ``[items, topk * tokens, d]``."""
        index = self.index[start:stop].reshape(-1)
        out = out[: stop - start]
        torch.index_select(source, 0, index, out=out.view(index.numel(), *source.shape[1:]))
        return out

    def probabilities(self, start: int, stop: int, keys: Tensor, scale: float, out: Tensor) -> Tensor:
        out = out[: stop - start]
        torch.baddbmm(out, self.q[start:stop], keys.transpose(1, 2), beta=0, alpha=scale, out=out)
        if self.bias is not None:
            out += self.bias[self.index[start:stop]].view(stop - start, 1, -1)
        out = torch.softmax(out, -1, out=out)
        return out if self.dead is None else out.masked_fill_(self.dead[start:stop], 0)


def forward(
    q: Tensor, k: Tensor, v: Tensor, key_regions: Tensor, mask: Tensor | None, regions: tuple[int, int], scale: float
) -> Tensor:
    """Attention of each region to its selected regions; arguments as in `reference.attend_reference`."""
    problem = _Problem(q, k, v, key_regions, mask, regions)
    # The queries of a chunk are not needed after its scores, so its output can overwrite them.
    out = problem.q if v.shape[-1] == q.shape[-1] else problem.q.new_empty(*problem.q.shape[:2], v.shape[-1])
    k_buffer, v_buffer, scores = problem.buffers()
    for start, stop in problem.chunks():
        keys = problem.gather(problem.k, start, stop, k_buffer)
        values = problem.gather(problem.v, start, stop, v_buffer)
        probability = problem.probabilities(start, stop, keys, scale, scores)
        torch.bmm(probability, values, out=out[start:stop])
    return join(out, (*q.shape[:-1], v.shape[-1]), regions, q.dtype)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_regions: Tensor,
    mask: Tensor | None,
    regions: tuple[int, int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `forward` with respect to q, k and v. Probabilities are recomputed chunk by chunk."""
    problem = _Problem(q, k, v, key_regions, mask, regions)
    grad = split(grad_out, regions, problem.exact)
    # The gradient of the queries can overwrite that of the output, which is no longer needed.
    dq = grad if grad.shape == problem.q.shape else torch.empty_like(problem.q)
    dk, dv = torch.zeros_like(problem.k), torch.zeros_like(problem.v)
    k_buffer, v_buffer, scores = problem.buffers()
    dscores = torch.empty_like(scores)
    for start, stop in problem.chunks():
        keys = problem.gather(problem.k, start, stop, k_buffer)
        values = problem.gather(problem.v, start, stop, v_buffer)
        probability = problem.probabilities(start, stop, keys, scale, scores)
        index = problem.index[start:stop].reshape(-1)
        got = grad[start:stop]
        dscore = torch.bmm(got, values.transpose(1, 2), out=dscores[: stop - start])
        # The gradient of the values can overwrite the values, which are no longer needed.
        dvalues = torch.bmm(probability.transpose(1, 2), got, out=values)
        dv.index_add_(0, index, dvalues.view(-1, *dv.shape[1:]))
        dscore = torch.ops.aten._softmax_backward_data.out(dscore, probability, -1, dscore.dtype, grad_input=dscore)
        torch.baddbmm(dq[start:stop], dscore, keys, beta=0, alpha=scale, out=dq[start:stop])
        dkeys = torch.baddbmm(keys, dscore.transpose(1, 2), problem.q[start:stop], beta=0, alpha=scale, out=keys)
        dk.index_add_(0, index, dkeys.view(-1, *dk.shape[1:]))
    return tuple(join(d, x.shape, regions, x.dtype) for d, x in ((dq, q), (dk, k), (dv, v)))
