"""Pairs of input and output voxels for each offset of a kernel, found by a sorted lookup and shared between layers."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import SupportsIndex

import torch
from torch import Tensor

from visionattn.errors import BackendError

__all__ = ["Neighbors", "voxel_keys"]


@dataclass(frozen=True)
class Neighbors:
    """Pairs of input voxel and output voxel of a sparse convolution, by offset of the kernel.

    Attributes:
        kernel_size: along z, y, x.
        coords: int64 ``[M, 4]``, (batch, z, y, x) of the output voxels.
        spatial_shape: (D, H, W) of the output.
        num_inputs: number of input voxels.
        sources: int64 rows of the input for each offset, in (z, y, x) order of the kernel.
        targets: the corresponding rows of the output; unique for each offset.
        same_sites: whether the output voxels are the input voxels, in the same order.
    """

    kernel_size: tuple[int, int, int]
    coords: Tensor
    spatial_shape: tuple[int, int, int]
    num_inputs: int
    sources: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    same_sites: bool

    @property
    def num_outputs(self) -> int:
        """Number of output voxels."""
        return self.coords.shape[0]

    @cached_property
    def table(self) -> Tensor:
        """Row of the input for each output voxel and offset, -1 where there is none; int32 ``[M, offsets]``."""
        return _table(self.sources, self.targets, self.num_outputs)

    @cached_property
    def transposed_table(self) -> Tensor:
        """Row of the output for each input voxel and offset, -1 where there is none; int32 ``[N, offsets]``."""
        return _table(self.targets, self.sources, self.num_inputs)

    @classmethod
    def submanifold(cls, coords: Tensor, spatial_shape: Sequence[int], kernel_size: int | Sequence[int]) -> "Neighbors":
        """Neighbors of a submanifold convolution, whose output voxels are its input voxels (Graham et al., CVPR 2018).

        Args:
            coords: int64 ``[N, 4]``, (batch, z, y, x) of unique voxels.
            spatial_shape: (D, H, W).
            kernel_size: odd, one number or one per axis; the padding is half of it.

        Raises:
            ValueError: an argument out of range, or voxels that are outside the shape or duplicated.
        """
        shape, size = _triple("spatial_shape", spatial_shape), _triple("kernel_size", kernel_size)
        if any(k % 2 == 0 for k in size):
            raise ValueError(f"`kernel_size` must be odd, got {size}")
        keys = voxel_keys(coords, shape)
        order, ranked = _ranked(keys)
        offsets = list(product(*(range(-(k // 2), k // 2 + 1) for k in size)))
        middle = len(offsets) // 2
        rows = torch.arange(len(coords), device=coords.device)
        sources: list[Tensor] = [rows] * len(offsets)
        targets: list[Tensor] = [rows] * len(offsets)
        for index in range(middle):
            sought, inside = _shifted(coords, offsets[index], shape)
            found = _find(ranked, sought)
            hit = inside & (found >= 0)
            target = hit.nonzero().squeeze(1)
            source = order[found[target]]
            sources[index], targets[index] = source, target
            # the opposite offset has the same pairs in reverse
            sources[-1 - index], targets[-1 - index] = target, source
        return cls(size, coords, shape, len(coords), tuple(sources), tuple(targets), True)

    @classmethod
    def strided(
        cls,
        coords: Tensor,
        spatial_shape: Sequence[int],
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
    ) -> "Neighbors":
        """Neighbors of a strided convolution, with an output voxel wherever the kernel covers an input voxel.

        The output voxels are in (batch, z, y, x) order.

        Args:
            coords: int64 ``[N, 4]``, (batch, z, y, x) of unique voxels.
            spatial_shape: (D, H, W) of the input; the output's is ``(D + 2 * padding - kernel) // stride + 1``.
            kernel_size, stride, padding: one number or one per axis.

        Raises:
            ValueError: an argument out of range, or voxels that are outside the shape or duplicated.
        """
        shape, size = _triple("spatial_shape", spatial_shape), _triple("kernel_size", kernel_size)
        step, pad = _triple("stride", stride), _triple("padding", padding, least=0)
        out = tuple((d + 2 * p - k) // s + 1 for d, p, k, s in zip(shape, pad, size, step, strict=True))
        if min(out) < 1:
            raise ValueError(f"`kernel_size` must fit into spatial_shape={shape} with padding={pad}, got {size}")
        _ranked(voxel_keys(coords, shape))
        rows, keys = [], []
        for offset in product(*(range(k) for k in size)):
            hit, places = _meets(coords, offset, step, pad, out)
            rows.append(hit)
            keys.append(voxel_keys(places, out, check=False))
        unique, inverse = torch.unique(torch.cat(keys), sorted=True, return_inverse=True)
        targets = inverse.split([len(r) for r in rows])
        return cls(size, _coords_of(unique, out), out, len(coords), tuple(rows), tuple(targets), False)


def _table(values: Sequence[Tensor], rows: Sequence[Tensor], count: int) -> Tensor:
    """Values at (row, offset), each of which occurs at most once, -1 elsewhere."""
    offsets = len(rows)
    table = torch.full((count * offsets,), -1, dtype=torch.int32, device=rows[0].device)
    places = torch.cat([row * offsets + offset for offset, row in enumerate(rows)])
    table[places] = torch.cat(tuple(values)).to(torch.int32)
    return table.view(count, offsets)


def voxel_keys(coords: Tensor, shape: Sequence[int], check: bool = True) -> Tensor:
    """One int64 key per voxel, whose order is that of (batch, z, y, x).

    Raises:
        ValueError: ``coords`` is not int64 ``[N, 4]``, or, with ``check``, a voxel is outside the shape.
        BackendError: a program is being traced or exported.
    """
    if coords.dim() != 2 or coords.shape[1] != 4 or coords.dtype != torch.int64:
        raise ValueError(f"`coords` must be int64 [N, 4] (batch, z, y, x), got {coords.dtype} {list(coords.shape)}")
    if math.prod(shape) >= 1 << 63:
        raise ValueError(f"`spatial_shape` must have fewer positions than int64 can represent, got {tuple(shape)}")
    batch, z, y, x = coords.unbind(1)
    if check and (torch.compiler.is_exporting() or torch.jit.is_tracing()):
        raise BackendError(
            "sparse convolutions cannot be traced or exported, since their shapes depend on the voxels; "
            "run the model in Python instead, from its checkpoint"
        )
    if check and len(coords):
        if coords.is_meta:
            raise ValueError("`coords` must not be on the meta device, since its values are needed")
        limit = coords.new_tensor(shape)
        if bool((coords < 0).any() | (coords[:, 1:] >= limit).any()):
            raise ValueError(f"`coords` must be inside spatial_shape={tuple(shape)}")
        if (int(batch.max()) + 1) * math.prod(shape) >= 1 << 63:
            raise ValueError(
                f"the batch index of `coords` is too large for int64 keys with spatial_shape={tuple(shape)}, "
                f"got {int(batch.max())}"
            )
    return ((batch * shape[0] + z) * shape[1] + y) * shape[2] + x


def _coords_of(keys: Tensor, shape: Sequence[int]) -> Tensor:
    parts = []
    for size in reversed(shape):
        parts.append(keys % size)
        keys = torch.div(keys, size, rounding_mode="floor")
    return torch.stack([keys, *reversed(parts)], 1)


def _triple(name: str, value: int | Sequence[int], least: int = 1) -> tuple[int, int, int]:
    given = (value,) * 3 if isinstance(value, SupportsIndex) else tuple(value) if isinstance(value, Sequence) else ()
    whole = all(isinstance(v, SupportsIndex) and not isinstance(v, bool) for v in given)
    values = tuple(operator.index(v) for v in given) if whole else ()
    if len(values) != 3 or min(values) < least or max(values) >= 1 << 62:
        raise ValueError(f"`{name}` must be one or three integers of at least {least}, got {value}")
    return values  # type: ignore[return-value]


def _ranked(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted by their keys, and the sorted keys, which must be unique."""
    ranked, order = keys.sort()
    if bool((ranked[1:] == ranked[:-1]).any()):
        raise ValueError("`coords` must be unique; merge the features of duplicated voxels")
    return order, ranked


