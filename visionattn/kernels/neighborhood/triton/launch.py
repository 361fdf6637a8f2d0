"""Launches of the Triton kernels: tiles, arguments and output tensors. Nothing here needs a GPU.

A `Launch` can be run, or compiled ahead of time for a GPU that is not present (`triton_aot`). Tensors may be on the
meta device; `plans` then runs the launches with other tensors. The launches of the kernels that loop over images are
built in `image_launch`.
"""

import os
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.triton import image_launch
from visionattn.kernels.neighborhood.triton.backward import key_kernel, query_kernel
from visionattn.kernels.neighborhood.triton.forward import forward_kernel
from visionattn.kernels.neighborhood.triton.image_tiles import ImageTile
from visionattn.kernels.neighborhood.triton.problem import Choose, Problem, launch, span
from visionattn.kernels.neighborhood.triton.reductions import bias_kernel, extra_kernel
from visionattn.kernels.neighborhood.triton.tiles import PARTIAL_BYTES, Geometry, Tile
from visionattn.kernels.triton_launch import Launch
from visionattn.kernels.tuned import neighborhood_tile

__all__ = ["Launch", "Problem", "backward", "forward"]

AUTOTUNE_CANDIDATES = 8
PROGRAMS_PER_PROCESSOR = 16  # for the two-stage reductions, whose memory is proportional to it


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
    """The measured tile of the table of the GPU, if it has one, otherwise the first; or one that is timed now."""
    if os.environ.get("VISIONATTN_AUTOTUNE") == "1" and problem.q.is_cuda and problem.q.numel():
        return _measure(problem)

    def choose(kernel: str, tiles: tuple[Tile, ...], build: Callable[[Tile], Launch]) -> Tile:
        return neighborhood_tile(kernel, tiles, problem, problem.device) or _first(kernel, tiles, build)

    return choose


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
        if isinstance(tile, ImageTile):
            return image_launch.forward(problem, tile, out, lse)
        arguments = dict(
            **problem.common(), **problem.tiled(tile, "forward"), **problem.extras(),
            rpb_ptr=problem.rpb, out_ptr=out, lse_ptr=lse, CAUSAL=problem.geometry.causal,
            HAS_RPB=problem.rpb is not None, SKIP_MASK=_masks_are_rare(problem.geometry, tile),
            LATE_SCALE=problem.scale > 1e-6,
            SAME_STRIDES=problem.k.stride() == problem.v.stride(),
        )  # fmt: skip
        programs = q.shape[0] * problem.heads * prod(problem.counts(tile))
        return launch(forward_kernel, programs, arguments, tile)

    tiles = problem.tiles("forward")
    # Kernels of another structure have another name, because their tiles are measured separately.
    name = "image forward" if problem.loops_over_images(is_backward=False) else "forward"
    return out, lse, build((choose or _choose(problem))(name, tiles, build))


