"""Centre-based detection on a map seen from above (CenterPoint, CVPR 2021), with a branch that rates its own boxes.

Parameter names are those of OpenPCDet's ``CenterHead``, so that checkpoints trained there load.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.heads.lidar.losses import REGRESSION, center_losses, decode_cells
from visionattn.heads.lidar.rotated_boxes import rotated_nms
from visionattn.heads.lidar.targets import BEVGrid, center_targets

__all__ = ["BEVDetections", "CenterHead", "Decoding"]

CHANNELS = {"center": 2, "center_z": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1}


@dataclass
class BEVDetections:
    """What is found in one sample.

    Attributes:
        boxes: float32 ``[N, 7]``: x, y, z of the centre, dx, dy, dz, heading counter-clockwise from +x.
        scores: float32 ``[N]``, best first.
        labels: int64 ``[N]``.
        velocity: float32 ``[N, 2]`` in metres per second, or None.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    velocity: Tensor | None = None


@dataclass(frozen=True)
class Decoding:
    """How maps become boxes.

    Attributes:
        max_candidates: cells of each class, and then of all together.
        score_threshold: cells above it count, by their heat map alone.
        post_range: least x, y, z, then most of centres; None for all.
        rectify: for each class (or one for all) the share of the rated overlap in the score: heat ** (1 - a) *
            overlap ** a.
        nms_iou: for each class (or one for all) the overlap that a better box allows.
        nms_pre: boxes of each class that suppression begins with.
        max_boxes: boxes of each class that it ends with.
    """

    max_candidates: int = 500
    score_threshold: float = 0.1
    post_range: Sequence[float] | None = None
    rectify: Sequence[float] | float = 0.0
    nms_iou: Sequence[float] | float = 0.7
    nms_pre: int = 4096
    max_boxes: int = 500

    def __post_init__(self) -> None:
        if self.post_range is not None and len(self.post_range) != 6:
            raise ValueError(f"post_range={list(self.post_range)} must be 6 numbers")
        rectify = [self.rectify] if isinstance(self.rectify, (int, float)) else self.rectify
        if not all(0 <= value <= 1 for value in rectify):
            raise ValueError(f"rectify={self.rectify} must be in 0..1")

    def for_classes(self, name: str, count: int) -> list[float]:
        """``rectify`` or ``nms_iou`` for each class."""
        value = getattr(self, name)
        values = [float(value)] * count if isinstance(value, (int, float)) else [float(v) for v in value]
        if len(values) != count:
            raise ValueError(f"{name} has {len(values)} values; there are {count} classes")
        return values


def _branch(channels: int, out_channels: int, convs: int, heatmap: bool) -> nn.Sequential:
    layers: list[nn.Module] = [_conv_norm(channels, channels) for _ in range(convs - 1)]
    layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
    branch = nn.Sequential(*layers)
    if not heatmap:
        for module in branch.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    nn.init.constant_(branch[-1].bias, -2.19 if heatmap else 0.0)  # sigmoid(-2.19) = 0.1: few cells are centres
    return branch


def _conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01), nn.ReLU())


