"""The PyTorch backend: tiles of queries, each a small dense attention over the halo of keys in their windows.

A tile of 4x4 queries with a 7x7 window needs 10x10 keys. Rows are gathered by index tables (`torch.plan`), all tiles
are processed by two batched products and a softmax, and results are gathered back. Backward recomputes the
probabilities; the gradient of a key is the sum over the tiles that contain it, in a fixed order. Memory is bounded:
scores are stored for one chunk of tiles at a time, and gathered results for one pass of images and heads.

If the results contain NaN, they are computed again pair by pair (see `kernels.nonfinite`).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels.neighborhood.torch.passes import Chunk, Pass, passes, readable
from visionattn.kernels.nonfinite import has_nan, masked_product
from visionattn.kernels.workspace import Scratch, scratch

__all__ = ["backward", "forward"]


@lru_cache(maxsize=8)
def _value_type(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which probabilities and values are multiplied.

    With bfloat16 instructions the product takes half the time, and it accumulates in float32; scores would be rounded
    when stored, so they stay in float32.
    """
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # not in all versions
    fast = dtype == torch.bfloat16 and device.type == "cpu" and capabilities.get("avx512_bf16", False)
    return dtype if fast else torch.promote_types(dtype, torch.float32)


def _convert(memory: Scratch, names: str, tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Convert tensors to the dtype of a product and a layout of equal rows, before tiles duplicate rows."""
    result = []
    for name, x in zip(names, tensors, strict=True):
        if x.dtype != dtype:
            x = memory.take((f"neighborhood exact {name}", tuple(x.shape), dtype)).copy_(x)
        result.append(readable(x))
    return result


def _gather(memory: Scratch, part: Pass, chunk: Chunk, tensors: list[Tensor]) -> list[Tensor]:
    """Gather the rows of each tensor for the tiles of a chunk: ``[tiles * heads, positions, d]``."""
    gathered = []
    for x, source, rows, key in zip(tensors, part.sources, chunk.rows, chunk.gathered, strict=True):
        target = memory.take(key)
        torch.index_select(source.table(x), 0, rows, out=target.view(-1, source.dim))
        gathered.append(target)
    return gathered


def _probability(
    memory: Scratch,
    chunk: Chunk,
    q: Tensor,
    k: Tensor,
    patterns: Tensor | None,
    scale: float,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores and their softmax over the keys, ``[tiles * heads, queries, keys]``.

    With `allowed`, masked pairs are exactly excluded, also if their scores are NaN.
    """
    scores = memory.take(chunk.scores)
    if patterns is None:
        torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=scale, out=scores)
    else:
        torch.index_select(patterns, 0, chunk.patterns, out=scores.view(scores.shape[0], -1))
        scores.baddbmm_(q, k.transpose(1, 2), alpha=scale)
    if allowed is None:
        return scores, torch.softmax(scores, -1, out=memory.take(chunk.probability))
    scores.masked_fill_(~allowed, -torch.inf)
    probability = torch.softmax(scores, -1, out=memory.take(chunk.probability))
    return scores, probability.masked_fill_(~allowed, 0)


def _patterns_of(part: Pass, chunk: Chunk) -> Tensor:
    """Pattern of each tile of a chunk."""
    return part.plan.pattern_ids.repeat(part.image_count)[chunk.tiles]


def _allowed(part: Pass, chunk: Chunk, device: torch.device) -> Tensor:
    """Bool ``[tiles * heads, queries, keys]``."""
    return part.plan.allowed[_patterns_of(part, chunk)].repeat_interleave(part.head_count, 0).to(device)


def _added_scores(part: Pass, rpb: Tensor | None) -> Tensor | None:
    """Mask and bias of each pattern, ``[patterns or heads * patterns, queries * keys]``; None if there are none."""
    if rpb is None:
        return part.plan.mask(part.exact) if part.plan.masked else None
    table = F.pad(rpb[part.heads].to(part.exact).flatten(1), (0, 1), value=-torch.inf)
    return table.index_select(1, part.plan.bias_index).view(-1, part.plan.pairs)


