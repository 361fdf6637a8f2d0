"""Launches of the Triton kernels: block sizes, arguments, and plans that repeated calls share.

Launches depend on the layouts of the tensors only, so that they can be compiled ahead of time for a GPU that is not
present (`triton_aot`).
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
import triton
from torch import Tensor

from visionattn.kernels.precision import float32_precision
from visionattn.kernels.routing.regions import region_size
from visionattn.kernels.routing.triton.backward import index_kernel, key_kernel, query_kernel
from visionattn.kernels.routing.triton.common import LOG2E, SHIFT
from visionattn.kernels.routing.triton.forward import forward_kernel
from visionattn.kernels.routing.triton.means import means_kernel
from visionattn.kernels.triton_launch import Launch, Layout, Pointer, Prepared, layout, plan_cache

__all__ = ["Problem", "backward", "backward_plan", "forward", "forward_plan", "means", "means_plan", "reciprocal"]

# Queries and keys per block, warps and stages, by kernel and padded head dimension: the largest that compile without
# spilling registers for compute capability 8.0, 8.9, 9.0, 10.0 and 12.0. Float32 products need more registers.
_HALF = {
    "forward": {64: (64, 64, 4, 3), 128: (64, 32, 4, 2), 256: (32, 32, 4, 2)},
    "query": {32: (64, 64, 4, 2), 128: (64, 32, 4, 2), 256: (32, 32, 4, 1)},
    "key": {16: (64, 64, 4, 2), 64: (32, 64, 4, 2), 128: (32, 32, 4, 1), 256: (32, 32, 8, 1)},
}
_SINGLE = {
    "forward": {32: (64, 32, 4, 2), 64: (32, 32, 4, 2), 256: (16, 16, 4, 1)},
    "query": {32: (32, 32, 4, 1), 128: (32, 16, 4, 1), 256: (16, 16, 4, 1)},
    "key": {64: (32, 32, 4, 1), 128: (16, 16, 4, 1), 256: (16, 16, 8, 1)},
}
POINTERS = {
    "key_regions_ptr": Pointer(torch.int64),
    "lse_ptr": Pointer(torch.float32),
    "delta_ptr": Pointer(torch.float32),
    "selecting_ptr": Pointer(torch.int32),
    "counts_ptr": Pointer(torch.int32),
}
WHOLE_REGIONS = 64  # bits of a word
WHOLE_COST = 1.5  # pairs of query and key that a whole map may have, relative to those of regions in blocks
MAX_GRID_Y = 65535


def _blocks(kernel: str, width: int, itemsize: int) -> tuple[int, int, int, int]:
    table = (_SINGLE if itemsize == 4 else _HALF)[kernel]
    return next(blocks for widest, blocks in table.items() if width <= widest)


def _fit(block: int, tokens: int) -> int:
    """Limit a block to the number of tokens, but at least 16, the minimum of matrix products."""
    return min(block, max(16, triton.next_power_of_2(tokens)))


def reciprocal(divisor: int, most: int) -> int:
    """The factor of `common.divide` for a divisor and dividends below ``most``.

    Raises:
        ValueError: the quotients would not be exact.
    """
    shift = SHIFT.value
    factor = -(-(1 << shift) // divisor)
    if most * (factor * divisor - (1 << shift)) >= 1 << shift or most * factor >= 1 << 63:
        raise ValueError(f"the regions are too large for the Triton backend, got {divisor} tokens in {most}")
    return factor


@dataclass(frozen=True)
class Problem:
    """Layouts of ``[batch, tokens, heads, dim]`` tensors, and the geometry of the maps."""

    q: Layout
    k: Layout
    v: Layout
    padding: Layout | None
    query_map: tuple[int, int]
    key_map: tuple[int, int]
    regions: tuple[int, int]
    topk: int
    scale: float
    precision: str

    @cached_property
    def count(self) -> int:
        return self.regions[0] * self.regions[1]

    @cached_property
    def widths(self) -> tuple[int, int]:
        """Head dimensions of keys and values, padded."""
        return tuple(max(16, triton.next_power_of_2(x[0][-1])) for x in (self.q, self.v))

    @property
    def has_delta(self) -> bool:
        """Whether the sums of outputs times gradients are computed before the kernel over queries.

        For wide heads in float32, the kernel would spill registers otherwise.
        """
        return self.q[2].itemsize == 4 and max(self.widths) > 64

    def is_whole(self, queries: int, keys: int, block_m: int, block_n: int) -> bool:
        """Whether to process the map as a whole, from the numbers of tokens of a region and the largest blocks."""

        def padded(tokens: int, block: int) -> int:
            return -(-tokens // block) * block

        m, n = _fit(block_m, self.count * queries), _fit(block_n, self.count * keys)
        whole = padded(self.count * queries, m) * padded(self.count * keys, n)
        m, n = _fit(block_m, queries), _fit(block_n, self.topk * keys)
        routed = self.count * padded(queries, m) * padded(self.topk * keys, n)
        return self.count <= WHOLE_REGIONS and whole <= WHOLE_COST * routed

    def launch(self, name: str, kernel: Any, maps: dict[str, Layout]) -> Launch:
        """A launch with pointers, for the layouts of the maps beyond those of the problem."""
        batch, _, heads, dim = self.q[0]
        m, n, warps, stages = _blocks(name, max(self.widths), self.q[2].itemsize)
        sizes = [region_size(*shape, self.regions) for shape in (self.query_map, self.key_map)]
        queries, keys = (y * x for y, x in sizes)
        whole = self.is_whole(queries, keys, m, n)
        own, m_tokens, n_tokens = (keys, queries, keys) if name == "key" else (queries, queries, self.topk * keys)
        if whole:
            own, m_tokens, n_tokens = own * self.count, queries * self.count, keys * self.count
            n = min(n, 32 * keys)  # the regions of a block of keys are bits of one word
        most = n if name == "key" else m
        # The kernel over keys visits the queries of several regions, whose number is not known here.
        m, n = _fit(m, self.count * queries if name == "key" else m_tokens), _fit(n, n_tokens)
        if self.q[2].itemsize == 2:  # rows of 16 per warp are enough
            warps = max(1, warps * (n if name == "key" else m) // most)
        divides = [
            shape == (self.regions[0] * y, self.regions[1] * x)
            for shape, (y, x) in zip((self.query_map, self.key_map), sizes, strict=True)
        ]
        maps = {"q": self.q, "k": self.k, "v": self.v, **maps}
        arguments = {
            **{f"{name}_ptr": Pointer(x[2]) for name, x in maps.items()},
            **{f"{name}_strides": x[1] for name, x in maps.items()},
            **POINTERS,
            "padding_ptr": Pointer(self.q[2] if self.padding is None else torch.uint8),
            "padding_image": 0 if self.padding is None or self.padding[0][0] == 1 else self.padding[1][0],
            "topk": self.topk,
            "scale": self.scale * LOG2E.value,
            "HEADS": heads,
            "COLUMNS": self.regions[1],
            "COUNT": self.count,
            "DIM": dim,
            "VALUE_DIM": self.v[0][-1],
            "BLOCK_DIM": self.widths[0],
            "BLOCK_VALUE": self.widths[1],
            "BLOCK_M": m,
            "BLOCK_N": n,
            "WHOLE": whole,
            "ALIGNED": n % keys == 0,
            # With other numbers of regions, queries of the kernel over keys fill blocks only if those of a region do.
            "EXACT_Q": divides[0] and m_tokens % m == 0,
            "EXACT_K": divides[1] and n_tokens % n == 0 and self.padding is None,
            # Bits of regions also mask the keys past the last region.
            "MASKED_K": not divides[1] or self.padding is not None or not (whole or n_tokens % n == 0),
            "SINGLE": n_tokens <= n,
            "HAS_PADDING": self.padding is not None,
            "LATE_SCALE": self.scale > 1e-6,
            "HAS_DELTA": self.has_delta,
            "PRECISION": self.precision,
        }
        for prefix, shape, (y, x) in zip(("query", "key"), (self.query_map, self.key_map), sizes, strict=True):
            arguments |= {
                f"{prefix}_height": shape[0],
                f"{prefix}_width": shape[1],
                f"{prefix}_size_y": y,
                f"{prefix}_size_x": x,
                f"{prefix}_tokens": y * x,
                f"{prefix}_by_x": reciprocal(x, y * x + 256),  # blocks extend past the tokens
                f"{prefix}_by_tokens": reciprocal(y * x, y * x * self.count + 256),
            }
        blocks = -(-own // (n if name == "key" else m))
        if blocks > MAX_GRID_Y:
            raise ValueError(f"the regions are too large for the Triton backend, got {own} tokens")
        grid = (batch * heads * (1 if whole else self.count), blocks)
        return Launch(kernel, grid, {name: arguments[name] for name in kernel.arg_names}, warps, stages)


def _dense(shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
    """The layout of a new tensor."""
    strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    return shape, strides, dtype, True


def forward_launches(problem: Problem) -> list[Launch]:
    """The launch of the forward pass."""
    out = _dense((*problem.q[0][:-1], problem.v[0][-1]), problem.q[2])
    return [problem.launch("forward", forward_kernel, {"out": out})]


def backward_launches(problem: Problem, grad: Layout, out: Layout) -> list[Launch]:
    """The launches of the backward pass in order."""
    batch, count = problem.q[0][0], problem.count
    dq, dk, dv = (_dense(x[0], x[2]) for x in (problem.q, problem.k, problem.v))
    by_query = problem.launch("query", query_kernel, dict(grad=grad, out=out, dq=dq))
    by_key = problem.launch("key", key_kernel, dict(grad=grad, dk=dk, dv=dv))
    if by_key.arguments["WHOLE"]:
        return [by_query, by_key]
    block = min(1024, triton.next_power_of_2(count * problem.topk))
    arguments = {name: POINTERS[name] for name in ("key_regions_ptr", "selecting_ptr", "counts_ptr")}
    arguments |= dict(topk=problem.topk, COUNT=count, BLOCK=block)
    return [Launch(index_kernel, (batch * count,), arguments, 4, 1), by_query, by_key]


@plan_cache
def forward_plan(problem: Problem) -> list[Prepared]:
    return [Prepared(launch) for launch in forward_launches(problem)]


@plan_cache
def backward_plan(problem: Problem, grad: Layout, out: Layout) -> list[Prepared]:
    return [Prepared(launch) for launch in backward_launches(problem, grad, out)]


def _problem(q, k, v, key_regions, padding_mask, regions, scale) -> tuple[Problem, dict[str, Tensor]]:
    """The problem, and its tensors by the names of the kernels' arguments.

    Tensors whose height and width cannot be flattened without a copy, such as crops, are copied.
    """
    query_map, key_map = tuple(q.shape[1:3]), tuple(k.shape[1:3])
    q, k, v = (x.flatten(1, 2) for x in (q, k, v))
    padding = None if padding_mask is None else padding_mask.contiguous().view(torch.uint8)
    problem = Problem(
        layout(q), layout(k), layout(v), None if padding is None else layout(padding), query_map, key_map,
        tuple(regions), key_regions.shape[-1], scale, float32_precision(),
    )  # fmt: skip
    tensors = dict(
        q_ptr=q, k_ptr=k, v_ptr=v, key_regions_ptr=key_regions.contiguous(),
        padding_ptr=q if padding is None else padding,
    )  # fmt: skip
    return problem, tensors


def forward(
    q: Tensor, k: Tensor, v: Tensor, key_regions: Tensor, padding_mask: Tensor | None, regions, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp (base 2); arguments as in `reference.attend_reference`."""
    problem, tensors = _problem(q, k, v, key_regions, padding_mask, regions, scale)
    batch, height, width, heads, _ = q.shape
    out = torch.empty((batch, height, width, heads, v.shape[-1]), dtype=q.dtype, device=q.device)
    lse = torch.empty((batch, heads, height, width), dtype=torch.float32, device=q.device)
    tensors |= dict(out_ptr=out, lse_ptr=lse)
    for launch in forward_plan(problem):
        launch(tensors)
    return out, lse


