"""Center-based detection head on bird's-eye-view features (CenterPoint, CVPR 2021) with an optional IoU branch.

Parameter names match OpenPCDet's ``CenterHead``, so its checkpoints load.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visionattn.heads.lidar.decoding import BEVDetections, Decoding
from visionattn.heads.lidar.losses import REGRESSION, center_losses, decode_cells
from visionattn.heads.lidar.targets import BEVGrid, center_targets

__all__ = ["CenterHead"]

CHANNELS = {"center": 2, "center_z": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1}


def _branch(channels: int, out_channels: int, convs: int, heatmap: bool) -> nn.Sequential:
    layers: list[nn.Module] = [_conv_norm(channels, channels) for _ in range(convs - 1)]
    layers.append(nn.Conv2d(channels, out_channels, 3, padding=1))
    branch = nn.Sequential(*layers)
    if not heatmap:
        for module in branch.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
    nn.init.constant_(branch[-1].bias, -2.19 if heatmap else 0.0)  # sigmoid(-2.19) = 0.1: few cells are positive
    return branch


def _conv_norm(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01), nn.ReLU())


class CenterHead(nn.Module):
    """Heatmaps of box centers, and box regression at the center cells.

    Args:
        in_channels: number of input channels.
        num_classes: number of classes.
        grid: geometry of the input map.
        shared_channels: channels of the convolution shared by all branches.
        velocity: whether to predict the velocity, in meters per second.
        iou: whether to predict the IoU of each box with its object.
        convs: number of convolutions in each branch.
        class_groups: labels of the classes that share branches, such as ``[[0], [1, 2]]``. Defaults to one group.
        max_objects, overlap, min_radius: see `visionattn.heads.lidar.targets.center_targets`.
        loss: keyword arguments of `visionattn.heads.lidar.losses.center_losses`.
        decoding: post-processing options.

    Raises:
        ValueError: if ``class_groups`` does not contain each class exactly once, or ``decoding`` does not match the
            classes.
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
            raise ValueError(f"`class_groups` must contain each of 0..{num_classes - 1} once, got {groups}")
        if convs < 1:
            raise ValueError(f"`convs` must be at least 1, got {convs}")
        self.num_classes, self.grid, self.groups = num_classes, grid, groups
        self.decoding = decoding or Decoding()
        self.decoding.check(num_classes, iou)
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
        """Compute the output maps.

        Args:
            x: features ``[B, in_channels, H, W]``, rows along y and columns along x.

        Returns:
            For each group of classes a dict of maps ``[B, C, H, W]``: ``hm`` (logits, one channel per class),
            ``center`` (2 channels), ``center_z`` (1), ``dim`` (3), ``rot`` (2: cosine, sine) and, if enabled, ``vel``
            (2) and ``iou`` (1).
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
        """Compute the losses; see `visionattn.heads.lidar.losses.center_losses`.

        Args:
            outputs: return value of `forward`.
            boxes: ground-truth boxes of each sample ``[N, 7]``; N may be 0.
            labels: labels of each sample, int64 ``[N]``.
            velocity: velocities of each sample ``[N, 2]`` in meters per second, NaN where unknown.

        Returns:
            The losses, summed over groups of classes.
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
        """Decode the maps of `forward` into detections, one `BEVDetections` for each sample; see `Decoding`."""
        samples = []
        for number in range(len(outputs[0]["hm"])):
            parts = [self._candidates(out, group, number) for out, group in zip(outputs, self.groups, strict=True)]
            boxes, scores, labels, iou = zip(*parts, strict=True)
            ratings = None if iou[0] is None else torch.cat(iou)
            found = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
            samples.append(self.decoding.select(*found, ratings, self.num_classes))
        return samples

    def _candidates(
        self, output: dict[str, Tensor], group: list[int], number: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Boxes (with velocities), scores, labels and predicted IoU of one sample and class group."""
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
        iou = output["iou"][number].float().flatten()[index] if "iou" in output else None
        return boxes, score, label, iou