def _scatter_back(memory: Scratch, part: Pass, values: Tensor, target: Tensor) -> None:
    """Scatter ``values [images * tiles * heads * queries, d]`` to ``target [B, *spatial, heads, d]``."""
    if not part.whole:
        target = target[part.images, ..., part.heads, :]
    if part.whole and target.dtype == values.dtype:
        torch.index_select(values, 0, part.results, out=target.view(-1, values.shape[1]))
    else:
        placed = memory.take(("neighborhood placed", (part.results.shape[0], values.shape[1]), values.dtype))
        torch.index_select(values, 0, part.results, out=placed)
        target.copy_(placed.view(target.shape))


def _add_up(part: Pass, values: Tensor, target: Tensor) -> None:
    """Sum ``values [images, tiles, heads, keys, d]`` into ``target [B, *spatial, heads_kv, d]``."""
    bags = part.plan.key_row_groups(part.image_count, part.head_count, part.repeat)
    sums = F.embedding_bag(bags.index, values.view(-1, target.shape[-1]), bags.offsets, mode="sum")
    target = target[part.images, ..., part.shared, :]
    target.copy_(sums.view(target.shape))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    problem: tuple,
    scale: float,
    return_lse: bool,
    pairwise: bool = False,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; ``problem`` is (kernel, stride, dilation, causal), each per axis.

    Args:
        q: ``[B, *spatial, heads, d]``; ``k`` and ``v`` may have fewer heads, and ``v`` another head dimension.
        rpb: ``[heads, 2K-1, ...]`` or None.
        pairwise: skip masked pairs exactly, which takes more time.

    Returns:
        ``[B, *spatial, heads, dim_v]`` in the dtype of ``q`` and ``[B, *spatial, heads]`` in float32 (float64);
        the second has no elements without ``return_lse``.
    """
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    exact = torch.promote_types(q.dtype, torch.float32)
    lse = q.new_empty((*q.shape[:-1], 1) if return_lse else (0, 1), dtype=exact)
    memory = scratch(q.device)
    value_type = _value_type(q.dtype, q.device)
    tensors = _convert(memory, "qk", [q, k], exact) + _convert(memory, "v", [v], value_type)
    masked = False
    for part in passes(tensors[:1], tensors[1:], problem, rpb is not None):
        masked |= part.plan.masked
        patterns = _added_scores(part, rpb)
        values = memory.take(part.buffer("values", part.nq, v.shape[-1], value_type))
        sums = memory.take(part.buffer("sums", part.nq, 1)) if return_lse else None
        for chunk in part.chunks:
            qt, kt, vt = _gather(memory, part, chunk, tensors)
            allowed = _allowed(part, chunk, q.device) if pairwise else None
            scores, probability = _probability(memory, chunk, qt, kt, patterns, scale, allowed)
            if sums is not None:  # from the maximum score and its probability, which is never small
                sums[chunk.place] = scores.amax(-1, keepdim=True) - probability.amax(-1, keepdim=True).log_()
            if allowed is not None:
                values[chunk.place] = masked_product(probability, vt.to(exact), allowed)
                continue
            if value_type != exact:
                probability = memory.take((*chunk.probability[:2], value_type)).copy_(probability)
            torch.bmm(probability, vt, out=values[chunk.place] if len(part.chunks) > 1 else values)
        _scatter_back(memory, part, values.view(-1, v.shape[-1]), out)
        if sums is not None:
            _scatter_back(memory, part, sums.view(-1, 1), lse)
    if masked and not pairwise and has_nan(out):
        return forward(q, k, v, rpb, problem, scale, return_lse, pairwise=True)
    return out, lse.squeeze(-1)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    problem: tuple,
    scale: float,
    pairwise: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `forward` with respect to q, k, v and rpb; probabilities are recomputed tile by tile."""
    exact = torch.promote_types(q.dtype, torch.float32)
    grads = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    drpb = None if rpb is None else rpb.new_zeros(rpb.shape, dtype=exact)
    memory = scratch(q.device)
    upstream = [grad_out] if grad_lse is None else [grad_out, grad_lse[..., None]]
    queries = _convert(memory, "qgl"[: 1 + len(upstream)], [q, *upstream], exact)
    tensors = queries + _convert(memory, "kv", [k, v], exact)
    masked = False
    for part in passes(queries, tensors[len(queries) :], problem, rpb is not None):
        masked |= part.plan.masked
        _backward_pass(part, tensors, rpb, scale, grads, drpb, pairwise)
    if masked and not pairwise and has_nan(*grads):
        return backward(grad_out, grad_lse, q, k, v, rpb, problem, scale, pairwise=True)
    return *grads, None if drpb is None else drpb.to(rpb.dtype)


