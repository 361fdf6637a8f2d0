"""The portable backend: tiles of queries, each a small dense attention over the halo of keys their windows cover.

A tile of 4×4 queries with a 7×7 window needs 10×10 keys. Rows are gathered by index tables (`torch_plan`), all tiles
go through two batched products and a softmax, and results are gathered back. Backward computes the probabilities
again; every key then adds up what the tiles around it hold for it, in a fixed order. Memory is bounded: scores exist
for one chunk of tiles at a time, and gathered rows for one pass of images and heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.neighborhood.torch_plan import Plan, Rows, make_plan

__all__ = ["backward", "forward"]

CHUNK_SCORES = 1 << 19  # scores that exist at one time; two megabytes stay in the caches of most processors
PASS_ROWS = 1 << 24  # numbers in the gathered results of one pass


def _readable(x: Tensor, rank: int) -> Tensor:
    return x if Rows.of(x, rank) else x.contiguous()


class _Pass:
    """Some images and heads of a problem, all tiles: gathers rows and yields chunks of tiles."""

    def __init__(self, plan: Plan, images: slice, heads: slice, repeat: int):
        self.plan, self.images, self.heads, self.repeat = plan, images, heads, repeat
        self.image_count, self.head_count = images.stop - images.start, heads.stop - heads.start
        self.nq, self.nk = plan.queries.shape[1], plan.keys.shape[1]
        self.total = self.image_count * plan.tiles

    def chunks(self):
        step = max(CHUNK_SCORES // (self.plan.pairs * self.head_count), 1)
        step = -(-self.total // -(-self.total // step))  # of equal size, so that buffers fit them all
        for start in range(0, self.total, step):
            yield slice(start, min(start + step, self.total))

    def source(self, x: Tensor, which: str, rank: int, shared: bool = False) -> tuple[Tensor, Tensor]:
        """``x [B, *spatial, heads, d]`` as a table of rows, and the rows of each tile."""
        layout, repeat = Rows.of(x, rank), self.repeat if shared else 1
        heads = slice(self.heads.start // repeat, self.heads.stop // repeat)
        part = x[self.images][..., heads, :]
        last = sum((n - 1) * s for n, s in zip(part.shape[:-1], part.stride()[:-1], strict=True))
        d = x.shape[-1]
        table = part.as_strided((last // d + 1, d), (d, 1))
        return table, self.plan.rows(which, layout, self.image_count, self.head_count, repeat)

    def gather(self, source: tuple[Tensor, Tensor], chunk: slice, dtype: torch.dtype) -> Tensor:
        """``[tiles * heads, positions, d]`` in the type of the computation."""
        table, rows = source
        rows = rows[chunk].view(-1)
        got = table.index_select(0, rows)
        return got.to(dtype).view((chunk.stop - chunk.start) * self.head_count, -1, got.shape[-1])

    def scores(
        self, q: Tensor, k: Tensor, looks: Tensor | None, biased: bool, chunk: slice, scale: float, out: Tensor
    ) -> Tensor:
        """Scaled products plus mask and bias, ``[tiles * heads, queries, keys]``, in ``out``."""
        out = out[: q.shape[0]]
        if looks is None:
            return torch.baddbmm(out, q, k.transpose(1, 2), beta=0, alpha=scale, out=out)
        rows = self.plan.look_rows(self.image_count, self.head_count, biased)[chunk].reshape(-1)
        torch.index_select(looks, 0, rows, out=out.view(q.shape[0], -1))
        return out.baddbmm_(q, k.transpose(1, 2), alpha=scale)

    def looks(self, rpb: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """What the scores of each look add, ``[looks or heads * looks, queries * keys]``; None if nothing."""
        if rpb is None:
            return self.plan.mask(dtype) if self.plan.masked else None
        table = rpb[self.heads].to(dtype).flatten(1)
        if self.plan.masked:
            table = F.pad(table, (0, 1), value=-torch.inf)
        return table.index_select(1, self.plan.bias_index).view(-1, self.plan.pairs)

    def put_back(self, values: Tensor, target: Tensor) -> None:
        """Write ``values [images * tiles * heads * queries, d]`` to their places in ``target [B, *spatial, heads, d]``."""
        rows = self.plan.result_rows(self.image_count, self.head_count)
        part = target[self.images][..., self.heads, :]
        if part.is_contiguous() and part.dtype == values.dtype:
            torch.index_select(values, 0, rows, out=part.view(-1, values.shape[1]))
        else:
            part.copy_(values.index_select(0, rows).view(part.shape))

    def add_up(self, values: Tensor, target: Tensor) -> None:
        """Sum ``values [images * tiles * heads * keys, d]`` into ``target [B, *spatial, heads_kv, d]``."""
        bags = self.plan.key_bags(self.image_count, self.head_count, self.repeat)
        sums = F.embedding_bag(bags.index, values, bags.offsets, mode="sum")
        part = target[self.images][..., self.heads.start // self.repeat : self.heads.stop // self.repeat, :]
        part.copy_(sums.view(part.shape))


def _passes(plan: Plan, batch: int, heads: int, repeat: int, dim: int):
    """Images and heads in groups whose gathered keys fit `PASS_ROWS`; at least one key head of one image."""
    one = plan.tiles * plan.keys.shape[1] * dim * repeat
    shared = min(heads // repeat, max(PASS_ROWS // one, 1))
    images = min(batch, max(PASS_ROWS // (one * shared), 1)) if shared == heads // repeat else 1
    for image in range(0, batch, images):
        for head in range(0, heads, shared * repeat):
            yield _Pass(
                plan, slice(image, min(image + images, batch)), slice(head, min(head + shared * repeat, heads)), repeat
            )


def _prepare(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, problem: tuple):
    batch, *shape, heads, dim = q.shape
    rank, repeat = len(shape), heads // k.shape[-2]
    plan = make_plan(problem, tuple(shape), batch * heads, dim, rpb is not None, q.device)
    exact = torch.promote_types(q.dtype, torch.float32)
    tensors = tuple(_readable(x, rank) for x in (q, k, v))
    return plan, exact, tensors, list(_passes(plan, batch, heads, repeat, max(dim, v.shape[-1])))


def forward(
    q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, problem: tuple, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; ``problem`` is (kernel, stride, dilation, causal), each per axis.

    Args:
        q: ``[B, *spatial, heads, d]``; ``k`` and ``v`` may have fewer heads, ``v`` another width.
        rpb: ``[heads, 2K-1, ...]`` or None.

    Returns:
        ``[B, *spatial, heads, dim_v]`` in the type of ``q`` and ``[B, *spatial, heads]`` in float32 (float64);
        the second has no elements without ``return_lse``.
    """
    rank, width = q.dim() - 3, v.shape[-1]
    exact = torch.promote_types(q.dtype, torch.float32)
    out = q.new_empty(*q.shape[:-1], width)
    lse = q.new_empty((*q.shape[:-1], 1) if return_lse else (0, 1), dtype=exact)
    if q.shape[0]:
        plan, exact, (q, k, v), passes = _prepare(q, k, v, rpb, problem)
        for part in passes:
            _forward_pass(part, rank, q, k, v, rpb, scale, out, lse if return_lse else None, exact)
    return out, lse.squeeze(-1)


