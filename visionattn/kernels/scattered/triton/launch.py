"""Launches of the Triton kernels: block sizes, arguments, intermediate tensors. Nothing here needs a GPU.

A `Launch` can be run, or compiled ahead of time for a GPU that is not present (`triton_aot`). The values of the offsets
are not read, so there is no synchronization.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from visionattn.kernels.scattered.triton.backward import (
    key_backward_kernel,
    query_backward_kernel,
    window_backward_kernel,
)
from visionattn.kernels.scattered.triton.forward import query_kernel, reduce_kernel, window_kernel

__all__ = ["Launch", "backward", "backward_launches", "forward", "forward_launches"]

TILE, BLOCK_CHUNKS = 512, 16  # for the kernel that adds the sums of chunks


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


# Tokens per block and per chunk, warps and stages, by padded head dimension: without spilled registers and within
# 99 KB of shared memory for compute capability 8.0, 9.0, 10.0 and 12.0.
_HALF = {
    "forward": {32: (64, 256, 4, 2), 64: (32, 256, 4, 2), 128: (16, 512, 4, 1)},
    "backward": {32: (32, 256, 4, 2), 64: (32, 256, 4, 1), 128: (16, 512, 16, 1)},
}
_SINGLE = {
    "forward": {32: (32, 256, 4, 2), 64: (32, 256, 8, 1), 128: (16, 512, 8, 1)},
    "backward": {32: (32, 256, 4, 2), 64: (32, 256, 8, 1), 128: (16, 512, 16, 1)},
}


class _Problem:
    """Arguments shared by the kernels of one pass."""

    def __init__(self, q: Tensor, v: Tensor, offsets: Tensor, direction: str) -> None:
        self.block_dim, self.block_value = (max(16, triton.next_power_of_2(x.shape[-1])) for x in (q, v))
        width = max(self.block_dim, self.block_value)
        ways = (_SINGLE if q.element_size() == 4 else _HALF)[direction]
        self.block, self.chunk, self.warps, self.stages = next(way for most, way in ways.items() if width <= most)
        # Float32 products use full precision unless TF32 is enabled in PyTorch. Half-precision inputs are exact in
        # TF32, which is precise enough for their sums. The matrices of the widest heads fit into shared memory only
        # once, not also in the layout of tensor cores.
        full = q.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
        precision = "ieee" if full or (direction == "backward" and width == 128) else "tf32"
        tokens, self.heads = q.shape[:2]
        windows = offsets.shape[0] - 1 if tokens else 0
        # At most two chunks start in a range of chunk size; with fewer tokens no window has several chunks.
        self.places = 2 * triton.cdiv(tokens, self.chunk) if windows and tokens > self.chunk else 0
        self.programs = (windows + self.places) * self.heads
        self.sums_size = self.block_dim * self.block_value + self.block_dim
        self.table = torch.empty(self.places, 4, dtype=torch.int64, device=q.device)
        self.shared = {
            "heads": self.heads,
            "DIM": q.shape[-1],
            "VALUE_DIM": v.shape[-1],
            "BLOCK_DIM": self.block_dim,
            "BLOCK_VALUE": self.block_value,
            "BLOCK_M": self.block,
            "PRECISION": precision,
        }
        self.search = {
            "offsets_ptr": offsets.contiguous(),
            "table_ptr": self.table,
            "tokens": tokens,
            "windows": windows,
            "places": self.places,
            "search_steps": max(1, windows.bit_length()),
            "CHUNK": self.chunk,
        }

    def sums(self, like: Tensor) -> Tensor:
        return like.new_empty(self.places, self.heads, self.sums_size, dtype=torch.float32)

    def launch(self, kernel: Any, programs: int, **arguments: Any) -> Launch:
        for name, x in list(arguments.items()):
            if name.endswith("_ptr") and name.removesuffix("_ptr") in ("q", "k", "v", "grad", "out", "dq", "dk", "dv"):
                arguments[name.replace("_ptr", "_strides")] = x.stride()
        return Launch(kernel, programs, {**self.shared, **arguments}, self.warps, self.stages)

    def chunk_launch(self, kernel: Any, **arguments: Any) -> Launch:
        return self.launch(kernel, self.places * self.heads, table_ptr=self.table, **arguments)

    def reduce(self, sums: Tensor) -> Launch:
        tiles = triton.cdiv(self.sums_size, TILE)
        arguments = {
            "sums_ptr": sums,
            "table_ptr": self.table,
            "heads": self.heads,
            "tiles": tiles,
            "SIZE": self.sums_size,
            "TILE": TILE,
            "BLOCK_CHUNKS": BLOCK_CHUNKS,
            "CHUNK": self.chunk,
        }
        return Launch(reduce_kernel, self.places * self.heads * tiles, arguments, 4, 2)


def forward_launches(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float) -> tuple[list[Launch], Tensor]:
    """The launches in order, and their output; arguments as in `reference.attend_reference`."""
    problem = _Problem(q, v, offsets, "forward")
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    sums = problem.sums(q)
    both = dict(q_ptr=q, out_ptr=out, sums_ptr=sums, eps=eps)
    launches = [
        problem.launch(window_kernel, problem.programs, k_ptr=k, v_ptr=v, **both, **problem.search),
        problem.reduce(sums),
        problem.chunk_launch(query_kernel, **both),
    ]
    return launches, out


def backward_launches(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, eps: float
) -> tuple[list[Launch], tuple[Tensor, Tensor, Tensor]]:
    """The launches in order, and the gradients of q, k and v that they compute."""
    problem = _Problem(q, v, offsets, "backward")
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    sums, d_sums = problem.sums(q), problem.sums(q)
    queries = dict(q_ptr=q, grad_ptr=grad_out, dq_ptr=dq, sums_ptr=sums, eps=eps)
    keys = dict(k_ptr=k, v_ptr=v, dk_ptr=dk, dv_ptr=dv)
    launches = [
        problem.launch(window_backward_kernel, problem.programs, **queries, **keys, **problem.search),
        problem.reduce(sums),
        problem.chunk_launch(query_backward_kernel, d_sums_ptr=d_sums, **queries),
        problem.reduce(d_sums),
        problem.chunk_launch(key_backward_kernel, d_sums_ptr=d_sums, **keys),
    ]
    return launches, (dq, dk, dv)


def forward(*arguments: Any) -> Tensor:
    """The output; arguments as in `forward_launches`."""
    launches, out = forward_launches(*arguments)
    for launch in launches:
        launch.run()
    return out


def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; arguments as in `backward_launches`."""
    launches, gradients = backward_launches(*arguments)
    for launch in launches:
        launch.run()
    return gradients
