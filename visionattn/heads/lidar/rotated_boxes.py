"""Boxes that stand on the ground and are turned about the vertical: corners, overlaps, suppression, membership.

A box is ``(x, y, z, dx, dy, dz, heading, ...)`` in metres and radians: the centre, the full size along its own axes,
and the counter-clockwise angle from +x to its own x axis. Columns after the seventh are ignored. Everything runs on
CPU and CUDA in plain PyTorch, in float32 at least.
"""

import torch
from torch import Tensor

__all__ = [
    "bev_corners",
    "bev_iou",
    "bev_iou_paired",
    "box_corners",
    "iou_3d",
    "iou_3d_paired",
    "points_in_boxes",
    "rotated_nms",
]

PAIRS_AT_ONCE = 1 << 17
"""Pairs whose overlap is computed together: some tens of MB of intermediate values."""

NMS_BLOCK = 256
"""Boxes that are compared with one another at once in `rotated_nms`."""


def bev_corners(boxes: Tensor) -> Tensor:
    """Corners seen from above, counter-clockwise from front left: ``[..., 7]`` to ``[..., 4, 2]``."""
    boxes = _checked(boxes, "boxes")
    signs = boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    x, y = (signs * boxes[..., None, 3:5] / 2).unbind(-1)
    cos, sin = boxes[..., 6:7].cos(), boxes[..., 6:7].sin()
    return torch.stack([x * cos - y * sin, x * sin + y * cos], -1) + boxes[..., None, :2]


def box_corners(boxes: Tensor) -> Tensor:
    """Corners in space, ``[..., 7]`` to ``[..., 8, 3]``: those of `bev_corners` at the bottom, then at the top."""
    boxes = _checked(boxes, "boxes")
    flat = bev_corners(boxes)
    middle, half = boxes[..., 2, None, None], boxes[..., 5, None, None] / 2
    return torch.cat([torch.cat([flat, (middle + s * half).expand_as(flat[..., :1])], -1) for s in (-1, 1)], -2)


def bev_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union seen from above, of each box with each.

    Args:
        boxes_a: ``[..., N, 7]``.
        boxes_b: ``[..., M, 7]``; leading dimensions broadcast.

    Returns:
        ``[..., N, M]``. A box without area overlaps nothing.

    Raises:
        ValueError: fewer than seven columns.
    """
    return _pairwise(boxes_a, boxes_b, bev_iou_paired)


def iou_3d(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union of volumes, of each box with each; shapes as `bev_iou`."""
    return _pairwise(boxes_a, boxes_b, iou_3d_paired)


