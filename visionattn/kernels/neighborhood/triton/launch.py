"""Launches of the Triton kernels: tiles, arguments and output tensors. Nothing here needs a GPU.

A `Launch` can be run, or compiled ahead of time for a GPU that is not present (`triton_aot`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.triton.backward import key_kernel, query_kernel
from visionattn.kernels.neighborhood.triton.forward import forward_kernel
from visionattn.kernels.neighborhood.triton.reductions import bias_kernel, extra_kernel
from visionattn.kernels.neighborhood.triton.tiles import (
    Geometry,
    Tile,
    blocks_of,
    field_bits,
    legal_tiles,
    tile_counts,
)

__all__ = ["Launch", "Problem", "backward", "forward"]

AUTOTUNE_CANDIDATES = 8
PROGRAMS_PER_PROCESSOR = 4  # for the two-stage reductions, whose memory is proportional to it
PARTIAL_BYTES = 1 << 26  # limit per reduction

Choose = Callable[[str, tuple[Tile, ...], Callable[[Tile], "Launch"]], Tile]


@dataclass(frozen=True)
class Launch:
    """One kernel, its grid and its arguments."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    warps: int
    stages: int

    def run(self) -> None:
        if self.programs:
            self.kernel[(self.programs,)](**self.arguments, num_warps=self.warps, num_stages=self.stages)


def _strides(x: Tensor, rank: int, dilation: tuple[int, int, int]) -> tuple[int, ...]:
    """Strides of ``[batch, *axes, heads(, dim)]``: batch, three axes, heads, dim, then the strides inside a group."""
    axes = (*x.stride()[1 : rank + 1], 0, 0)[:3]
    last = x.stride(rank + 2) if x.dim() == rank + 3 else 0
    return (
        x.stride(0), *axes, x.stride(rank + 1), last, *(s * d for s, d in zip(axes, dilation, strict=True))
    )  # fmt: skip


def _span(x: Tensor) -> int:
    """Elements from the first to the last of one image."""
    return sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True))


@lru_cache(maxsize=64)
def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2  # for the interpreter: few programs, but more than one partial sum


