"""Losses of the center head: heatmap focal loss, L1 regression, IoU and distance-IoU."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.heads.lidar.rotated_boxes import iou_3d_paired
from visionattn.heads.lidar.targets import BEVGrid, CenterTargets

__all__ = ["REGRESSION", "center_losses", "decode_cells", "diou_paired", "focal_loss"]

REGRESSION = ("center", "center_z", "dim", "rot")
"""Branches whose concatenated channels correspond to `CenterTargets.regression`; ``vel`` follows if present."""

LOG_SIZE_LIMIT = 8.0
"""Sizes are clamped to e^8 m when decoded, so that volumes stay finite in float32."""


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Penalty-reduced focal loss of CornerNet (alpha 2, beta 4), normalized by the number of centers.

    Args:
        logits: ``[B, K, H, W]``.
        target: heatmaps of the same shape, exactly 1 at centers.
    """
    p = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    center = target == 1
    hit = (1 - p).square() * p.log()
    miss = (1 - target).pow(4) * p.square() * (1 - p).log()
    return -torch.where(center, hit, miss).sum() / center.sum().clamp(min=1)


def decode_cells(numbers: Tensor, index: Tensor, columns: int, grid: BEVGrid) -> Tensor:
    """Decode the regression output at given cells into boxes.

    Args:
        numbers: predictions ``[..., 8]``, or ``[..., 10]`` with velocity, in the order of `CenterTargets.regression`.
        index: cell indices, int64 ``[...]``, row * columns + column.
        columns: number of columns of the map.
        grid: geometry of the map.

    Returns:
        Boxes ``[..., 7]``, or ``[..., 9]`` with velocity.
    """
    numbers = numbers.float()
    cell = torch.stack([index % columns, torch.div(index, columns, rounding_mode="floor")], -1)
    xy = grid.to_meters(cell + numbers[..., :2])
    size = numbers[..., 3:6].clamp(max=LOG_SIZE_LIMIT).exp()
    heading = torch.atan2(numbers[..., 7:8], numbers[..., 6:7])
    return torch.cat([xy, numbers[..., 2:3], size, heading, numbers[..., 8:]], -1)


def diou_paired(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Distance-IoU (Zheng et al., AAAI 2020) of box pairs, ignoring their headings.

    IoU minus the squared center distance divided by the squared diagonal of the enclosing box.

    Args:
        boxes_a, boxes_b: ``[..., 7]``.

    Returns:
        ``[...]``, in [-1, 1].
    """
    center_a, center_b, half_a, half_b = (
        boxes_a[..., :3], boxes_b[..., :3], boxes_a[..., 3:6] / 2, boxes_b[..., 3:6] / 2
    )  # fmt: skip
    apart = center_a - center_b
    low, high = apart - half_a, apart + half_a  # box a relative to the center of b
    common = (torch.minimum(high, half_b) - torch.maximum(low, -half_b)).clamp(min=0).prod(-1)
    across = (torch.maximum(high, half_b) - torch.minimum(low, -half_b)).square().sum(-1)
    union = boxes_a[..., 3:6].prod(-1) + boxes_b[..., 3:6].prod(-1) - common
    tiny = torch.finfo(union.dtype).tiny
    return (common / union.clamp(min=tiny) - apart.square().sum(-1) / across.clamp(min=tiny)).clamp(-1, 1)


def center_losses(
    outputs: dict[str, Tensor],
    targets: CenterTargets,
    grid: BEVGrid,
    heatmap_weight: float = 1.0,
    regression_weight: float = 2.0,
    code_weights: Sequence[float] | None = None,
    iou_weight: float = 1.0,
    diou_weight: float = 2.0,
) -> dict[str, Tensor]:
    """Compute the weighted losses of one group of classes.

    Args:
        outputs: maps ``[B, C, H, W]``: ``hm``, the branches of `REGRESSION`, optionally ``vel`` and ``iou``.
        targets: targets of the same batch.
        grid: geometry of the maps.
        heatmap_weight: weight of the focal loss.
        regression_weight: weight of the L1 loss, which is summed over values and averaged over objects.
        code_weights: weight of each regression value, 8 numbers, or 10 with velocity. Defaults to 1.
        iou_weight: weight of the L1 loss between the ``iou`` branch and 2 * IoU - 1 of the decoded box. 0 disables it.
        diou_weight: weight of 1 - `diou_paired` of the decoded box. 0 disables it.

    Returns:
        ``loss_heatmap``, ``loss_bbox`` and, if enabled, ``loss_iou`` and ``loss_diou``. Without objects, all but the
        first are 0 with zero gradient.
    """
    mask = targets.mask
    count = mask.sum().clamp(min=1)
    branches = [*REGRESSION, *(["vel"] if "vel" in outputs else [])]
    numbers = torch.cat([_at(outputs[name], targets.index) for name in branches], -1).float()[mask]
    wanted = targets.regression[mask]
    known = ~wanted.isnan()
    error = F.l1_loss(numbers * known, torch.where(known, wanted, 0.0), reduction="none").sum(0) / count
    if code_weights is not None:
        if len(code_weights) != len(error):
            raise ValueError(f"`code_weights` must be {len(error)} numbers, got {list(code_weights)}")
        error = error * error.new_tensor(list(code_weights))
    losses = {
        "loss_heatmap": heatmap_weight * focal_loss(outputs["hm"], targets.heatmap),
        "loss_bbox": regression_weight * error.sum(),
    }
    if iou_weight or diou_weight:
        boxes = decode_cells(numbers, targets.index[mask], outputs["hm"].shape[-1], grid)[:, :7]
        truth = targets.boxes[mask]
    if iou_weight and "iou" in outputs:
        overlap = 2 * iou_3d_paired(boxes.detach(), truth) - 1
        predicted = _at(outputs["iou"], targets.index)[..., 0].float()[mask]
        losses["loss_iou"] = iou_weight * (predicted - overlap).abs().sum() / count
    if diou_weight:
        losses["loss_diou"] = diou_weight * (1 - diou_paired(boxes, truth)).sum() / count
    return losses


def _at(values: Tensor, index: Tensor) -> Tensor:
    """Gather values ``[B, C, H, W]`` at cells ``[B, M]``: ``[B, M, C]``."""
    flat = values.flatten(2)
    return flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)
