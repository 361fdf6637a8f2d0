"""Launches of the Triton kernels: block sizes, arguments, intermediate tensors. Nothing here needs a GPU.

The values of the offsets are not read, so there is no synchronization. Launches do not depend on the numbers of tokens
and windows, which vary between frames and are passed with each call.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from visionattn.kernels.precision import float32_precision
from visionattn.kernels.scattered.triton.backward import (
    key_backward_kernel,
    query_backward_kernel,
    window_backward_kernel,
)
from visionattn.kernels.scattered.triton.forward import query_kernel, reduce_kernel, window_kernel
from visionattn.kernels.triton_launch import Launch, Layout, Pointer, Prepared, plan_cache

__all__ = ["Problem", "backward", "backward_launches", "forward", "forward_launches"]

TILE, BLOCK_CHUNKS = 512, 16  # for the kernel that adds the sums of chunks
MOST_VALUES = 64  # value dimensions that the kernels of the backward pass process at once

# Tokens per block and per chunk, warps and stages, by padded head dimension: without spilled registers and within
# 99 KB of shared memory for compute capability 8.0, 8.9, 9.0, 10.0 and 12.0.
_HALF = {
    "forward": {32: (64, 256, 4, 2), 64: (32, 256, 4, 2), 128: (16, 512, 4, 1)},
    "backward": {32: (32, 256, 4, 2), 64: (32, 256, 4, 1), 128: (16, 512, 8, 1)},
}
_SINGLE = {
    "forward": {32: (32, 256, 4, 2), 64: (32, 256, 8, 1), 128: (16, 512, 8, 1)},
    "backward": {32: (32, 256, 4, 2), 64: (32, 256, 8, 1), 128: (16, 512, 8, 1)},
}


@dataclass(frozen=True)
class Problem:
    """What the launches of one pass depend on.

    Args:
        maps: layouts of ``[tokens, heads, dim]`` by name, without the number of tokens: ``"q"``, ``"k"``, ``"v"``, and
            others of the pass.
        index: dtype of the offsets.
        precision: of products of float32.
    """

    direction: str
    maps: tuple[tuple[str, Layout], ...]
    index: torch.dtype
    eps: float
    precision: str

    @property
    def blocks(self) -> tuple[int, int]:
        """Padded head dimensions of keys and values."""
        maps = dict(self.maps)
        return tuple(max(16, triton.next_power_of_2(maps[name][0][-1])) for name in ("q", "v"))

    @property
    def way(self) -> tuple[int, int, int, int]:
        """Tokens per block and per chunk, warps and stages."""
        ways = (_SINGLE if dict(self.maps)["q"][2].itemsize == 4 else _HALF)[self.direction]
        return next(way for most, way in ways.items() if max(self.blocks) <= most)

    @property
    def sums_size(self) -> int:
        """Numbers per chunk and head."""
        return self.blocks[0] * self.blocks[1] + self.blocks[0]

    def launches(self, kernels: tuple[Any, ...]) -> list[Launch]:
        """Launches with pointers, and with grids and numbers of one token."""
        maps = dict(self.maps)
        (_, heads, dim), _, dtype, _ = maps["q"]
        block, chunk, warps, stages = self.way
        # Half-precision inputs are exact in TF32, which is precise enough for their sums. The gradients of the widest
        # heads would spill registers in the layout of tensor cores.
        wide = self.direction == "backward" and max(self.blocks) == 128
        precision = "ieee" if wide else self.precision if dtype == torch.float32 else "tf32"
        sums, table = Pointer(torch.float32), Pointer(torch.int64)
        arguments = {
            **{f"{name}_ptr": Pointer(x[2]) for name, x in maps.items()},
            **{f"{name}_strides": x[1] for name, x in maps.items()},
            **dict(sums_ptr=sums, d_sums_ptr=sums, table_ptr=table, offsets_ptr=Pointer(self.index)),
            **dict(tokens=1, windows=1, places=1, search_steps=1, eps=self.eps, HEADS=heads),
            **dict(DIM=dim, VALUE_DIM=maps["v"][0][-1], BLOCK_DIM=self.blocks[0], BLOCK_VALUE=self.blocks[1]),
            **dict(BLOCK_M=block, CHUNK=chunk, PRECISION=precision),
            **dict(SIZE=self.sums_size, TILES=triton.cdiv(self.sums_size, TILE), TILE=TILE, BLOCK_CHUNKS=BLOCK_CHUNKS),
        }
        return [
            Launch(kernel, (1,), {name: arguments[name] for name in kernel.arg_names}, *options)
            for kernel in kernels
            for options in [(4, 2) if kernel is reduce_kernel else (warps, stages)]
        ]


class Plan:
    """What calls with the same layouts share: the launches, tokens per chunk, numbers per chunk and head."""

    def __init__(self, problem: Problem) -> None:
        launches = forward_launches(problem) if problem.direction == "forward" else backward_launches(problem)
        self.launches = [Prepared(launch) for launch in launches]
        self.chunk, self.sums_size = problem.way[1], problem.sums_size
        self.tiles = triton.cdiv(self.sums_size, TILE)


class Work:
    """Numbers that vary between frames, and the grids of the kernels."""

    def __init__(self, plan: Plan, tokens: int, heads: int, windows: int) -> None:
        chunk = plan.chunk
        windows = windows if tokens else 0
        # At most two chunks start in a range of chunk size; with fewer tokens no window has several chunks.
        self.places = 2 * triton.cdiv(tokens, chunk) if windows and tokens > chunk else 0
        self.numbers = dict(
            tokens=tokens, windows=windows, places=self.places, search_steps=max(1, windows.bit_length())
        )  # fmt: skip
        self.windows = ((windows + self.places) * heads,)
        self.chunks = (self.places * heads,)
        self.reduce = (self.places * heads * plan.tiles,)


def forward_launches(problem: Problem) -> list[Launch]:
    """Sums of windows or chunks, sums of the chunks of a window, outputs of the tokens of chunks."""
    return problem.launches((window_kernel, reduce_kernel, query_kernel))


def backward_launches(problem: Problem) -> list[Launch]:
    """As the forward pass, for the gradients; `reduce_kernel` runs twice."""
    return problem.launches((window_backward_kernel, reduce_kernel, query_backward_kernel, key_backward_kernel))


@plan_cache
def _plan(direction: str, names: tuple[str, ...], layouts: tuple[Layout, ...], *rest: Any) -> Plan:
    return Plan(Problem(direction, tuple(zip(names, layouts, strict=True)), *rest))


def _plan_of(direction: str, maps: dict[str, Tensor], offsets: Tensor, eps: float) -> Plan:
    layouts = tuple(
        ((1, *x.shape[1:]), x.stride(), x.dtype, x.data_ptr() % 16 == 0) for x in maps.values()
    )  # fmt: skip
    return _plan(direction, tuple(maps), layouts, offsets.dtype, eps, float32_precision())


def forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> Tensor:
    """The output; arguments as in `reference.attend_reference`."""
    tokens, heads, _ = q.shape
    out = torch.empty((tokens, heads, v.shape[-1]), dtype=q.dtype, device=q.device)
    maps = dict(q=q, k=k, v=v, out=out)
    plan = _plan_of("forward", maps, offsets, eps)
    work = Work(plan, tokens, heads, offsets.shape[0] - 1)
    tensors = dict(q_ptr=q, k_ptr=k, v_ptr=v, out_ptr=out) | _scratch(plan, work, q, offsets, ("sums_ptr",))
    by_window, reduce, by_query = plan.launches
    by_window(tensors, work.windows, work.numbers)
    if work.places:
        reduce(tensors, work.reduce)
        by_query(tensors, work.chunks)
    return out


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if v.shape[-1] <= MOST_VALUES:
        _backward(dict(q=q, k=k, v=v, grad=grad_out, dq=dq, dk=dk, dv=dv), offsets, eps)
        return dq, dk, dv
    # The output of a value dimension depends on no other one, so the gradients of queries and keys are sums over them.
    dq, dk = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k))
    part_q, part_k = torch.empty_like(dq), torch.empty_like(dk)
    for parts in zip(*(x.split(MOST_VALUES, -1) for x in (v, grad_out, dv)), strict=True):
        part_v, grad, part_dv = parts
        _backward(dict(q=q, k=k, v=part_v, grad=grad, dq=part_q, dk=part_k, dv=part_dv), offsets, eps)
        dq += part_q
        dk += part_k
    return dq.to(q.dtype), dk.to(k.dtype), dv


def _backward(maps: dict[str, Tensor], offsets: Tensor, eps: float) -> None:
    """Write the gradients of the maps, at most `MOST_VALUES` value dimensions."""
    q = maps["q"]
    plan = _plan_of("backward", maps, offsets, eps)
    work = Work(plan, q.shape[0], q.shape[1], offsets.shape[0] - 1)
    tensors = {f"{name}_ptr": x for name, x in maps.items()}
    tensors |= _scratch(plan, work, q, offsets, ("sums_ptr", "d_sums_ptr"))
    by_window, reduce, by_query, by_key = plan.launches
    by_window(tensors, work.windows, work.numbers)
    if work.places:
        reduce(tensors, work.reduce)
        by_query(tensors, work.chunks)
        reduce(tensors | dict(sums_ptr=tensors["d_sums_ptr"]), work.reduce)
        by_key(tensors, work.chunks)


def _scratch(plan: Plan, work: Work, q: Tensor, offsets: Tensor, sums: tuple[str, ...]) -> dict[str, Tensor]:
    """The offsets, and uninitialized tensors that the kernels share."""
    shape = (work.places, q.shape[1], plan.sums_size)
    return {
        "offsets_ptr": offsets.contiguous(),
        "table_ptr": torch.empty((work.places, 4), dtype=torch.int64, device=q.device),
        **{name: torch.empty(shape, dtype=torch.float32, device=q.device) for name in sums},
    }
