"""Overlap and non-maximum suppression of rotated boxes and convex quadrilaterals, in plain PyTorch.

By Green's theorem, a polygon is the signed sum of the regions below its edges. The area common to two polygons is
therefore a sum over pairs of edges, and the terms of ``min(y_a, y_b) = (y_a + y_b - |y_a - y_b|) / 2`` other than the
last cancel because both polygons are closed:

    area = -1/2 * sum over edges a, b of sign(dx_a) * sign(dx_b) * integral of |y_a(x) - y_b(x)| dx

Each term is a continuous function of the vertices, so edges that coincide or nearly coincide need no tolerance, in
contrast to collecting the vertices of the intersection and sorting them by angle.

Boxes with NaN or infinite coordinates are invalid: they overlap nothing, and suppression drops them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "circles_meet",
    "greedy_nms",
    "overlap_matrix",
    "quadrilateral_area",
    "quadrilateral_intersection",
    "rotated_intersection",
    "valid_boxes",
]

PAIRS_AT_ONCE = 1 << 16
"""Number of pairs processed together: about 20 MB for each intermediate tensor in float32."""

NMS_BLOCK = 256
"""Number of boxes compared with one another at a time in `greedy_nms`."""


class _Edges(NamedTuple):
    """Directed edges ``[edges, ...]``; the edges are in the first dimension so that operations stay contiguous."""

    x: Tensor
    y: Tensor
    dx: Tensor
    dy: Tensor | None
    """None for horizontal edges."""

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "_Edges":
        """Edges of the closed polygons with vertices ``x, y [vertices, ...]``."""
        return cls(x, y, x.roll(-1, 0) - x, y.roll(-1, 0) - y)

    def height(self, x: Tensor) -> Tensor:
        """The y coordinate at ``x``, which is clamped to the range of the edge."""
        if self.dy is None:
            return self.y
        position = (x - self.x) / torch.where(self.dx == 0, 1, self.dx)
        return self.y + position.clamp(0, 1) * self.dy


def _signed_common_area(a: _Edges, b: _Edges) -> Tensor:
    """Area common to two polygons, ``[edges, ...]`` each to ``[...]``; positive if they have the same orientation."""
    a = _Edges(*(t.unsqueeze(1) for t in a))
    left = torch.maximum(torch.minimum(a.x, a.x + a.dx), torch.minimum(b.x, b.x + b.dx))
    right = torch.minimum(torch.maximum(a.x, a.x + a.dx), torch.maximum(b.x, b.x + b.dx))
    start, end = a.height(left) - b.height(left), a.height(right) - b.height(right)
    total = start.abs() + end.abs()
    # The mean of |y_a - y_b|. If the edges cross, it is that of two triangles instead of a trapezoid.
    mean = total / 2 - (-start * end).clamp(min=0) / total.clamp(min=torch.finfo(total.dtype).tiny)
    return -((right - left).clamp(min=0) * mean * (a.dx.sign() * b.dx.sign())).sum((0, 1)) / 2


def rotated_intersection(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Area common to the rotated boxes of each pair, differentiable.

    Args:
        boxes_a, boxes_b: ``[..., 5]``, (x, y, width, height, angle), with the angle in radians from the x axis towards
            the y axis, float32 or float64. Negative sizes count as 0. The leading dimensions broadcast.

    Returns:
        ``[...]``.
    """
    boxes_a, boxes_b = torch.broadcast_tensors(boxes_a, boxes_b)
    x_a, y_a, width_a, height_a, angle_a = boxes_a.unbind(-1)
    x_b, y_b, width_b, height_b, angle_b = boxes_b.unbind(-1)
    width_a, height_a, width_b, height_b = (size.clamp(min=0) / 2 for size in (width_a, height_a, width_b, height_b))
    # In the coordinate system of b, only its horizontal edges contribute.
    x, y, cos, sin = x_a - x_b, y_a - y_b, angle_b.cos(), angle_b.sin()
    x, y = x * cos + y * sin, y * cos - x * sin
    cos, sin = (angle_a - angle_b).cos(), (angle_a - angle_b).sin()
    along_x, along_y, across_x, across_y = width_a * cos, width_a * sin, -height_a * sin, height_a * cos
    edges_a = _Edges.of(
        torch.stack([x + along_x + across_x, x - along_x + across_x, x - along_x - across_x, x + along_x - across_x]),
        torch.stack([y + along_y + across_y, y - along_y + across_y, y - along_y - across_y, y + along_y - across_y]),
    )
    edges_b = torch.stack([-width_b, width_b]), torch.stack([-height_b, height_b]), torch.stack([width_b, -width_b]) * 2
    return _signed_common_area(edges_a, _Edges(*edges_b, None)).clamp(min=0)


def quadrilateral_area(quads: Tensor) -> Tensor:
    """Area of quadrilaterals, ``[..., 4, 2]`` to ``[...]``."""
    diagonal_a, diagonal_b = quads[..., 2, :] - quads[..., 0, :], quads[..., 3, :] - quads[..., 1, :]
    return (diagonal_a[..., 0] * diagonal_b[..., 1] - diagonal_a[..., 1] * diagonal_b[..., 0]).abs() / 2


