"""Backward of the portable backend: queries in tiles, each against the halo of keys its windows cover.

A tile of 8×8 queries with a 7×7 window needs 14×14 keys, and its attention is one small dense product. Tiles that
look alike (the same windows relative to their halo) are read through one strided view, so an axis takes three
groups of tiles (two borders and the interior) and no index tables. No unfolded copy of all neighbors exists at any
time: a bounded number of halos is copied, used, and dropped.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.dense import outer, padded_table, window_table
from visionattn.kernels.neighborhood.geometry import AxisGroups, AxisRun, axis_groups, axis_runs
from visionattn.kernels.neighborhood.tiles import choose_tiles

__all__ = ["backward"]

# Bytes of one chunk's scores. A few megabytes keep the products in cache and bound the memory of large maps.
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class _Problem:
    """The geometry that forward and backward share."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[bool, ...]


@dataclass(frozen=True)
class _Group:
    """Alike tiles of every axis: one batched dense attention. ``axes`` pairs each axis's run with its groups."""

    problem: _Problem
    axes: tuple[tuple[AxisGroups, AxisRun], ...]

    @property
    def queries(self) -> int:
        return prod(run.tile for _, run in self.axes)

    @property
    def keys(self) -> int:
        return prod(run.halo for _, run in self.axes)

    def view(self, x: Tensor, heads: int, which: str, chunk: tuple[slice, slice]) -> Tensor:
        """A view of ``x [B, *spatial, heads', d]`` as ``[tiles..., B, groups..., heads', repeat, window..., d]``.

        ``which`` is ``"query"`` or ``"key"``; key windows of neighboring tiles overlap. ``chunk`` restricts the tiles
        of the first axis and the batch. Heads that are shared by several query heads are repeated with stride 0.
        """
        tiles, batch = chunk
        shared, repeat = x.shape[-2], heads // x.shape[-2]
        offset = x.storage_offset() + batch.start * x.stride(0)
        counts, count_strides, groups, group_strides, windows, window_strides = [], [], [], [], [], []
        for axis, ((group, run), dilation) in enumerate(zip(self.axes, self.problem.dilation, strict=True)):
            unit = x.stride(axis + 1)
            first, skipped = (run.query if which == "query" else run.key), (tiles.start if axis == 0 else 0)
            offset += unit * (group.first + dilation * (first + skipped * run.step))
            counts.append(tiles.stop - tiles.start if axis == 0 else run.count)
            count_strides.append(unit * dilation * run.step)
            groups.append(group.count)
            group_strides.append(unit)
            windows.append(run.tile if which == "query" else run.halo)
            window_strides.append(unit * dilation)
        return x.as_strided(
            (*counts, batch.stop - batch.start, *groups, shared, repeat, *windows, *x.shape[-1:]),
            (
                *count_strides,
                x.stride(0),
                *group_strides,
                x.stride(-2),
                0,
                *window_strides,
                *x.stride()[-1:],
            ),
            offset,
        )

    def matrices(self, x: Tensor, heads: int, which: str, chunk: tuple[slice, slice]) -> Tensor:
        """The same as ``[N, heads, positions, d]``, copied."""
        positions = self.queries if which == "query" else self.keys
        return self.view(x, heads, which, chunk).reshape(-1, heads, positions, x.shape[-1])

    def store(self, target: Tensor, values: Tensor, chunk: tuple[slice, slice]) -> None:
        """Write ``values [N, heads, queries, d]`` to the query positions of ``target``; each has one writer."""
        view = self.view(target, target.shape[-2], "query", chunk)
        view.copy_(values.reshape(view.shape))

    def accumulate(self, target: Tensor, values: Tensor, heads: int, chunk: tuple[slice, slice]) -> None:
        """Add ``values [N, heads, keys, d]`` to the key positions of ``target``.

        Halos overlap, and a strided view must not be written twice in one operation, so each halo is cut into
        pieces no longer than the step between tiles: one piece of all tiles is free of overlap.
        """
        view = self.view(target, heads, "key", chunk)
        values = values.reshape(view.shape)
        if view.shape[-2 - len(self.axes)] > 1:  # heads that share keys: sum, then add once
            values = values.sum(-2 - len(self.axes), keepdim=True)
            view = view.narrow(-2 - len(self.axes), 0, 1)
        pieces = []
        for _, run in self.axes:
            step = run.halo if run.count == 1 else run.step
            pieces.append([(at, min(step, run.halo - at)) for at in range(0, run.halo, step)])
        for piece in itertools.product(*pieces):
            part, value = view, values
            for axis, (at, length) in enumerate(piece):
                dim = axis - 1 - len(self.axes)
                part, value = part.narrow(dim, at, length), value.narrow(dim, at, length)
            part.add_(value)

    def chunks(self, batch: int, heads: int, copies: int, itemsize: int) -> Iterator[tuple[slice, slice]]:
        """Cut the tiles of the first axis, and the batch if need be, so that the scores stay in `CHUNK_BYTES`."""
        tiles = self.axes[0][1].count
        per_image = heads * self.queries * self.keys * itemsize * copies
        per_image *= prod(run.count for _, run in self.axes[1:]) * prod(group.count for group, _ in self.axes)
        images = max(min(CHUNK_BYTES // per_image, batch), 1)
        rows = max(min(CHUNK_BYTES // (per_image * images), tiles), 1)
        for first in range(0, batch, images):
            for row in range(0, tiles, rows):
                yield slice(row, min(row + rows, tiles)), slice(first, min(first + images, batch))


@lru_cache(maxsize=256)
def _groups(problem: _Problem, shape: tuple[int, ...], batch: int, width: int) -> tuple[_Group, ...]:
    """All groups of alike tiles of a map; together they hold every query exactly once."""
    result = []
    for groups in itertools.product(*map(axis_groups, shape, problem.dilation)):
        lengths = tuple(group.length for group in groups)
        copies = batch * prod(group.count for group in groups)
        tiles = choose_tiles(lengths, problem.kernel, problem.stride, problem.causal, copies, width)
        runs = map(axis_runs, lengths, problem.kernel, problem.stride, problem.causal, tiles)
        for combination in itertools.product(*runs):
            result.append(_Group(problem, tuple(zip(groups, combination, strict=True))))
    return tuple(result)


@lru_cache(maxsize=256)
def _mask(runs: tuple[AxisRun, ...], dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Additive mask ``[queries, keys]``: 0 or -inf; None where every key of the halo is attended."""
    if all(run.full for run in runs):
        return None
    allowed = outer([window_table(run.windows, run.halo) for run in runs], torch.logical_and)
    return torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf).to(device)


@lru_cache(maxsize=256)
def _bias_index(runs: tuple[AxisRun, ...], kernel: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each ``[queries, keys]`` pair reads the flat bias table; masked pairs read one entry past its end."""
    index = torch.zeros(1, 1, dtype=torch.long)
    for run, k in zip(runs, kernel, strict=True):
        offset = (run.key - run.query) + torch.arange(run.halo) - torch.arange(run.tile)[:, None] + k - 1
        index = outer([index * (2 * k - 1), offset], torch.add)
    allowed = outer([window_table(run.windows, run.halo) for run in runs], torch.logical_and)
    return index.masked_fill_(~allowed, prod(2 * k - 1 for k in kernel)).flatten().to(device)


def _bias(group: _Group, table: Tensor | None, like: Tensor) -> Tensor | None:
    """What is added to the scores: ``[1 or heads, queries, keys]``, or None. ``table`` ends with a -inf column."""
    runs = tuple(run for _, run in group.axes)
    if table is None:
        mask = _mask(runs, like.dtype, like.device)
        return None if mask is None else mask[None]
    index = _bias_index(runs, group.problem.kernel, like.device)
    return table.index_select(1, index).view(-1, group.queries, group.keys)


def backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rpb: Tensor | None,
    out: Tensor,
    lse: Tensor,
    problem: tuple,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of `torch_strips.forward` with respect to q, k, v and rpb. Scores are computed again, tile by tile."""
    batch, *shape, heads, dim = q.shape
    exact = torch.promote_types(q.dtype, torch.float32)
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dk = torch.zeros_like(k, dtype=exact, memory_format=torch.contiguous_format)
    dv = torch.zeros_like(v, dtype=exact, memory_format=torch.contiguous_format)
    table = padded_table(rpb, exact)
    dtable = None if table is None else torch.zeros_like(table)
    # d(score) = probability * (d(probability) - delta); a gradient of the lse enters with the opposite sign.
    delta = (grad_out.to(exact) * out.to(exact)).sum(-1, keepdim=True)
    if grad_lse is not None:
        delta = delta - grad_lse.to(exact)[..., None]
    lse = lse[..., None]
    scaled = q.to(exact) * scale
    for group in _groups(_Problem(*problem), tuple(shape), batch * heads, dim):
        bias = _bias(group, table, dq.new_empty(0, dtype=exact))
        dbias = None
        for chunk in group.chunks(batch, heads, 2, exact.itemsize):
            qt, kt, vt = (
                group.matrices(x, heads, which, chunk).to(exact)
                for x, which in ((scaled, "query"), (k, "key"), (v, "key"))
            )
            got = group.matrices(grad_out, heads, "query", chunk).to(exact)
            probability = qt @ kt.transpose(-1, -2)
            if bias is not None:
                probability.add_(bias)
            probability.sub_(group.matrices(lse, heads, "query", chunk)).exp_()
            group.accumulate(dv, probability.transpose(-1, -2) @ got, heads, chunk)
            dscore = got @ vt.transpose(-1, -2)
            dscore.sub_(group.matrices(delta, heads, "query", chunk)).mul_(probability)
            if dtable is not None:
                dbias = dscore.sum(0) if dbias is None else dbias.add_(dscore.sum(0))
            group.store(dq, dscore @ kt, chunk)
            group.accumulate(dk, dscore.transpose(-1, -2) @ qt, heads, chunk)
        if dtable is not None:
            index = _bias_index(tuple(run for _, run in group.axes), group.problem.kernel, q.device)
            dtable.index_add_(1, index, dbias.flatten(1))
    drpb = None if rpb is None else dtable[:, :-1].reshape(rpb.shape).to(rpb.dtype)
    return dq.mul_(scale), dk.to(k.dtype), dv.to(v.dtype), drpb