def _bias_launch(problem: Problem, shared: dict[str, Any], tile: Tile) -> tuple[Tensor, Launch]:
    """Zero-initialized partial tables ``[shares, heads, table]``, and the launch that computes them."""
    q, heads = problem.q, problem.heads
    chunks = -(-prod(tile.halo) // tile.block)
    work = max(q.shape[0] * prod(problem.counts(tile)), 1)
    splits = -(-PROGRAMS_PER_PROCESSOR * problem.processors // (chunks * heads))
    splits = max(1, min(splits, work, PARTIAL_BYTES // (4 * chunks * heads * problem.table)))
    share = -(-work // splits)
    partial = q.new_zeros(-(-work // share) * chunks, heads, problem.table, dtype=torch.float32)
    arguments = dict(
        **shared, **problem.tiled(tile, "bias"), rpb_ptr=problem.rpb, partial_ptr=partial,
        batch_size=q.shape[0], chunks=chunks, share=share, BLOCK_TABLE=32,
    )  # fmt: skip
    return partial, launch(bias_kernel, partial.shape[0] * heads, arguments, tile, stages=1)


def _extra_launch(problem: Problem, shared: dict[str, Any]) -> tuple[Tensor, Tensor, Launch]:
    """Partial gradients ``[shares, *shape]`` of the additional keys and values, and the launch that computes them."""
    q, extra_k, extra_v = problem.q, problem.extra_k, problem.extra_v
    batch, extra, heads_kv, _ = extra_k.shape
    wide = shared["BLOCK_DIM"] + shared["BLOCK_VALUE"] > 128
    block, block_extra = (16 if wide and q.element_size() == 4 else 32), (16 if extra <= 16 or wide else 32)
    blocks, tokens = -(-extra // block_extra), prod(problem.geometry.lengths)
    splits = -(-PROGRAMS_PER_PROCESSOR * problem.processors // max(batch * heads_kv * blocks, 1))
    splits = max(1, min(splits, -(-tokens // block), PARTIAL_BYTES // max(4 * extra_k.numel(), 4)))
    share = block * -(-tokens // (splits * block))
    splits = -(-tokens // share)
    grad_k = q.new_empty(splits, *extra_k.shape, dtype=torch.float32)
    grad_v = q.new_empty(splits, *extra_v.shape, dtype=torch.float32)
    arguments = dict(
        **shared, **problem.extras(), partial_k_ptr=grad_k, partial_v_ptr=grad_v, batch_size=batch, blocks=blocks,
        share=share, BLOCK_EXTRA=block_extra, BLOCK=block,
    )  # fmt: skip
    arguments = {name: arguments[name] for name in extra_kernel.arg_names}
    grid = (splits * batch * blocks * heads_kv,)
    return grad_k, grad_v, Launch(extra_kernel, grid, arguments, warps=4 if wide else 2, stages=2)


def backward(
    problem: Problem,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    choose: Choose | None = None,
    packed: bool = False,
) -> tuple[dict[str, Tensor], list[Launch]]:
    """Gradients by name (partial ones for the table and the additional keys), and the launches in order.

    With ``packed`` the gradients of q, k and v are views of one tensor ``[batch, *axes, 3, heads, head_dim]``.
    ``out``, ``lse`` and ``grad_lse`` are contiguous.
    """
    choose = choose or _choose(problem)
    q, k, v = problem.q, problem.k, problem.v
    if packed:
        views = torch.empty(*q.shape[:-2], 3, *q.shape[-2:], dtype=q.dtype, device=q.device).unbind(-3)
    else:
        views = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    grads = dict(zip("qkv", views, strict=True))
    given = dict(out_ptr=out, lse_ptr=lse, grad_out_ptr=grad_out, grad_lse_ptr=grad_lse)
    if problem.loops_over_images(is_backward=True):
        partial, launches = image_launch.backward(problem, given, grads, choose)
        return grads | partial, launches
    delta = torch.empty(lse.shape, dtype=torch.float32, device=q.device)
    common = problem.common() | given | dict(delta_ptr=delta, grad_out_strides=problem.strides(grad_out))
    common["WIDE"] |= span(grad_out) >= 2**31 or any(span(x) >= 2**31 for x in views)
    common["HAS_RPB"] = problem.rpb is not None
    for name, x in grads.items():
        common |= {f"grad_{name}_ptr": x, f"grad_{name}_strides": problem.strides(x)}
    causal = dict(rpb_ptr=problem.rpb, CAUSAL=problem.geometry.causal)

    def query(tile: Tile) -> Launch:
        arguments = dict(
            **common, **problem.tiled(tile, "query"), **problem.extras(), **causal, HAS_GRAD_LSE=grad_lse is not None
        )
        programs = q.shape[0] * problem.heads * prod(problem.counts(tile))
        return launch(query_kernel, programs, arguments, tile)

    def key(tile: Tile) -> Launch:
        arguments = dict(**common, **problem.tiled(tile, "key"), **causal)
        programs = q.shape[0] * k.shape[-2] * prod(problem.counts(tile))
        return launch(key_kernel, programs, arguments, tile)

    launches = [query(choose("query", problem.tiles("query"), query)), key(choose("key", problem.tiles("key"), key))]
    if problem.rpb is not None:
        tile = choose("bias", problem.tiles("bias"), lambda tile: _bias_launch(problem, common, tile)[1])
        grads["rpb"], last = _bias_launch(problem, common, tile)
        launches.append(last)
    if problem.extra_k is not None:
        grads["extra_k"], grads["extra_v"], last = _extra_launch(problem, common)
        launches.append(last)
    return grads, launches