def quadrilateral_intersection(quads_a: Tensor, quads_b: Tensor) -> Tensor:
    """Area common to the quadrilaterals of each pair.

    Args:
        quads_a, quads_b: ``[..., 4, 2]``, the vertices in order, in either orientation. The leading dimensions
            broadcast.

    Returns:
        ``[...]``.
    """
    quads_a, quads_b = torch.broadcast_tensors(quads_a, quads_b)
    centre = (quads_a.mean(-2, keepdim=True) + quads_b.mean(-2, keepdim=True)) / 2
    edges = [_Edges.of(*(quads - centre).movedim((-1, -2), (0, 1))) for quads in (quads_a, quads_b)]
    return _signed_common_area(*edges).abs()


def valid_boxes(boxes: Tensor, scores: Tensor | None = None) -> Tensor:
    """Which boxes ``[..., C]`` have finite coordinates and, with `scores` ``[...]``, a score that is not NaN.

    Returns:
        bool ``[...]``.
    """
    valid = boxes.isfinite().all(-1)
    return valid if scores is None else valid & ~scores.isnan()


def circles_meet(centres_a: Tensor, radii_a: Tensor, centres_b: Tensor, radii_b: Tensor) -> Tensor:
    """Which circles overlap: ``[..., N, 2]``, ``[..., N]``, ``[..., M, 2]`` and ``[..., M]`` to bool ``[..., N, M]``.

    A cheap test that most pairs of boxes fail.
    """
    x, y = (centres_a[..., :, None, i] - centres_b[..., None, :, i] for i in range(2))
    reach = radii_a[..., :, None] + radii_b[..., None, :]
    return x * x + y * y <= reach * reach


def overlap_matrix(
    boxes_a: Tensor, boxes_b: Tensor, near: Tensor, overlap: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Overlap of each box with each, computed only where boxes are near each other.

    Args:
        boxes_a: ``[..., N, C]``.
        boxes_b: ``[..., M, C]``, with the same leading dimensions.
        near: bool ``[..., N, M]``; the result is 0 where it is False, and for boxes that are not finite.
        overlap: maps the boxes of pairs, ``[P, C]`` each, to ``[P]``.

    Returns:
        ``[..., N, M]``.
    """
    near = near & valid_boxes(boxes_a)[..., :, None] & valid_boxes(boxes_b)[..., None, :]
    *batch, rows, columns = near.nonzero(as_tuple=True)
    parts = [slice(start, start + PAIRS_AT_ONCE) for start in range(0, len(rows), PAIRS_AT_ONCE)]
    values = [
        overlap(boxes_a[tuple(i[part] for i in (*batch, rows))], boxes_b[tuple(i[part] for i in (*batch, columns))])
        for part in parts
    ]
    dtype = torch.promote_types(boxes_a.dtype, boxes_b.dtype)
    result = torch.zeros(near.shape, dtype=dtype, device=boxes_a.device)
    return result.index_put((*batch, rows, columns), torch.cat(values).to(dtype)) if values else result


@torch.no_grad()
def greedy_nms(
    boxes: Tensor, scores: Tensor, suppresses: Callable[[Tensor, Tensor], Tensor], max_boxes: int | None = None
) -> Tensor:
    """Exact greedy non-maximum suppression, one block of boxes after the other in descending order of score.

    The box with the highest score is kept and suppresses others, then the best of the remaining ones, and so on.
    Equal scores are ordered by index. Later blocks are compared only with boxes that were kept.

    Args:
        boxes: ``[N, C]``; boxes that are not finite are dropped.
        scores: ``[N]``; boxes with a score of NaN are dropped.
        suppresses: maps the indices of boxes with higher scores, ``[K]``, and lower scores, ``[L]``, to bool
            ``[K, L]``: True where the first removes the second.
        max_boxes: number of boxes after which to stop.

    Returns:
        Indices of the kept boxes, int64 ``[K]``, in descending order of score.
    """
    remaining = scores.sort(descending=True, stable=True).indices
    remaining = remaining[valid_boxes(boxes, scores)[remaining]]
    limit = len(scores) if max_boxes is None else max_boxes
    kept: list[Tensor] = []
    total = 0
    while len(remaining) and total < limit:
        block, remaining = remaining[:NMS_BLOCK], remaining[NMS_BLOCK:]
        kept.append(block[_keep(suppresses(block, block))][: limit - total])
        total += len(kept[-1])
        if len(remaining):
            remaining = remaining[~suppresses(kept[-1], remaining).any(0)]
    return torch.cat(kept) if kept else scores.new_zeros(0, dtype=torch.long)


def _keep(suppresses: Tensor) -> Tensor:
    """Greedy selection among ordered boxes: bool ``[N, N]``, which suppresses which, to bool ``[N]``."""
    table = suppresses.cpu().numpy()
    keep = torch.ones(len(table), dtype=torch.bool)
    flags = keep.numpy()  # shares the memory
    for index in range(len(flags)):
        if flags[index]:
            flags[index + 1 :] &= ~table[index, index + 1 :]
    return keep.to(suppresses.device)
