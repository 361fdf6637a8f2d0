"""One call of the operator as the launches see it: tensors, geometry, and the arguments that kernels share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.triton.image_tiles import image_tiles, loops_over_images
from visionattn.kernels.neighborhood.triton.tiles import Geometry, Tile, blocks_of, field_bits, legal_tiles, tile_counts
from visionattn.kernels.precision import float32_precision
from visionattn.kernels.triton_launch import Launch

__all__ = ["Choose", "Problem", "launch", "numbered", "precision", "span", "strides_of"]

Choose = Callable[[str, tuple[Tile, ...], Callable[[Tile], Launch]], Tile]
"""Selects one of the legal tiles of a kernel, given a function that builds the launch of a tile."""


def launch(kernel: Any, programs: int, arguments: dict[str, Any], tile: Tile, stages: int | None = None) -> Launch:
    """A launch with the options of a tile; arguments that the kernel does not have are left out."""
    given = {name: arguments[name] for name in kernel.arg_names}
    return Launch(kernel, (programs,), given, tile.warps, tile.stages if stages is None else stages)


def strides_of(x: Tensor, rank: int, dilation: tuple[int, int, int]) -> tuple[int, ...]:
    """Strides of ``[batch, *axes, heads(, dim)]``: batch, three axes, heads, dim, then the strides inside a group."""
    axes = (*x.stride()[1 : rank + 1], 0, 0)[:3]
    last = x.stride(rank + 2) if x.dim() == rank + 3 else 0
    return (
        x.stride(0), *axes, x.stride(rank + 1), last, *(s * d for s, d in zip(axes, dilation, strict=True))
    )  # fmt: skip


def span(x: Tensor) -> int:
    """Elements from the first to the last of one image."""
    return sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True))


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2  # for the interpreter: few programs, but more than one partial sum


def precision(dtype: torch.dtype) -> str:
    """Float32 products use full precision unless TF32 is enabled in PyTorch."""
    return float32_precision() if dtype == torch.float32 else "ieee"


def numbered(name: str, values: tuple[int, ...]) -> dict[str, int]:
    """Arguments of the axes as separate integers, because Triton specializes kernels on the values in a tuple."""
    return {f"{name}{axis}": value for axis, value in enumerate(values)}


@dataclass
class Problem:
    """Tensors and geometry of one call, and the arguments shared by its launches."""

    q: Tensor
    k: Tensor
    v: Tensor
    rpb: Tensor | None
    extra_k: Tensor | None
    extra_v: Tensor | None
    geometry: Geometry
    scale: float
    rank: int
    processors: int
    device: torch.device

    @classmethod
    def of(
        cls, q, k, v, rpb, extra_k, extra_v, kernel, stride, dilation, causal, scale,
        device: torch.device | None = None,
    ) -> "Problem":  # fmt: skip
        """From the arguments of the operator; ``device`` replaces that of the tensors, if these have no memory."""
        rank = q.dim() - 3
        geometry = Geometry.of(
            q.shape[1:-2], tuple(kernel), tuple(stride), tuple(dilation), tuple(map(bool, causal))
        )  # fmt: skip
        rpb = None if rpb is None else rpb.contiguous()
        device = device or q.device
        return cls(q, k, v, rpb, extra_k, extra_v, geometry, float(scale), rank, _processors(device), device)

    def loops_over_images(self, is_backward: bool) -> bool:
        """Whether the kernels of `image_launch` compute a pass of this problem."""
        return loops_over_images(
            self.geometry, self.q.shape[-1], self.v.shape[-1], self.q.element_size(), self.heads, self.k.shape[-2],
            0 if self.extra_k is None else self.extra_k.shape[1], self.scale, self.rpb is not None, is_backward,
        )  # fmt: skip

    @property
    def heads(self) -> int:
        return self.q.shape[-2]

    @property
    def table(self) -> int:
        return prod(2 * k - 1 for k in self.geometry.kernel)

    def strides(self, x: Tensor) -> tuple[int, ...]:
        return strides_of(x, self.rank, self.geometry.dilation)

    def tiles(self, kernel: str) -> tuple[Tile, ...]:
        """The legal tiles of a kernel, best first.

        Raises:
            ValueError: there is no legal tile.
        """
        dim, value_dim = self.q.shape[-1], self.v.shape[-1]
        if kernel != "bias" and self.loops_over_images(kernel != "forward"):
            tiles = image_tiles(self.geometry, kernel, dim, value_dim, self.rpb is not None)
            if self.device.type == "cuda" and torch.cuda.get_device_capability(self.device)[0] == 10:
                # Products of 64 rows use tensor memory there, which takes more than twice the instructions.
                return tuple(sorted(tiles, key=lambda tile: tile.size >= 64))
            return tiles
        tiles = legal_tiles(self.geometry, kernel, dim, value_dim, self.q.element_size())
        if not tiles:
            raise ValueError(f"head_dim={dim} with value_dim={value_dim} is too large for the Triton backend")
        return tiles

    def common(self) -> dict[str, Any]:
        """Arguments shared by all kernels that process tiles of the map."""
        tensors = [x for x in (self.q, self.k, self.v) if x is not None]
        dims = dict(DIM=self.q.shape[-1], VALUE_DIM=self.v.shape[-1])
        return dict(
            q_ptr=self.q, k_ptr=self.k, v_ptr=self.v,
            q_strides=self.strides(self.q), k_strides=self.strides(self.k), v_strides=self.strides(self.v),
            **numbered("length", self.geometry.lengths), heads=self.heads, scale=self.scale,
            REPEAT=self.heads // self.k.shape[-2], **dims,
            BLOCK_DIM=blocks_of(dims["DIM"]), BLOCK_VALUE=blocks_of(dims["VALUE_DIM"]),
            WIDE=any(span(x) >= 2**31 for x in tensors), PRECISION=precision(self.q.dtype),
        )  # fmt: skip

    def counts(self, tile: Tile) -> tuple[int, int, int]:
        return tile_counts(self.geometry, tile.shape)

    def tiled(self, tile: Tile, kernel: str) -> dict[str, Any]:
        """Arguments that depend on the tile."""
        if kernel == "key":
            most = tile.shape
        else:  # the last step may extend past the halo along its first axis
            steps = -(-prod(tile.halo) // tile.block)
            most = (steps * tile.block // (tile.halo[1] * tile.halo[2]), *tile.halo[1:])
        g = self.geometry
        return dict(
            **numbered("dilation", g.dilation), **numbered("tiles", self.counts(tile)), KERNEL=g.kernel,
            STRIDE=g.stride, TILE=tile.shape, HALO=tile.halo, BITS=field_bits(most), BLOCK=tile.block,
        )  # fmt: skip

    def extras(self) -> dict[str, Any]:
        extra_k, extra_v = self.extra_k, self.extra_v
        present = extra_k is not None
        return dict(
            extra_k_ptr=extra_k, extra_v_ptr=extra_v, extra=extra_k.shape[1] if present else 0,
            extra_k_strides=extra_k.stride() if present else (0, 0, 0, 0),
            extra_v_strides=extra_v.stride() if present else (0, 0, 0, 0), HAS_EXTRA=present,
        )  # fmt: skip
