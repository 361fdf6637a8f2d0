"""Launches of the kernels that loop over images."""

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from visionattn.kernels.neighborhood.triton.image_backward import image_key_kernel, image_query_kernel
from visionattn.kernels.neighborhood.triton.image_forward import image_forward_kernel
from visionattn.kernels.neighborhood.triton.image_tiles import ImageTile
from visionattn.kernels.neighborhood.triton.problem import Choose, Problem, launch, numbered, span
from visionattn.kernels.neighborhood.triton.tiles import PARTIAL_BYTES
from visionattn.kernels.triton_launch import Launch

__all__ = ["backward", "forward"]

# Programs take several images, because they compute offsets and masks only once, but few enough that there are this
# many warps per processor, several times the number that runs at once.
WARPS_PER_PROCESSOR = 24
MOST_IMAGES = 16  # per program; more would save little


def _arguments(problem: Problem, tile: ImageTile, tensors: dict[str, Tensor]) -> tuple[dict[str, Any], int, int]:
    """Arguments shared by the kernels, the programs per split of the images, and the number of splits."""
    g, has_rpb = problem.geometry, problem.rpb is not None
    counts = problem.counts(tile)
    items = problem.q.shape[0] * (1 if has_rpb else problem.heads)
    programs = prod(counts) * (problem.heads if has_rpb else 1)
    wanted = max(WARPS_PER_PROCESSOR * problem.processors // tile.warps, 1)
    share = max(1, min(MOST_IMAGES, items * programs // wanted))
    splits = max(-(-items // share), 1)
    share = max(-(-items // splits), 1)  # as even as possible
    arguments = problem.common() | dict(
        height=g.lengths[0], width=g.lengths[1], items=items, **numbered("dilation", g.dilation[:2]),
        **numbered("tiles", counts[:2]), rpb_ptr=problem.rpb, KERNEL=g.kernel[:2], TILE=tile.shape[:2],
        WIDTH=tile.halo[1], STEPS=tile.steps, GROUP=tile.group, BLOCK=tile.block, HAS_RPB=has_rpb,
        BLOCK_TABLE=1 << (2 * g.kernel[1] - 2).bit_length(), SAME_STRIDES=problem.k.stride() == problem.v.stride(),
    )  # fmt: skip
    wide = any(span(x) >= 2**30 for x in tensors.values())
    arguments |= {f"{name}_ptr": x for name, x in tensors.items()} | dict(WIDE=wide)
    arguments |= {f"{name}_strides": x.stride() for name, x in tensors.items() if x.dim() == 5}
    return arguments | dict(share=share), programs, -(-items // share)


def forward(problem: Problem, tile: ImageTile, out: Tensor, lse: Tensor) -> Launch:
    """The launch that computes the output and the log-sum-exp."""
    tensors = dict(q=problem.q, k=problem.k, v=problem.v, out=out, lse=lse)
    arguments, programs, splits = _arguments(problem, tile, tensors)
    return launch(image_forward_kernel, programs * splits, arguments, tile)


def backward(
    problem: Problem, given: dict[str, Tensor | None], grads: dict[str, Tensor], choose: Choose
) -> tuple[dict[str, Tensor], list[Launch]]:
    """Partial gradients of the table, if any, and the launches in order.

    Args:
        given: arguments of the kernels that are tensors of the forward pass or gradients of its results.
        grads: the tensors for the gradients of q, k and v.
    """
    q = problem.q
    terms = q.new_empty(q.shape[0], problem.heads, *q.shape[1:3], 2, dtype=torch.float32)
    tensors = dict(q=q, k=problem.k, v=problem.v, grad_out=given["grad_out_ptr"], terms=terms)
    tensors |= {f"grad_{name}": x for name, x in grads.items()}

    def build(kernel: Any, tile: ImageTile) -> tuple[Tensor | None, Launch]:
        arguments, programs, splits = _arguments(problem, tile, tensors)
        arguments |= given | dict(HAS_GRAD_LSE=given["grad_lse_ptr"] is not None, partial_ptr=None)
        sums = None
        if kernel is image_query_kernel and problem.rpb is not None:
            # One table for each row of the tile of each program; fewer programs, if they would be too many.
            rows, row_bytes = programs // problem.heads * tile.shape[0], 4 * problem.heads * problem.table
            splits = max(1, min(splits, PARTIAL_BYTES // (rows * row_bytes)))
            arguments["share"] = -(-arguments["items"] // splits) or 1
            splits = -(-arguments["items"] // arguments["share"])
            sums = q.new_zeros(rows * splits, problem.heads, problem.table, dtype=torch.float32)
            arguments["partial_ptr"] = sums
        return sums, launch(kernel, programs * splits, arguments, tile)

    query, key = partial(build, image_query_kernel), partial(build, image_key_kernel)
    sums, first = query(choose("image query", problem.tiles("query"), lambda tile: query(tile)[1]))
    _, second = key(choose("image key", problem.tiles("key"), lambda tile: key(tile)[1]))
    return {} if sums is None else {"rpb": sums}, [first, second]