def _multiply(
    left: Tensor, right: Tensor, scale: float, allowed: Tensor | None, out: Tensor, swap: bool = False
) -> None:
    """Write ``scale * left @ right``; see `masked_product` for `allowed`, transposed with `swap`."""
    if allowed is None:
        torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)
    else:
        out.copy_(masked_product(left, right, allowed.transpose(1, 2) if swap else allowed)).mul_(scale)


def _backward_pass(
    part: Pass,
    tensors: list[Tensor],
    rpb: Tensor | None,
    scale: float,
    grads: tuple[Tensor, ...],
    drpb: Tensor | None,
    pairwise: bool,
) -> None:
    plan, heads, patterns, memory = part.plan, part.head_count, _added_scores(part, rpb), scratch(grads[0].device)
    valid = plan.valid_rows(part.image_count, part.exact)
    dq, dk, dv = (
        memory.take(part.buffer(name, positions, grad.shape[-1]))
        for name, positions, grad in zip(("dq", "dk", "dv"), (part.nq, part.nk, part.nk), grads, strict=True)
    )
    grad_patterns = None if rpb is None else dq.new_zeros(plan.patterns, heads * plan.pairs)
    one_hot = None if rpb is None else plan.one_hot(part.image_count, part.exact)
    for chunk in part.chunks:
        qt, *upstream, kt, vt = _gather(memory, part, chunk, tensors)
        if valid is not None:  # padded duplicate queries are masked out
            for x in upstream:
                x.view(-1, heads, part.nq, x.shape[-1]).mul_(valid[chunk.tiles])
        allowed = _allowed(part, chunk, qt.device) if pairwise else None
        dscore, probability = _probability(memory, chunk, qt, kt, patterns, scale, allowed)
        _multiply(probability.transpose(1, 2), upstream[0], 1.0, allowed, dv[chunk.place], swap=True)
        # d(score) = probability * (d(probability) - sum(probability * d(probability))), in the buffer of the scores
        torch.bmm(upstream[0], vt.transpose(1, 2), out=dscore)
        if allowed is not None:
            dscore.masked_fill_(~allowed, 0)
        torch._softmax_backward_data(dscore, probability, -1, part.exact, grad_input=dscore)
        if len(upstream) > 1:
            dscore.addcmul_(probability, upstream[1])
        if allowed is not None:
            dscore.masked_fill_(~allowed, 0)
        _multiply(dscore, kt, scale, allowed, dq[chunk.place])
        _multiply(dscore.transpose(1, 2), qt, scale, allowed, dk[chunk.place], swap=True)
        if grad_patterns is not None and pairwise:
            ids = _patterns_of(part, chunk).to(dscore.device)
            grad_patterns.index_add_(0, ids, dscore.view(-1, heads * plan.pairs))
        elif grad_patterns is not None:
            grad_patterns.addmm_(one_hot[:, chunk.tiles], dscore.view(-1, heads * plan.pairs))
    _scatter_back(memory, part, dq.view(-1, dq.shape[-1]), grads[0])
    _add_up(part, dk, grads[1])
    _add_up(part, dv, grads[2])
    if grad_patterns is not None:
        entries = grad_patterns.view(plan.patterns, heads, plan.pairs).transpose(0, 1).reshape(heads, -1)
        table = dq.new_zeros(heads, plan.entries + 1).index_add_(1, plan.bias_index, entries)
        drpb[part.heads] += table[:, :-1].view(heads, *drpb.shape[1:])