class CenterHead(nn.Module):
    """Heat maps of box centres, and boxes at their cells.

    Args:
        in_channels: of the map.
        num_classes: how many.
        grid: where the map's cells lie.
        shared_channels: of the convolution that all branches share.
        velocity: also predict it, in metres per second.
        iou: also predict how well each box overlaps its object.
        convs: convolutions of a branch, the last included.
        class_groups: labels of the classes that share branches, such as ``[[0], [1, 2]]``; all of them unless given.
        max_objects, overlap, min_radius: of `visionattn.heads.lidar.targets.center_targets`.
        loss: weights of `visionattn.heads.lidar.losses.center_losses`.
        decoding: how maps become boxes.

    Raises:
        ValueError: ``class_groups`` does not have each class once, or ``decoding`` does not fit the classes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        grid: BEVGrid,
        shared_channels: int = 64,
        velocity: bool = False,
        iou: bool = True,
        convs: int = 2,
        class_groups: Sequence[Sequence[int]] | None = None,
        max_objects: int = 500,
        overlap: float = 0.1,
        min_radius: int = 2,
        loss: dict[str, Any] | None = None,
        decoding: Decoding | None = None,
    ) -> None:
        super().__init__()
        groups = [list(range(num_classes))] if class_groups is None else [list(group) for group in class_groups]
        if sorted(label for group in groups for label in group) != list(range(num_classes)) or not all(groups):
            raise ValueError(f"class_groups={groups} must have each of 0..{num_classes - 1} once")
        if convs < 1:
            raise ValueError(f"convs={convs} must be at least 1")
        self.num_classes, self.grid, self.groups = num_classes, grid, groups
        self.decoding = decoding or Decoding()
        self.rectify = self.decoding.for_classes("rectify", num_classes)
        self.nms_iou = self.decoding.for_classes("nms_iou", num_classes)
        if any(self.rectify) and not iou:
            raise ValueError(f"rectify={self.decoding.rectify} needs the iou branch")
        self.with_velocity, self.loss_weights = velocity, dict(loss or {})
        self.target_options = dict(max_objects=max_objects, overlap=overlap, min_radius=min_radius)
        self.shared_conv = _conv_norm(in_channels, shared_channels)
        names = [*REGRESSION, *(["vel"] if velocity else []), *(["iou"] if iou else [])]
        self.heads_list = nn.ModuleList()
        for group in groups:
            branches = {name: _branch(shared_channels, CHANNELS[name], convs, False) for name in names}
            branches["hm"] = _branch(shared_channels, len(group), convs, True)
            self.heads_list.append(nn.ModuleDict(branches))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """From a map ``[B, in_channels, H, W]`` (rows along y, columns along x), for each group of classes:

        ``hm`` (logits of its classes), ``center`` 2, ``center_z`` 1, ``dim`` 3, ``rot`` 2 (cosine, sine) and, where
        there are such branches, ``vel`` 2 and ``iou`` 1, each ``[B, channels, H, W]``.
        """
        x = self.shared_conv(x)
        return [{name: branch(x) for name, branch in head.items()} for head in self.heads_list]

    def loss(
        self,
        outputs: Sequence[dict[str, Tensor]],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        velocity: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Losses towards labelled boxes; see `visionattn.heads.lidar.losses.center_losses`.

        Args:
            outputs: of `forward`.
            boxes: of each sample ``[N, 7]``; N may be 0.
            labels: of each sample int64 ``[N]``.
            velocity: of each sample ``[N, 2]``, NaN where unknown.

        Returns:
            The losses summed over groups of classes.
        """
        total: dict[str, Tensor] = {}
        for group, output in zip(self.groups, outputs, strict=True):
            lookup = torch.full((self.num_classes,), -1, device=output["hm"].device)
            lookup[group] = torch.arange(len(group), device=lookup.device)
            mine = [lookup[label] for label in labels]
            chosen = [number >= 0 for number in mine]
            targets = center_targets(
                [box[take] for box, take in zip(boxes, chosen, strict=True)],
                [number[take] for number, take in zip(mine, chosen, strict=True)],
                len(group),
                tuple(output["hm"].shape[-2:]),
                self.grid,
                None if velocity is None else [v[take] for v, take in zip(velocity, chosen, strict=True)],
                self.with_velocity,
                **self.target_options,
            )
            for name, value in center_losses(output, targets, self.grid, **self.loss_weights).items():
                total[name] = total[name] + value if name in total else value
        return total

    @torch.no_grad()
    def predict(self, outputs: Sequence[dict[str, Tensor]]) -> list[BEVDetections]:
        """Boxes of each sample, from the maps of `forward`; see `Decoding`."""
        samples = []
        for number in range(len(outputs[0]["hm"])):
            parts = [self._candidates(out, group, number) for out, group in zip(outputs, self.groups, strict=True)]
            samples.append(self._suppress(*(torch.cat(part) for part in zip(*parts, strict=True))))
        return samples

    def _candidates(self, output: dict[str, Tensor], group: list[int], number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes with velocities, scores and labels of one sample and group, before suppression."""
        heat = output["hm"][number].float().sigmoid()
        columns = heat.shape[-1]
        score, index = heat.flatten(1).topk(min(self.decoding.max_candidates, heat[0].numel()))
        score, best = score.flatten().topk(min(self.decoding.max_candidates, score.numel()))
        label = torch.div(best, index.shape[1], rounding_mode="floor")
        index = index.flatten()[best]
        names = [*REGRESSION, *(["vel"] if self.with_velocity else [])]
        values = torch.cat([output[name][number].flatten(1) for name in names])[:, index].T
        boxes = decode_cells(values, index, columns, self.grid)
        label = torch.tensor(group, device=label.device)[label]
        kept = score > self.decoding.score_threshold
        if self.decoding.post_range is not None:
            limits = boxes.new_tensor(list(self.decoding.post_range))
            kept &= ((boxes[:, :3] >= limits[:3]) & (boxes[:, :3] <= limits[3:])).all(1)
        if any(self.rectify):
            share = score.new_tensor(self.rectify)[label]
            rated = output["iou"][number].float().flatten()[index]
            score = score.pow(1 - share) * ((rated + 1) / 2).clamp(0, 1).pow(share)
        return boxes[kept], score[kept], label[kept]

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> BEVDetections:
        kept = []
        for label, threshold in enumerate(self.nms_iou):
            mine = (labels == label).nonzero().squeeze(1)
            mine = mine[scores[mine].sort(descending=True, stable=True).indices[: self.decoding.nms_pre]]
            kept.append(mine[rotated_nms(boxes[mine], scores[mine], threshold, max_boxes=self.decoding.max_boxes)])
        every = torch.cat(kept)
        every = every[scores[every].sort(descending=True, stable=True).indices]
        velocity = boxes[every, 7:9] if self.with_velocity else None
        return BEVDetections(boxes[every, :7], scores[every], labels[every], velocity)