def _shifted(coords: Tensor, offset: Sequence[int], shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keys of the positions at an offset, and which of them are inside; outside, keys would wrap to the next row."""
    places = coords + coords.new_tensor([0, *offset])
    inside = ((places[:, 1:] >= 0) & (places[:, 1:] < coords.new_tensor(shape))).all(1)
    return voxel_keys(places, shape, check=False), inside


def _find(ranked: Tensor, sought: Tensor) -> Tensor:
    """Index of each key in the sorted keys, or -1."""
    if not len(ranked):
        return torch.full_like(sought, -1)
    place = torch.searchsorted(ranked, sought).clamp_(max=len(ranked) - 1)
    return torch.where(ranked[place] == sought, place, -1)


def _meets(
    coords: Tensor, offset: Sequence[int], stride: Sequence[int], padding: Sequence[int], out: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Input rows covered by an offset of the kernel, and the corresponding output positions."""
    at = coords[:, 1:] + coords.new_tensor(padding) - coords.new_tensor(offset)
    step = coords.new_tensor(stride)
    place = torch.div(at, step, rounding_mode="floor")
    hit = ((at % step == 0) & (place >= 0) & (place < coords.new_tensor(out))).all(1).nonzero().squeeze(1)
    return hit, torch.cat([coords[hit, :1], place[hit]], 1)
