"""Assignment of objects to proposals and losses of the TransFusion head (Bai et al., CVPR 2022, section 3.4)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.errors import require
from visionattn.heads.lidar.losses import LOG_SIZE_LIMIT, diou_paired, focal_loss
from visionattn.heads.lidar.rotated_boxes import iou_3d, iou_3d_paired
from visionattn.heads.lidar.targets import BEVGrid, center_targets

__all__ = ["assign_objects", "decode_proposals", "transfusion_losses"]

ALPHA, GAMMA = 0.25, 2.0
"""Parameters of the focal loss of the classes, and of its cost in the assignment."""


def decode_proposals(outputs: dict[str, Tensor], grid: BEVGrid) -> Tensor:
    """Decode proposals into boxes.

    Args:
        outputs: ``center``, ``height``, ``dim``, ``rot`` and, optionally, ``vel``, as `TransFusionHead.forward` returns
            them.
        grid: geometry of the map.

    Returns:
        Boxes ``[B, P, 7]``, or ``[B, P, 9]`` with velocity.
    """
    names = ("center", "height", "dim", "rot", *(("vel",) if "vel" in outputs else ()))
    center, height, dim, rot, *vel = (outputs[name].float().transpose(1, 2) for name in names)
    size = dim.clamp(max=LOG_SIZE_LIMIT).exp()
    return torch.cat([grid.to_meters(center), height, size, torch.atan2(rot[..., :1], rot[..., 1:]), *vel], -1)


@torch.no_grad()
def assign_objects(
    boxes: Tensor,
    logits: Tensor,
    true: Tensor,
    labels: Tensor,
    extent: Tensor,
    class_cost: float = 0.15,
    center_cost: float = 0.25,
    iou_cost: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """Assign each object of a sample to one proposal by the Hungarian algorithm.

    The cost of a pair is the weighted sum of the focal loss for the object's class minus that for no object, the L1
    distance of the centers divided by the extent of the map, and the negative 3-D IoU.

    Args:
        boxes: predicted boxes ``[P, 7]``.
        logits: class logits ``[P, classes]``.
        true: boxes of the objects ``[M, 7]``.
        labels: labels of the objects, int64 ``[M]``.
        extent: size of the map along x and y in meters, ``[2]``.
        class_cost, center_cost, iou_cost: weights of the three costs.

    Returns:
        Indices of the assigned proposals and of their objects, int64, ``[min(P, M)]`` each.
    """
    p = logits.float().sigmoid()[:, labels]
    present = -ALPHA * (1 - p).pow(GAMMA) * (p + 1e-12).log()
    absent = -(1 - ALPHA) * p.pow(GAMMA) * (1 - p + 1e-12).log()
    apart = ((boxes[:, None, :2] - true[:, :2]).abs() / extent).sum(-1)
    cost = class_cost * (present - absent) + center_cost * apart - iou_cost * iou_3d(boxes, true)
    # A diverging model must fail by its loss, not by an error of the solver.
    cost = cost.nan_to_num(nan=1e4, posinf=1e4, neginf=-1e4).cpu().numpy()
    rows, columns = require("scipy.optimize").linear_sum_assignment(cost)
    return torch.as_tensor(rows, device=boxes.device), torch.as_tensor(columns, device=boxes.device)


def transfusion_losses(
    outputs: dict[str, Tensor],
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    velocity: Sequence[Tensor] | None,
    grid: BEVGrid,
    overlap: float = 0.1,
    min_radius: int = 2,
    heatmap_weight: float = 1.0,
    class_weight: float = 1.0,
    regression_weight: float = 0.25,
    code_weights: Sequence[float] | None = None,
    iou_weight: float = 0.5,
    diou_weight: float = 0.5,
    class_cost: float = 0.15,
    center_cost: float = 0.25,
    iou_cost: float = 0.25,
) -> dict[str, Tensor]:
    """Compute the weighted losses.

    Args:
        outputs: the dict of `TransFusionHead.forward`.
        boxes: ground-truth boxes of each sample ``[N, 7]``; those with a size of 0 or less are skipped.
        labels: labels of each sample, int64 ``[N]``.
        velocity: velocities of each sample ``[N, 2]``, NaN where unknown; None means unknown.
        grid: geometry of the map.
        overlap, min_radius: see `visionattn.heads.lidar.targets.center_targets`, for the heatmap.
        heatmap_weight: weight of the focal loss of the heatmap.
        class_weight: weight of the focal loss of the proposals' classes, divided by the number of assigned proposals.
        regression_weight: weight of the L1 loss, which is summed over values and averaged over assigned proposals.
        code_weights: weight of each regression value, 8 numbers, or 10 with velocity. Defaults to 1.
        iou_weight: weight of the L1 loss between the ``iou`` branch and 2 * IoU - 1 of the decoded box.
        diou_weight: weight of 1 - `diou_paired` of the decoded box.
        class_cost, center_cost, iou_cost: see `assign_objects`.

    Returns:
        ``loss_heatmap``, ``loss_cls``, ``loss_bbox`` and, if enabled, ``loss_iou`` and ``loss_diou``. Without objects,
        the last three are 0 with zero gradient.
    """
    heat = outputs["dense_heatmap"]
    size = tuple(heat.shape[-2:])
    targets = center_targets(boxes, labels, heat.shape[1], size, grid, overlap=overlap, min_radius=min_radius)
    predicted = decode_proposals(outputs, grid)
    extent = grid.to_meters(predicted.new_tensor([size[1], size[0]])) - predicted.new_tensor(grid.range_min)
    logits = outputs["heatmap"].float()
    wanted = torch.zeros_like(logits)
    places, truths, speeds = [], [], []
    for number, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        usable = (box[:, 3:6] > 0).all(1)
        box, label = box[usable, :7].float(), label[usable]
        rows, columns = assign_objects(
            predicted[number, :, :7], logits[number].T, box, label, extent, class_cost, center_cost, iou_cost
        )
        wanted[number, label[columns], rows] = 1.0
        places.append(torch.stack([torch.full_like(rows, number), rows]))
        truths.append(box[columns])
        unknown = box.new_full((len(box), 2), torch.nan)
        speeds.append((unknown if velocity is None else velocity[number][usable].to(box))[columns])
    sample, proposal = torch.cat(places, 1)
    true = torch.cat(truths)
    count = max(len(true), 1)
    names = ("center", "height", "dim", "rot", *(("vel",) if "vel" in outputs else ()))
    numbers = torch.cat([outputs[name].float() for name in names], 1)[sample, :, proposal]
    heading = true[:, 6:7]
    codes = [grid.to_cells(true[:, :2]), true[:, 2:3], true[:, 3:6].log(), heading.sin(), heading.cos()]
    target = torch.cat([*codes, *([torch.cat(speeds)] if "vel" in outputs else [])], 1)
    known = ~target.isnan()
    error = F.l1_loss(numbers * known, torch.where(known, target, 0.0), reduction="none").sum(0) / count
    if code_weights is not None:
        if len(code_weights) != len(error):
            raise ValueError(f"`code_weights` must be {len(error)} numbers, got {list(code_weights)}")
        error = error * error.new_tensor(list(code_weights))
    losses = {
        "loss_heatmap": heatmap_weight * focal_loss(heat, targets.heatmap),
        "loss_cls": class_weight * _class_loss(logits, wanted) / count,
        "loss_bbox": regression_weight * error.sum(),
    }
    assigned = predicted[sample, proposal, :7]
    if iou_weight and "iou" in outputs:
        rating = outputs["iou"][sample, 0, proposal].float()
        overlap_3d = 2 * iou_3d_paired(assigned.detach(), true) - 1
        losses["loss_iou"] = iou_weight * (rating - overlap_3d).abs().sum() / count
    if diou_weight:
        losses["loss_diou"] = diou_weight * (1 - diou_paired(assigned, true)).sum() / count
    return losses


def _class_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum of the focal loss (Lin et al., ICCV 2017) over all logits; ``wanted`` is 1 for positives and 0 otherwise."""
    p = logits.sigmoid()
    right = torch.where(wanted == 1, p, 1 - p)
    weight = torch.where(wanted == 1, ALPHA, 1 - ALPHA) * (1 - right).pow(GAMMA)
    return (weight * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()