def _precision(dtype: torch.dtype) -> str:
    """Float32 products use full precision unless TF32 is enabled in PyTorch."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


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

    @classmethod
    def of(cls, q, k, v, rpb, extra_k, extra_v, kernel, stride, dilation, causal, scale) -> "Problem":
        rank = q.dim() - 3
        geometry = Geometry.of(
            q.shape[1:-2], tuple(kernel), tuple(stride), tuple(dilation), tuple(map(bool, causal))
        )  # fmt: skip
        return cls(
            q, k, v, None if rpb is None else rpb.contiguous(), extra_k, extra_v, geometry, float(scale), rank
        )  # fmt: skip

    @property
    def heads(self) -> int:
        return self.q.shape[-2]

    @property
    def table(self) -> int:
        return prod(2 * k - 1 for k in self.geometry.kernel)

    def strides(self, x: Tensor) -> tuple[int, ...]:
        return _strides(x, self.rank, self.geometry.dilation)

    def tiles(self, kernel: str) -> tuple[Tile, ...]:
        """The legal tiles of a kernel, best first.

        Raises:
            ValueError: there is no legal tile.
        """
        dim, value_dim = self.q.shape[-1], self.v.shape[-1]
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
            lengths=self.geometry.lengths, heads=self.heads, scale=self.scale,
            REPEAT=self.heads // self.k.shape[-2], **dims,
            BLOCK_DIM=blocks_of(dims["DIM"]), BLOCK_VALUE=blocks_of(dims["VALUE_DIM"]),
            WIDE=any(_span(x) >= 2**31 for x in tensors), PRECISION=_precision(self.q.dtype),
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
            dilation=g.dilation, tiles=self.counts(tile), KERNEL=g.kernel, STRIDE=g.stride,
            TILE=tile.shape, HALO=tile.halo, BITS=field_bits(most), BLOCK=tile.block,
        )  # fmt: skip

    def extras(self) -> dict[str, Any]:
        extra_k, extra_v = self.extra_k, self.extra_v
        present = extra_k is not None
        return dict(
            extra_k_ptr=extra_k, extra_v_ptr=extra_v, extra=extra_k.shape[1] if present else 0,
            extra_k_strides=extra_k.stride() if present else (0, 0, 0, 0),
            extra_v_strides=extra_v.stride() if present else (0, 0, 0, 0), HAS_EXTRA=present,
        )  # fmt: skip


def _first(kernel: str, tiles: tuple[Tile, ...], build: Callable[[Tile], Launch]) -> Tile:
    return tiles[0]


_MEASURED: dict[tuple, Tile] = {}


def _measure(problem: Problem) -> Choose:
    """Choose a tile by timing the most promising ones, once per type of problem."""
    from triton.testing import do_bench

    def choose(kernel: str, tiles: tuple[Tile, ...], build: Callable[[Tile], Launch]) -> Tile:
        key = (kernel, tiles, problem.geometry, problem.q.shape, problem.v.shape, problem.q.dtype, problem.q.device)
        if key not in _MEASURED:
            times = {tile: do_bench(build(tile).run, warmup=5, rep=20) for tile in tiles[:AUTOTUNE_CANDIDATES]}
            _MEASURED[key] = min(times, key=times.__getitem__)
        return _MEASURED[key]

    return choose


def _choose(problem: Problem) -> Choose:
    tune = os.environ.get("VISIONATTN_AUTOTUNE") == "1" and problem.q.is_cuda and problem.q.numel()
    return _measure(problem) if tune else _first


def _masks_are_rare(geometry: Geometry, tile: Tile) -> bool:
    """Return True if some steps may need no mask, so that checking for it is worthwhile."""
    if prod(tile.halo) < 4 * tile.block:
        return False
    inner = zip(geometry.stride[1:], tile.shape[1:], tile.halo[1:], geometry.kernel[1:], strict=True)
    return all(n == k or s % t == 0 for s, t, n, k in inner)


def forward(problem: Problem, choose: Choose | None = None) -> tuple[Tensor, Tensor, Launch]:
    """Output, log-sum-exp, and the launch that computes them."""
    q, v = problem.q, problem.v
    out = torch.empty(*q.shape[:-1], v.shape[-1], dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)

    def build(tile: Tile) -> Launch:
        arguments = dict(
            **problem.common(), **problem.tiled(tile, "forward"), **problem.extras(),
            rpb_ptr=problem.rpb, out_ptr=out, lse_ptr=lse, CAUSAL=problem.geometry.causal,
            HAS_RPB=problem.rpb is not None, SKIP_MASK=_masks_are_rare(problem.geometry, tile),
            LATE_SCALE=problem.scale > 1e-6,
            SAME_STRIDES=problem.k.stride() == problem.v.stride(),
        )  # fmt: skip
        programs = q.shape[0] * problem.heads * prod(problem.counts(tile))
        return Launch(forward_kernel, programs, arguments, tile.warps, tile.stages)

    tiles = problem.tiles("forward")
    return out, lse, build((choose or _choose(problem))("forward", tiles, build))


def _bias_launch(problem: Problem, shared: dict[str, Any], tile: Tile) -> tuple[Tensor, Launch]:
    """Zero-initialized partial tables ``[shares, heads, table]``, and the launch that computes them."""
    q, heads = problem.q, problem.heads
    chunks = -(-prod(tile.halo) // tile.block)
    work = max(q.shape[0] * prod(problem.counts(tile)), 1)
    splits = -(-PROGRAMS_PER_PROCESSOR * _processors(q.device) // (chunks * heads))
    splits = max(1, min(splits, work, PARTIAL_BYTES // (4 * chunks * heads * problem.table)))
    share = -(-work // splits)
    partial = q.new_zeros(-(-work // share) * chunks, heads, problem.table, dtype=torch.float32)
    arguments = dict(
        **shared, **problem.tiled(tile, "bias"), rpb_ptr=problem.rpb, partial_ptr=partial,
        batch_size=q.shape[0], chunks=chunks, share=share, BLOCK_TABLE=32,
    )  # fmt: skip
    return partial, Launch(bias_kernel, partial.shape[0] * heads, arguments, tile.warps, 1)


def _extra_launch(problem: Problem, shared: dict[str, Any]) -> tuple[Tensor, Tensor, Launch]:
    """Partial gradients ``[shares, *shape]`` of the additional keys and values, and the launch that computes them."""
    q, extra_k, extra_v = problem.q, problem.extra_k, problem.extra_v
    shared = {name: x for name, x in shared.items() if name not in ("k_ptr", "v_ptr", "k_strides", "v_strides", "WIDE")}
    batch, extra, heads_kv, _ = extra_k.shape
    wide = shared["BLOCK_DIM"] + shared["BLOCK_VALUE"] > 128
    block, block_extra = (16 if wide and q.element_size() == 4 else 32), (16 if extra <= 16 or wide else 32)
    blocks, tokens = -(-extra // block_extra), prod(problem.geometry.lengths)
    splits = -(-PROGRAMS_PER_PROCESSOR * _processors(q.device) // max(batch * heads_kv * blocks, 1))
    splits = max(1, min(splits, -(-tokens // block), PARTIAL_BYTES // max(4 * extra_k.numel(), 4)))
    share = block * -(-tokens // (splits * block))
    splits = -(-tokens // share)
    grad_k = q.new_empty(splits, *extra_k.shape, dtype=torch.float32)
    grad_v = q.new_empty(splits, *extra_v.shape, dtype=torch.float32)
    arguments = dict(
        **shared, k_ptr=extra_k, v_ptr=extra_v, k_strides=extra_k.stride(), v_strides=extra_v.stride(),
        grad_k_ptr=grad_k, grad_v_ptr=grad_v, batch_size=batch, extra=extra, blocks=blocks, share=share,
        BLOCK_EXTRA=block_extra, BLOCK=block,
    )  # fmt: skip
    return grad_k, grad_v, Launch(extra_kernel, splits * batch * blocks * heads_kv, arguments, 4 if wide else 2, 2)


def backward(
    problem: Problem,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    choose: Choose | None = None,
) -> tuple[dict[str, Tensor], list[Launch]]:
    """Gradients by name (partial ones for the table and the additional keys), and the launches in order."""
    q, k, v = problem.q, problem.k, problem.v
    choose = choose or _choose(problem)
    grads = {name: torch.empty(x.shape, dtype=x.dtype, device=x.device) for name, x in dict(q=q, k=k, v=v).items()}
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    out, lse = out.contiguous(), lse.contiguous()
    common = problem.common() | dict(lse_ptr=lse, delta_ptr=delta, grad_out_ptr=grad_out)
    common["grad_out_strides"] = problem.strides(grad_out)
    common["WIDE"] |= any(_span(x) >= 2**31 for x in (grad_out, grad_lse) if x is not None)
    bias = dict(rpb_ptr=problem.rpb, HAS_RPB=problem.rpb is not None)
    images = q.shape[0]

    def query(tile: Tile) -> Launch:
        arguments = dict(
            **common, **problem.tiled(tile, "query"), **problem.extras(), **bias, out_ptr=out,
            grad_lse_ptr=grad_lse, grad_lse_strides=(0,) * 9 if grad_lse is None else problem.strides(grad_lse),
            HAS_GRAD_LSE=grad_lse is not None, grad_q_ptr=grads["q"], CAUSAL=problem.geometry.causal,
        )  # fmt: skip
        programs = images * problem.heads * prod(problem.counts(tile))
        return Launch(query_kernel, programs, arguments, tile.warps, tile.stages)

    def key(tile: Tile) -> Launch:
        arguments = dict(
            **common, **problem.tiled(tile, "key"), **bias, grad_k_ptr=grads["k"], grad_v_ptr=grads["v"],
            CAUSAL=problem.geometry.causal,
        )  # fmt: skip
        programs = images * k.shape[-2] * prod(problem.counts(tile))
        return Launch(key_kernel, programs, arguments, tile.warps, tile.stages)

    launches = [query(choose("query", problem.tiles("query"), query)), key(choose("key", problem.tiles("key"), key))]
    if problem.rpb is not None:
        tile = choose("bias", problem.tiles("bias"), lambda tile: _bias_launch(problem, common, tile)[1])
        grads["rpb"], launch = _bias_launch(problem, common, tile)
        launches.append(launch)
    if problem.extra_k is not None:
        grads["extra_k"], grads["extra_v"], launch = _extra_launch(problem, common)
        launches.append(launch)
    return grads, launches
