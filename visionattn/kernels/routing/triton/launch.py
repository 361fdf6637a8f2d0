"""Launches of the Triton kernels: block sizes, arguments, the inverted index. Nothing here needs a GPU.

A `Launch` can be run, or compiled ahead of time for a GPU that is not present (`triton_aot`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from visionattn.kernels.routing.regions import region_size
from visionattn.kernels.routing.triton.backward import key_kernel, query_kernel
from visionattn.kernels.routing.triton.forward import forward_kernel

__all__ = ["Launch", "backward", "backward_launches", "forward", "forward_launch", "inverted_index"]


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


# Queries and keys per block, warps and stages, by kernel and padded head dimension: the largest that compile without
# spilling registers for compute capability 8.0, 9.0, 10.0 and 12.0. Float32 products need more registers.
_HALF = {
    "forward": {64: (64, 64, 4, 3), 128: (64, 32, 4, 2), 256: (32, 32, 4, 2)},
    "query": {64: (64, 64, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 4, 1)},
    "key": {16: (64, 64, 4, 2), 64: (32, 64, 4, 2), 128: (32, 32, 4, 1), 256: (32, 32, 8, 1)},
}
_SINGLE = {
    "forward": {32: (64, 32, 4, 2), 64: (32, 32, 4, 2), 256: (16, 16, 4, 1)},
    "query": {64: (32, 32, 4, 1), 128: (32, 16, 4, 1), 256: (16, 16, 4, 1)},
    "key": {64: (32, 32, 4, 1), 128: (16, 16, 4, 1), 256: (16, 16, 8, 1)},
}


def _blocks(kernel: str, width: int, itemsize: int) -> tuple[int, int, int, int]:
    table = (_SINGLE if itemsize == 4 else _HALF)[kernel]
    return next(blocks for widest, blocks in table.items() if width <= widest)


def _fit(block: int, tokens: int) -> int:
    """Limit a block to the number of tokens, but at least 16, the minimum of matrix products."""
    return min(block, max(16, triton.next_power_of_2(tokens)))


@dataclass
class _Problem:
    """Arguments shared by all kernels."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_regions: Tensor
    padding_mask: Tensor | None
    regions: tuple[int, int]
    scale: float

    def launch(self, name: str, kernel: Any, arguments: dict[str, Any]) -> Launch:
        q, k, v = self.q, self.k, self.v
        query_size = region_size(*q.shape[1:3], self.regions)
        key_size = region_size(*k.shape[1:3], self.regions)
        block_dim, block_value = (max(16, triton.next_power_of_2(x.shape[-1])) for x in (q, v))
        m, n, warps, stages = _blocks(name, max(block_dim, block_value), q.element_size())
        queries, keys = query_size[0] * query_size[1], key_size[0] * key_size[1]
        topk = self.key_regions.shape[-1]
        if name == "key":
            n = _fit(n, keys)
            blocks = -(-keys // n)
        else:
            m, n = _fit(m, queries), _fit(n, topk * keys)
            blocks = -(-queries // m)
        mask = self.padding_mask
        batch, heads = q.shape[0], q.shape[-2]
        return Launch(
            kernel,
            batch * heads * self.regions[0] * self.regions[1] * blocks,
            {
                "q_ptr": q,
                "k_ptr": k,
                "v_ptr": v,
                **arguments,
                "padding_ptr": q if mask is None else mask.view(torch.uint8),
                "q_strides": q.stride(),
                "k_strides": k.stride(),
                "v_strides": v.stride(),
                "padding_stride": 0 if mask is None or mask.shape[0] == 1 else mask.stride(0),
                "query_map": tuple(q.shape[1:3]),
                "key_map": tuple(k.shape[1:3]),
                "query_size": query_size,
                "key_size": key_size,
                "regions": self.regions,
                "heads": heads,
                "topk": topk,
                "blocks": blocks,
                "scale": self.scale,
                "DIM": q.shape[-1],
                "VALUE_DIM": v.shape[-1],
                "BLOCK_DIM": block_dim,
                "BLOCK_VALUE": block_value,
                "BLOCK_M": m,
                "BLOCK_N": n,
                "HAS_PADDING": mask is not None,
                # Float32 products use full precision unless TF32 is enabled in PyTorch.
                "PRECISION": "tf32" if torch.get_float32_matmul_precision() != "highest" else "ieee",
            },
            warps,
            stages,
        )


def _problem(q, k, v, key_regions, padding_mask, regions, scale) -> _Problem:
    mask = None if padding_mask is None else padding_mask.contiguous()
    return _Problem(q, k, v, key_regions.contiguous(), mask, tuple(regions), scale)


def forward_launch(
    q: Tensor, k: Tensor, v: Tensor, key_regions: Tensor, padding_mask: Tensor | None, regions, scale: float
) -> tuple[Launch, Tensor, Tensor]:
    """The launch, and its output and log-sum-exp (base 2); arguments as in `reference.attend_reference`."""
    problem = _problem(q, k, v, key_regions, padding_mask, regions, scale)
    out = q.new_empty(*q.shape[:-1], v.shape[-1])
    lse = q.new_empty(q.shape[0], q.shape[3], q.shape[1], q.shape[2], dtype=torch.float32)
    arguments = {
        "key_regions_ptr": problem.key_regions, "out_ptr": out, "lse_ptr": lse, "out_strides": out.stride()
    }  # fmt: skip
    return problem.launch("forward", forward_kernel, arguments), out, lse


def inverted_index(key_regions: Tensor) -> tuple[Tensor, Tensor]:
    """The query regions that selected each key region.

    Args:
        key_regions: ``[B, regions, topk]``.

    Returns:
        Query regions sorted by the key region they selected, then by their own index, int32 ``[B, regions * topk]``;
        and the offsets of the entries of each key region, int64 ``[B, regions + 1]``.
    """
    regions, topk = key_regions.shape[1:]
    selected, order = key_regions.flatten(1).sort(dim=1, stable=True)
    bounds = torch.arange(regions + 1, device=key_regions.device).expand(key_regions.shape[0], -1).contiguous()
    return (order // topk).to(torch.int32), torch.searchsorted(selected, bounds)


def backward_launches(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_regions: Tensor,
    padding_mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    regions,
    scale: float,
) -> tuple[tuple[Launch, Launch], tuple[Tensor, Tensor, Tensor]]:
    """Both launches, and the gradients of q, k and v that they compute."""
    problem = _problem(q, k, v, key_regions, padding_mask, regions, scale)
    delta = (grad_out.float() * out.float()).sum(-1).permute(0, 3, 1, 2).contiguous()
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    shared = {"grad_ptr": grad_out, "grad_strides": grad_out.stride(), "lse_ptr": lse, "delta_ptr": delta}
    selecting, offsets = inverted_index(problem.key_regions)
    by_query = problem.launch(
        "query",
        query_kernel,
        {**shared, "key_regions_ptr": problem.key_regions, "dq_ptr": dq, "dq_strides": dq.stride()},
    )
    by_key = problem.launch(
        "key",
        key_kernel,
        {
            **shared,
            "selecting_ptr": selecting,
            "offsets_ptr": offsets,
            "dk_ptr": dk,
            "dv_ptr": dv,
            "dk_strides": dk.stride(),
            "dv_strides": dv.stride(),
        },
    )
    return (by_query, by_key), (dq, dk, dv)


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; arguments as in `forward_launch`."""
    launch, out, lse = forward_launch(*arguments)
    launch.run()
    return out, lse


def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; arguments as in `backward_launches`."""
    launches, gradients = backward_launches(*arguments)
    for launch in launches:
        launch.run()
    return gradients