def bev_iou_paired(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union seen from above, of a box with its partner: ``[..., 7]`` twice to ``[...]``."""
    boxes_a, boxes_b = _checked(boxes_a, "boxes_a"), _checked(boxes_b, "boxes_b")
    common = _bev_intersection(boxes_a, boxes_b)
    area_a, area_b = (b[..., 3:5].clamp(min=0).prod(-1) for b in (boxes_a, boxes_b))
    return _ratio(common, area_a, area_b)


def iou_3d_paired(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Intersection over union of volumes, of a box with its partner: ``[..., 7]`` twice to ``[...]``."""
    boxes_a, boxes_b = _checked(boxes_a, "boxes_a"), _checked(boxes_b, "boxes_b")
    rise = boxes_a[..., 2] - boxes_b[..., 2]
    half_a, half_b = boxes_a[..., 5].clamp(min=0) / 2, boxes_b[..., 5].clamp(min=0) / 2
    overlap = torch.minimum(rise + half_a, half_b) - torch.maximum(rise - half_a, -half_b)
    common = _bev_intersection(boxes_a, boxes_b) * overlap.clamp(min=0)
    volume_a, volume_b = (b[..., 3:6].clamp(min=0).prod(-1) for b in (boxes_a, boxes_b))
    return _ratio(common, volume_a, volume_b)


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points lie in which box, faces included.

    Args:
        points: ``[N, 3 or more]``: x, y, z and columns that are ignored.
        boxes: ``[M, 7]``.

    Returns:
        bool ``[M, N]``.

    Raises:
        ValueError: fewer columns than that.
    """
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"points has shape {tuple(points.shape)}; it must be [N, 3 or more]")
    boxes = _checked(boxes, "boxes")
    inside = torch.zeros(len(boxes), len(points), dtype=torch.bool, device=points.device)
    xyz = points[:, :3].to(torch.promote_types(points.dtype, boxes.dtype)).T.contiguous()
    step = max(1, 4 * PAIRS_AT_ONCE // max(len(points), 1))
    for start in range(0, len(boxes), step):
        part = boxes[start : start + step, :, None]
        x, y, z = (xyz[i] - part[:, i] for i in range(3))
        cos, sin = part[:, 6].cos(), part[:, 6].sin()
        result = (x * cos + y * sin).abs() <= part[:, 3] / 2
        result &= (y * cos - x * sin).abs() <= part[:, 4] / 2
        result &= z.abs() <= part[:, 5] / 2
        inside[start : start + step] = result
    return inside


@torch.no_grad()
def rotated_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float | Tensor,
    labels: Tensor | None = None,
    max_boxes: int | None = None,
) -> Tensor:
    """Greedy non-maximum suppression by overlap seen from above.

    The best box stays and removes all that overlap it by more than the threshold, then the best of what is left, and
    so on. Equal scores go by index. Exact: blocks of boxes are settled one after another, best first, and only boxes
    still alive are compared.

    Args:
        boxes: ``[N, 7]``.
        scores: ``[N]``.
        iou_threshold: one for all boxes, or a tensor ``[classes]`` with one for each class of ``labels``.
        labels: int64 ``[N]``; boxes of different classes leave each other alone. None: all are of one class.
        max_boxes: end with this many.

    Returns:
        Indices of the boxes that stay, int64 ``[K]``, best first.

    Raises:
        ValueError: shapes that do not fit, or thresholds for each class without labels.
    """
    boxes = _checked(boxes, "boxes").detach()
    if boxes.ndim != 2 or scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; boxes {tuple(boxes.shape)} must be [N, 7] and [N]")
    if labels is not None and labels.shape != scores.shape:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; it must be that of scores, {tuple(scores.shape)}")
    threshold = torch.as_tensor(iou_threshold, dtype=boxes.dtype, device=boxes.device)
    if threshold.ndim and labels is None:
        raise ValueError("iou_threshold has one value for each class; labels must be given too")
    alive = scores.sort(descending=True, stable=True).indices
    kept, total = [], 0
    limit = len(boxes) if max_boxes is None else max_boxes
    while len(alive) and total < limit:
        block, alive = alive[:NMS_BLOCK], alive[NMS_BLOCK:]
        stays = block[_settle(_suppresses(boxes, block, block, threshold, labels))]
        kept.append(stays[: limit - total])
        total += len(kept[-1])
        if len(alive):
            alive = alive[~_suppresses(boxes, stays, alive, threshold, labels).any(0)]
    return torch.cat(kept) if kept else scores.new_zeros(0, dtype=torch.long)


def _checked(boxes: Tensor, name: str) -> Tensor:
    if boxes.ndim < 1 or boxes.shape[-1] < 7:
        raise ValueError(f"{name} has shape {tuple(boxes.shape)}; it must be [..., 7 or more]")
    boxes = boxes[..., :7]
    return boxes if boxes.dtype in (torch.float32, torch.float64) else boxes.float()


def _ratio(common: Tensor, size_a: Tensor, size_b: Tensor) -> Tensor:
    union = size_a + size_b - common
    return torch.where(union > 0, common / union.clamp(min=torch.finfo(union.dtype).tiny), 0.0).clamp(max=1)


def _bev_intersection(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Area common to a box and its partner, ``[..., 7]`` twice to ``[...]``.

    In the frame of b, b is the window |x| <= w, |y| <= h. Going once around a, the signed area between the walls of
    the window, the floor and the edge with its height clamped to the window is what each edge adds. That is a
    continuous function of the corners, edge by edge, so edges that nearly coincide need no tie to be broken, which
    is where clipping by points and sorting fails in float32.
    """
    boxes_a, boxes_b = torch.broadcast_tensors(boxes_a, boxes_b)
    x, y = (boxes_a[..., :2] - boxes_b[..., :2]).unbind(-1)
    cos, sin = boxes_b[..., 6].cos(), boxes_b[..., 6].sin()
    moved = [x * cos + y * sin, y * cos - x * sin]
    turn = boxes_a[..., 6] - boxes_b[..., 6]
    size_a, size_b = boxes_a[..., 3:5].clamp(min=0), boxes_b[..., 3:5].clamp(min=0)
    along = size_a[..., :1] / 2 * torch.stack([turn.cos(), turn.sin()], -1)
    across = size_a[..., 1:] / 2 * torch.stack([-turn.sin(), turn.cos()], -1)
    offsets = torch.stack([along + across, across - along, -along - across, along - across], -2)
    corners = offsets + torch.stack(moved, -1).unsqueeze(-2)
    half = size_b[..., None, :] / 2
    return _area_in_window(corners, half[..., 0], half[..., 1]).clamp(min=0)


def _area_in_window(corners: Tensor, w: Tensor, h: Tensor) -> Tensor:
    """Area of polygons ``[..., P, 2]``, counter-clockwise, within |x| <= w, |y| <= h ``[..., 1]``: ``[...]``."""
    x0, y0 = corners.unbind(-1)
    x1, y1 = x0.roll(-1, -1), y0.roll(-1, -1)
    left, right = torch.clamp(x0, -w, w), torch.clamp(x1, -w, w)
    width = x1 - x0
    safe = torch.where(width == 0, torch.ones_like(width), width)
    rise = (y1 - y0) / safe  # times a distance no longer than the edge
    start, end = y0 + (left - x0) * rise, y0 + (right - x0) * rise
    low, high = torch.clamp(start, -h, h), torch.clamp(end, -h, h)
    # the mean of the clamped height: constant before it enters the window, linear within, constant after
    before, within, after = (low - start).abs(), (high - low).abs(), (end - high).abs()
    weight = before + within + after
    total = before * low + within * (low + high) / 2 + after * high
    mean = torch.where(weight > 0, total / weight.clamp(min=torch.finfo(weight.dtype).tiny), low)
    return (mean * (left - right)).sum(-1)


def _near(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Whether the circles around boxes ``[..., N, 7]`` and ``[..., M, 7]`` meet, ``[..., N, M]``."""
    reach = boxes_a[..., :, None, 3:5].norm(dim=-1) + boxes_b[..., None, :, 3:5].norm(dim=-1)
    x, y = (boxes_a[..., :, None, i] - boxes_b[..., None, :, i] for i in range(2))
    return x * x + y * y <= reach * reach / 4


def _pairwise(boxes_a: Tensor, boxes_b: Tensor, paired) -> Tensor:
    boxes_a, boxes_b = _checked(boxes_a, "boxes_a"), _checked(boxes_b, "boxes_b")
    if boxes_a.ndim < 2 or boxes_b.ndim < 2:
        raise ValueError(
            f"boxes have shapes {tuple(boxes_a.shape)} and {tuple(boxes_b.shape)}; they must be [..., N, 7]"
        )
    shape = torch.broadcast_shapes(boxes_a.shape[:-2], boxes_b.shape[:-2])
    boxes_a = boxes_a.expand(*shape, *boxes_a.shape[-2:])
    boxes_b = boxes_b.expand(*shape, *boxes_b.shape[-2:])
    with torch.no_grad():
        *batch, rows, columns = torch.nonzero(_near(boxes_a, boxes_b), as_tuple=True)
    values = [
        paired(boxes_a[tuple(i[part] for i in (*batch, rows))], boxes_b[tuple(i[part] for i in (*batch, columns))])
        for part in (slice(s, s + PAIRS_AT_ONCE) for s in range(0, len(rows), PAIRS_AT_ONCE))
    ]
    dtype = torch.promote_types(boxes_a.dtype, boxes_b.dtype)
    result = torch.zeros(*shape, boxes_a.shape[-2], boxes_b.shape[-2], dtype=dtype, device=boxes_a.device)
    return result.index_put((*batch, rows, columns), torch.cat(values).to(dtype)) if values else result


def _suppresses(boxes: Tensor, better: Tensor, worse: Tensor, threshold: Tensor, labels: Tensor | None) -> Tensor:
    """Whether a box of ``better`` removes one of ``worse`` (indices ``[N]``, ``[M]``), bool ``[N, M]``."""
    overlap = bev_iou(boxes[better], boxes[worse])
    if labels is None:
        return overlap > threshold
    limit = threshold[labels[better]][:, None] if threshold.ndim else threshold
    return (overlap > limit) & (labels[better][:, None] == labels[worse])


def _settle(removes: Tensor) -> Tensor:
    """Greedy choice among boxes in order, given which removes which ``[N, N]``: bool ``[N]``."""
    table = removes.cpu().numpy()
    stays = table.diagonal().copy()
    stays[:] = True
    for index in range(len(stays)):
        if stays[index]:
            stays[index + 1 :] &= ~table[index, index + 1 :]
    return torch.from_numpy(stays).to(removes.device)
