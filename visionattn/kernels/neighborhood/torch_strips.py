"""Forward of the portable backend: the map in strips of overlapping columns, tiles of rows read through views.

For a tile of 4×4 queries and a 7×7 window the keys form a 10×10 halo. Columns are copied once into strips as wide
as a halo (10 for every 4); inside a strip, the halos of the tiles above one another are overlapping views of the
same memory, which PyTorch's fused CPU attention reads in place. The whole map is then one call, or one for each
combination of border and interior tiles where a mask for all tiles would be large.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.dense import attend, outer, padded_table, window_table
from visionattn.kernels.neighborhood.geometry import AxisGroups, AxisPlan, axis_groups
from visionattn.kernels.neighborhood.tiles import MASK_ENTRIES, choose_strips

__all__ = ["forward"]

STRIP_BYTES = 1 << 25  # of the padded keys, values and their strips that exist at one time


@dataclass(frozen=True)
class _Part:
    """Dilation groups of equal lengths on every axis: an undilated problem with a larger batch."""

    groups: tuple[AxisGroups, ...]
    dilation: tuple[int, ...]
    plans: tuple[AxisPlan, ...]

    @property
    def queries(self) -> int:
        return prod(plan.tile for plan in self.plans)

    @property
    def keys(self) -> int:
        return prod(plan.halo for plan in self.plans)

    @property
    def whole(self) -> bool:
        """Whether one tile holds the map, so that nothing needs to be padded or cut."""
        return all(plan.count == 1 and plan.halo == plan.length for plan in self.plans)

    def view(self, x: Tensor) -> Tensor:
        """``x [B, *spatial, heads_kv, repeat, d]`` as a view ``[B, groups..., heads_kv, repeat, positions..., d]``."""
        offset, counts, group_strides, strides = x.storage_offset(), [], [], []
        for axis, (group, dilation) in enumerate(zip(self.groups, self.dilation, strict=True)):
            unit = x.stride(axis + 1)
            offset += unit * group.first
            counts.append(group.count)
            group_strides.append(unit)
            strides.append(unit * dilation)
        return x.as_strided(
            (x.shape[0], *counts, *x.shape[-3:-1], *(group.length for group in self.groups), x.shape[-1]),
            (x.stride(0), *group_strides, *x.stride()[-3:-1], *strides, x.stride(-1)),
            offset,
        )

    def chunks(self, batch: int, shared: int, repeat: int, dim: int, bias: bool) -> Iterator[tuple[slice, ...]]:
        """Slices of the batch, the key heads and their repeats whose strips fit `STRIP_BYTES`.

        With a bias every query head has its own mask and is a chunk of its own.
        """
        rows = self.plans[0].keys * prod(plan.count * plan.halo for plan in self.plans[1:])
        one = 16 * rows * dim * prod(group.count for group in self.groups)  # padded and cut, keys and values
        fit = max(STRIP_BYTES // one, 1)
        steps = [1, 1, 1]
        if not bias:
            steps[2] = min(repeat, fit)
            steps[1] = min(shared, fit // steps[2])
        steps[0] = min(max(fit // (steps[1] * steps[2]), 1), batch)
        for starts in itertools.product(*map(range, (0, 0, 0), (batch, shared, repeat), steps)):
            yield tuple(slice(start, start + step) for start, step in zip(starts, steps, strict=True))


@lru_cache(maxsize=256)
def _parts(problem: tuple, shape: tuple[int, ...], batch: int, heads: int, dim: int, bias: bool) -> tuple[_Part, ...]:
    kernel, stride, dilation, causal = problem
    parts = []
    for groups in itertools.product(*map(axis_groups, shape, dilation)):
        lengths = tuple(group.length for group in groups)
        copies = batch * prod(group.count for group in groups)
        parts.append(_Part(groups, dilation, choose_strips(lengths, kernel, stride, causal, copies, heads, dim, bias)))
    return tuple(parts)


@lru_cache(maxsize=128)
def _mask(
    plans: tuple[AxisPlan, ...],
    tiles: tuple[range, ...],
    repeat: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """Additive mask ``[later tiles × repeat, first tiles, queries, keys]`` of 0 and -inf, or None if all is 0."""
    axes = [
        [window_table(plan.windows[tile], plan.halo) for tile in chosen]
        for plan, chosen in zip(plans, tiles, strict=True)
    ]
    later = [
        torch.stack([outer([first, *rest], torch.logical_and) for first in axes[0]])
        for rest in itertools.product(*axes[1:])
    ]
    allowed = torch.stack(later)
    if bool(allowed.all()):
        return None
    mask = torch.zeros(allowed.shape, dtype=dtype).masked_fill_(~allowed, -torch.inf)
    return mask.repeat_interleave(repeat, dim=0).to(device)


@lru_cache(maxsize=128)
def _bias_index(
    plans: tuple[AxisPlan, ...], tiles: tuple[int, ...], kernel: tuple[int, ...], device: torch.device
) -> Tensor:
    """Where each ``[queries × keys]`` pair of a tile reads the flat bias table; masked pairs read its last entry."""
    index, allowed = [], []
    for axis, (plan, tile, k) in enumerate(zip(plans, tiles, kernel, strict=True)):
        offset = torch.arange(plan.halo) - plan.before - torch.arange(plan.tile)[:, None] + k - 1
        allowed.append(window_table(plan.windows[tile], plan.halo) & (offset >= 0) & (offset < 2 * k - 1))
        index.append(offset * prod(2 * later - 1 for later in kernel[axis + 1 :]))
    masked = ~outer(allowed, torch.logical_and)
    masked &= ~masked.all(dim=1, keepdim=True)  # queries past the axis attend to anything, but to something
    flat = outer(index, torch.add).clamp_(0, prod(2 * k - 1 for k in kernel) - 1)
    return flat.masked_fill_(masked, prod(2 * k - 1 for k in kernel)).flatten().to(device)


class _Strips:
    """One part of the problem for one chunk of batch and heads: copies in, calls, results out."""

    def __init__(self, part: _Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor):
        self.part, self.plans, self.rank = part, part.plans, len(part.plans)
        self.lead = q.shape[: -self.rank - 1]  # batch, groups, heads
        self.cut = any(plan.padding for plan in self.plans)
        self.q = self._tiles(self._padded_queries(q)).contiguous()
        # Keys and values of one width share their buffers, which halves the number of operations.
        together = k.shape == v.shape
        self.k, self.v = self._strips([k, v]) if together else (self._strips([x])[0] for x in (k, v))
        self.results = [(x, self._padded(x) if self.cut else x) for x in (out, lse)]

    def _padded(self, x: Tensor) -> Tensor:
        return x.new_zeros(*self.lead, *(plan.tile * plan.count for plan in self.plans), x.shape[-1])

    def _inside(self, x: Tensor) -> Tensor:
        return x[(..., *(slice(plan.length) for plan in self.plans), slice(None))]

    def _padded_queries(self, q: Tensor) -> Tensor:
        if not self.cut:
            return q
        padded = self._padded(q)
        self._inside(padded).copy_(q)
        return padded

    def _tiles(self, x: Tensor) -> Tensor:
        """``[lead..., positions..., d]`` as a view ``[later tiles..., lead..., first tiles, tile..., d]``."""
        n = len(self.lead)
        for axis in reversed(range(self.rank)):
            x = x.unflatten(n + axis, (self.plans[axis].count, self.plans[axis].tile))
        tiles = [n + 2 * axis for axis in range(self.rank)]
        return x.permute(*tiles[1:], *range(n), tiles[0], *(tile + 1 for tile in tiles), x.dim() - 1)

    def _strips(self, sources: list[Tensor]) -> Tensor:
        """``[sources, later tiles..., lead..., rows, later halos..., d]``, contiguous."""
        dim, later = sources[0].shape[-1], self.plans[1:]
        padded = sources[0].new_zeros(len(sources), *self.lead, *(plan.keys for plan in self.plans), dim)
        # The last halo may end before the axis does: keys past it are seen by no query.
        lengths = [min(plan.length, plan.keys - plan.before) for plan in self.plans]
        places = (..., *(slice(p.before, p.before + n) for p, n in zip(self.plans, lengths, strict=True)), slice(None))
        inside = (..., *map(slice, lengths), slice(None))
        for target, source in zip(padded, sources, strict=True):
            target[places] = source[inside]
        n, strides = len(self.lead) + 1, padded.stride()
        return padded.as_strided(
            (
                *(len(sources), *(p.count for p in later), *self.lead),
                *(self.plans[0].keys, *(p.halo for p in later), dim),
            ),
            (strides[0], *(strides[n + 1 + axis] * p.tile for axis, p in enumerate(later)), *strides[1:]),
        ).contiguous()

    def call(self, tiles: tuple[range, ...], bias: Tensor | None, scale: float) -> None:
        """Attention of the tiles in these ranges of the axes."""
        first, count = self.plans[0], len(tiles[0])
        select = tuple(slice(chosen.start, chosen.stop) for chosen in tiles[1:])
        place = self.rank - 1 + len(self.lead)
        q = self.q[select].narrow(place, tiles[0].start, count)
        q = q.reshape(-1, count, self.part.queries, q.shape[-1])
        halos = []
        for x in (self.k, self.v):
            x = x[select].reshape(q.shape[0], first.keys, -1, x.shape[-1])
            step = x.stride(1) * first.tile
            halos.append(
                x.as_strided(
                    (q.shape[0], count, self.part.keys, x.shape[-1]),
                    (x.stride(0), step, x.stride(2), 1),
                    x.storage_offset() + step * tiles[0].start,
                )
            )
        out, lse = attend(q, *halos, bias, scale)
        for (_, target), values in zip(self.results, (out, lse[..., None]), strict=True):
            target = self._tiles(target)[select].narrow(place, tiles[0].start, count)
            target.copy_(values.reshape(target.shape))

    def finish(self) -> None:
        """Crop the results where the last tile reached past an axis."""
        if self.cut:
            for target, padded in self.results:
                target.copy_(self._inside(padded))


def _whole(part: _Part, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, results) -> None:
    """A map that is one tile: dense attention without padding or strips. Tensors as `_Part.view` gives them."""
    rank, heads = len(part.plans), q.shape[-len(part.plans) - 3] * q.shape[-len(part.plans) - 2]
    matrices = (x.reshape(-1, heads, prod(x.shape[-rank - 1 : -1]), x.shape[-1]) for x in (q, k, v))
    out, lse = attend(*matrices, bias, scale)
    for target, values in zip(results, (out, lse[..., None]), strict=True):
        target.copy_(values.reshape(target.shape))


def _whole_bias(part: _Part, table: Tensor | None, kernel: tuple[int, ...], q: Tensor) -> Tensor | None:
    if table is None:
        return _mask(part.plans, tuple(range(1) for _ in part.plans), 1, q.dtype, q.device)
    index = _bias_index(part.plans, (0,) * len(part.plans), kernel, q.device)
    return table.index_select(1, index).view(1, -1, part.queries, part.keys)


def forward(q: Tensor, k: Tensor, v: Tensor, rpb: Tensor | None, problem: tuple, scale: float) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; ``problem`` is (kernel, stride, dilation, causal), each per axis.

    Args:
        q: ``[B, *spatial, heads, d]``; ``k`` and ``v`` may have fewer heads, ``v`` another width.
        rpb: ``[heads, 2K-1, ...]`` or None.

    Returns:
        ``[B, *spatial, heads, dim_v]`` in the type of ``q`` and ``[B, *spatial, heads]`` in float32 (float64).
    """
    batch, *shape, heads, dim = q.shape
    shared = k.shape[-2]
    repeat = heads // shared
    table = padded_table(rpb, q.dtype)
    parts = _parts(problem, tuple(shape), batch, heads, dim, rpb is not None) if batch else ()
    if len(parts) == 1 and parts[0].whole and repeat == 1 and all(d == 1 for d in problem[2]):
        # Nothing to cut or regroup: read and write the tensors where they are.
        out, lse = attend(
            *(x.flatten(1, -3).transpose(1, 2) for x in (q, k, v)), _whole_bias(parts[0], table, problem[0], q), scale
        )
        return (
            out.transpose(1, 2).reshape(*q.shape[:-1], v.shape[-1]).contiguous(),
            lse.transpose(1, 2).reshape(q.shape[:-1]).contiguous(),
        )
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    lse = q.new_empty((*q.shape[:-1], 1), dtype=torch.promote_types(q.dtype, torch.float32))
    sources = [q.unflatten(-2, (shared, repeat))]
    sources += [x.unsqueeze(-2).expand(*x.shape[:-1], repeat, x.shape[-1]) for x in (k, v)]
    results = [x.unflatten(-2, (shared, repeat)) for x in (out, lse)]
    for part in parts:
        views = [part.view(x) for x in (*sources, *results)]
        if part.whole:
            _whole(part, *views[:3], _whole_bias(part, table, problem[0], q), scale, views[3:])
            continue
        for chunk in part.chunks(batch, shared, repeat, dim, rpb is not None):
            select = (chunk[0], *(slice(None) for _ in shape), *chunk[1:])
            strips = _Strips(part, *(x[select] for x in views))
            _run(
                part,
                strips,
                None if table is None else table[chunk[1].start * repeat + chunk[2].start],
                problem,
                scale,
            )
            strips.finish()
    return out, lse.squeeze(-1)


def _run(part: _Part, strips: _Strips, table: Tensor | None, problem: tuple, scale: float) -> None:
    """One call for all tiles if a mask of them all is small, else one for each combination of alike tiles."""
    q, lead = strips.q, prod(strips.lead)
    every = tuple(range(plan.count) for plan in part.plans)
    pairs = part.queries * part.keys
    if table is None and lead * pairs * prod(map(len, every)) <= MASK_ENTRIES:
        strips.call(every, _mask(part.plans, every, lead, q.dtype, q.device), scale)
        return
    for alike in itertools.product(*(plan.alike for plan in part.plans)):
        tiles = tuple(range(first, first + count) for first, count in alike)
        one = tuple(range(first, first + 1) for first, _ in alike)
        if table is None:
            bias = _mask(part.plans, one, 1, q.dtype, q.device)
        else:
            index = _bias_index(part.plans, tuple(r.start for r in one), problem[0], q.device)
            bias = table.index_select(0, index).view(1, 1, part.queries, part.keys)
        strips.call(tiles, bias, scale)