def _forward_pass(part: _Pass, rank, q, k, v, rpb, scale, out, lse, exact) -> None:
    heads, width = part.head_count, v.shape[-1]
    looks = part.looks(rpb, exact)
    sources = part.source(q, "queries", rank), part.source(k, "keys", rank, True), part.source(v, "keys", rank, True)
    chunks = list(part.chunks())
    buffer = q.new_empty((chunks[0].stop * heads, part.nq, part.nk), dtype=exact)
    values = q.new_empty((part.total * heads, part.nq, width), dtype=exact)
    sums = None if lse is None else values.new_empty(part.total * heads, part.nq)
    for chunk in chunks:
        qt, kt, vt = (part.gather(source, chunk, exact) for source in sources)
        scores = part.scores(qt, kt, looks, rpb is not None, chunk, scale, buffer)
        place = slice(chunk.start * heads, chunk.stop * heads)
        if sums is not None:
            torch.amax(scores, -1, out=sums[place])
        probability = torch.softmax(scores, -1)
        if sums is not None:  # log-sum-exp from the largest score and its probability, which is never small
            sums[place].sub_(probability.amax(-1).log_())
        torch.bmm(probability, vt, out=values[place])
    part.put_back(values.view(-1, width), out)
    if sums is not None:
        part.put_back(sums.view(-1, 1), lse)


def backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    problem: tuple,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward` with respect to q, k, v and rpb; probabilities are computed again, tile by tile."""
    rank = q.dim() - 3
    exact = torch.promote_types(q.dtype, torch.float32)
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    drpb = None if rpb is None else rpb.new_zeros(rpb.shape, dtype=exact)
    if q.shape[0]:
        plan, exact, (q, k, v), passes = _prepare(q, k, v, rpb, problem)
        grad_out = _readable(grad_out, rank)
        grad_lse = None if grad_lse is None else _readable(grad_lse[..., None], rank)
        for part in passes:
            _backward_pass(part, rank, grad_out, grad_lse, q, k, v, rpb, scale, grads, drpb, exact)
    return *grads, None if drpb is None else drpb.to(rpb.dtype)


def _backward_pass(part: _Pass, rank, grad_out, grad_lse, q, k, v, rpb, scale, grads, drpb, exact) -> None:
    plan, heads = part.plan, part.head_count
    looks = part.looks(rpb, exact)
    valid = plan.valid_rows(part.image_count, exact)
    sources = part.source(q, "queries", rank), part.source(k, "keys", rank, True), part.source(v, "keys", rank, True)
    sources += (part.source(grad_out, "queries", rank),)
    source_lse = None if grad_lse is None else part.source(grad_lse, "queries", rank)
    chunks = list(part.chunks())
    count = part.total * heads
    buffers = [q.new_empty((chunks[0].stop * heads, part.nq, part.nk), dtype=exact) for _ in range(2)]
    dq = q.new_empty((count, part.nq, q.shape[-1]), dtype=exact)
    dk, dv = (q.new_empty((count, part.nk, x.shape[-1]), dtype=exact) for x in (k, v))
    dlooks = None if rpb is None else q.new_zeros((plan.looks, heads * plan.pairs), dtype=exact)
    for chunk in chunks:
        qt, kt, vt, gt = (part.gather(source, chunk, exact) for source in sources)
        if valid is not None:  # a query that stands twice counts once
            gt.view(-1, heads, part.nq, gt.shape[-1]).mul_(valid[chunk])
        place = slice(chunk.start * heads, chunk.stop * heads)
        scores = part.scores(qt, kt, looks, rpb is not None, chunk, scale, buffers[0])
        probability = torch.softmax(scores, -1)
        torch.bmm(probability.transpose(1, 2), gt, out=dv[place])
        # d(score) = probability * (d(probability) - sum(probability * d(probability)))
        dscore = torch.bmm(gt, vt.transpose(1, 2), out=buffers[1][: qt.shape[0]])
        dscore = torch._softmax_backward_data(dscore, probability, -1, exact)
        if source_lse is not None:
            glt = part.gather(source_lse, chunk, exact)
            if valid is not None:
                glt.view(-1, heads, part.nq, 1).mul_(valid[chunk])
            dscore.addcmul_(probability, glt)
        torch.baddbmm(dq[place], dscore, kt, beta=0, alpha=scale, out=dq[place])
        torch.baddbmm(dk[place], dscore.transpose(1, 2), qt, beta=0, alpha=scale, out=dk[place])
        if dlooks is not None:
            one_hot = plan.one_hot.to(exact).repeat(1, part.image_count)[:, chunk]
            dlooks.addmm_(one_hot, dscore.view(one_hot.shape[1], -1))
    part.put_back(dq.view(-1, dq.shape[-1]), grads[0])
    part.add_up(dk.view(-1, dk.shape[-1]), grads[1])
    part.add_up(dv.view(-1, dv.shape[-1]), grads[2])
    if dlooks is not None:
        entries = dlooks.view(plan.looks, heads, plan.pairs).transpose(0, 1).reshape(heads, -1)
        table = q.new_zeros((heads, plan.entries + 1), dtype=exact)
        table.index_add_(1, plan.bias_index, entries)
        drpb[part.heads] += table[:, :-1].view(heads, *rpb.shape[1:])