def backward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    problem, tensors = _problem(q, k, v, key_regions, padding_mask, regions, scale)
    delta = torch.empty_like(lse)
    if problem.has_delta:
        torch.sum(grad_out * out, -1, out=delta.permute(0, 2, 3, 1))
    grad_out, out = grad_out.flatten(1, 2), out.flatten(1, 2)
    batch, count = q.shape[0], problem.count
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    tensors |= dict(
        grad_ptr=grad_out, out_ptr=out, lse_ptr=lse, delta_ptr=delta, dq_ptr=dq, dk_ptr=dk, dv_ptr=dv,
        selecting_ptr=torch.empty((batch, count, count), dtype=torch.int32, device=q.device),
        counts_ptr=torch.empty((batch, count), dtype=torch.int32, device=q.device),
    )  # fmt: skip
    for launch in backward_plan(problem, layout(grad_out), layout(out)):
        launch(tensors)
    return dq, dk, dv


def means_launch(
    q: Layout, k: Layout, padding: Layout | None, shape: tuple[int, int], regions: tuple[int, int]
) -> Launch:
    """The launch of `means`; layouts of ``[batch, tokens, channels]``."""
    size_y, size_x = region_size(*shape, regions)
    batch, _, channels = q[0]
    count = regions[0] * regions[1]
    result = Pointer(torch.float32)
    wide = min(128, max(16, triton.next_power_of_2(channels)))
    arguments = dict(
        q_ptr=Pointer(q[2]), k_ptr=Pointer(k[2]), padding_ptr=Pointer(q[2] if padding is None else padding[2]),
        q_means_ptr=result, k_means_ptr=result, counts_ptr=POINTERS["counts_ptr"],
        q_strides=q[1], k_strides=k[1],
        padding_image=0 if padding is None or padding[0][0] == 1 else padding[1][0],
        height=shape[0], width=shape[1], size_y=size_y, size_x=size_x, tokens=size_y * size_x,
        by_x=reciprocal(size_x, size_y * size_x + 256), CHANNELS=channels, COLUMNS=regions[1], COUNT=count,
        BLOCK=min(1024 // wide, triton.next_power_of_2(size_y * size_x)), BLOCK_CHANNELS=wide,
        HAS_PADDING=padding is not None,
    )  # fmt: skip
    return Launch(means_kernel, (batch * count, -(-channels // wide)), arguments, 1, 2)


@plan_cache
def means_plan(*arguments: Any) -> Prepared:
    return Prepared(means_launch(*arguments))


def means(q: Tensor, k: Tensor, padding_mask: Tensor | None, regions) -> tuple[Tensor, Tensor, Tensor]:
    """Means of queries and keys of each region without padding, and their number of tokens.

    Returns:
        Two float32 ``[batch, regions, heads * head_dim]``, zero for regions without tokens, and int32
        ``[batch, regions]``.
    """
    shape, count = tuple(q.shape[1:3]), regions[0] * regions[1]
    q, k = (x.flatten(1, 2).flatten(2) for x in (q, k))
    padding = None if padding_mask is None else padding_mask.contiguous().view(torch.uint8)
    q_means = torch.empty((q.shape[0], count, q.shape[2]), dtype=torch.float32, device=q.device)
    k_means = torch.empty_like(q_means)
    counts = torch.empty((q.shape[0], count), dtype=torch.int32, device=q.device)
    tensors = dict(
        q_ptr=q, k_ptr=k, padding_ptr=q if padding is None else padding, q_means_ptr=q_means, k_means_ptr=k_means,
        counts_ptr=counts,
    )  # fmt: skip
    launch = means_plan(layout(q), layout(k), None if padding is None else layout(padding), shape, tuple(regions))
    launch(tensors)
    return q_means, k_means, counts
