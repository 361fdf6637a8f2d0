"""A detector of point clouds small enough to be trained in a test, and scans of two kinds of blocks for it.

Its encoder and backbone are as plain as can be, so that what is tested is what is around them.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from visionattn.engine.registry import MODELS
from visionattn.heads.lidar.data.files import write_points
from visionattn.heads.lidar.data.voxelize import Voxels

RANGE = [-12.8, -6.4, -2.0, 12.8, 6.4, 2.0]
VOXEL = [0.4, 0.4, 1.0]
CLASSES = ("long", "square")
SIZES = {"long": (3.6, 1.4, 1.2), "square": (1.4, 1.4, 2.0)}


@MODELS.register_module(force=True)
class PlainEncoder(nn.Module):
    """Mean of the points of a voxel, from its middle."""

    def __init__(self, point_cloud_range: list, voxel_size: list, in_channels: int = 4) -> None:
        super().__init__()
        self.low, self.size = point_cloud_range[:3], voxel_size

    def forward(self, voxels: Voxels) -> Tensor:
        middle = (voxels.coords[:, [3, 2, 1]] + 0.5) * voxels.points.new_tensor(self.size)
        middle = middle + voxels.points.new_tensor(self.low)
        values = torch.cat([voxels.points[:, :3] - middle[voxels.point_voxel], voxels.points[:, 3:]], 1)
        total = values.new_zeros(len(middle), values.shape[1]).index_add(0, voxels.point_voxel, values)
        count = torch.bincount(voxels.point_voxel, minlength=len(middle))[:, None]
        return torch.cat([total / count, count.clamp(max=20).to(values) / 20], 1)


@MODELS.register_module(force=True)
class PlainBackbone(nn.Module):
    """Voxels as channels of a map, and one convolution."""

    def __init__(self, grid_size: tuple = (8, 8, 4), channels: int = 24, in_channels: int = 5) -> None:
        super().__init__()
        self.grid, self.num_features = grid_size, [channels]
        conv = nn.Conv2d(in_channels * grid_size[2], channels, 3, 2, 1, bias=False)
        self.conv = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, features: Tensor, coords: Tensor, batch_size: int) -> Tensor:
        gx, gy, gz = self.grid
        dense = features.new_zeros(batch_size, gz, gy, gx, features.shape[1])
        dense[tuple(coords.T)] = features
        return self.conv(dense.permute(0, 1, 4, 2, 3).flatten(1, 2))


def make_scan(seed: int) -> tuple[np.ndarray, list[dict]]:
    """Points ``[N, 4]`` on the upper half of three to five blocks and on flat ground, and the blocks."""
    rng = np.random.default_rng(seed)
    ground = np.concatenate([rng.uniform((-12, -6), (12, 6), (600, 2)), rng.normal(-1.5, 0.02, (600, 1))], 1)
    parts, boxes, taken = [ground], [], []
    while len(boxes) < 3 + seed % 3:
        name = CLASSES[rng.integers(2)]
        size, heading = np.array(SIZES[name]), rng.uniform(-0.5, 0.5)
        x, y = rng.uniform((-10, -4.5), (10, 4.5))
        if all(np.hypot(x - a, y - b) > 4.2 for a, b in taken):
            taken.append((x, y))
            local = rng.uniform(-0.5, 0.5, (150, 3)) * size
            local[::3, 0] = size[0] / 2  # more of its front
            c, s = np.cos(heading), np.sin(heading)
            turned = local @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
            z = -1.5 + size[2] / 2
            parts.append(turned + np.array([x, y, z]))
            boxes.append({"class": name, "box": [float(v) for v in (x, y, z, *size, heading)]})
    points = np.concatenate(parts)
    return np.concatenate([points, np.full((len(points), 1), 0.5)], 1).astype(np.float32), boxes


def write_scans(folder: Path, train: int = 24, val: int = 8) -> Path:
    """Scans in ``train`` and ``val``, the last of ``val`` without a block."""
    for split, start, count in (("train", 0, train), ("val", 1000, val)):
        (folder / split).mkdir(parents=True)
        for number in range(count):
            points, boxes = make_scan(start + number)
            if split == "val" and number == count - 1:
                points, boxes = points[:600], []
            write_points(folder / split / f"{number:03d}.bin", points)
            content = {"columns": ["x", "y", "z", "intensity"], "boxes": boxes}
            (folder / split / f"{number:03d}.json").write_text(json.dumps(content))
    return folder


def config_text(data: Path, epochs: int = 45) -> str:
    """A config that trains on scans of `write_scans`."""
    return f"""
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmengine"
point_cloud_range = {RANGE}
model = dict(
    type="visionattn.BEVDetector", point_cloud_range=point_cloud_range, voxel_size={VOXEL},
    voxel_encoder=dict(type="visionattn.PlainEncoder"),
    backbone=dict(type="visionattn.PlainBackbone"),
    neck=dict(type="visionattn.CascadeDED", in_channels=24, channels=24, num_units=1, blocks=(1, 1), strides=(1, 2)),
    bbox_head=dict(type="visionattn.CenterHead", in_channels=24, num_classes=2, shared_channels=16,
                   decoding=dict(rectify=0.5, nms_iou=0.2)))
pipeline = [dict(type="visionattn.PointRangeFilter", point_cloud_range=point_cloud_range),
            dict(type="visionattn.PackPoints")]
augmented = [dict(type="visionattn.PointFlip"), dict(type="visionattn.PointRotation", angle=0.3), *pipeline]
dataset = dict(type="visionattn.PointCloudDataset", data_root={str(data)!r}, metainfo=dict(classes={CLASSES}))
train_dataloader = dict(batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
                        dataset=dict(data_prefix=dict(pts="train"), pipeline=augmented, **dataset))
val_dataloader = dict(batch_size=3, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
                      dataset=dict(data_prefix=dict(pts="val"), pipeline=pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type="visionattn.BEVMetric", iou=0.5, levels=("all",))
test_evaluator = [val_evaluator, dict(type="visionattn.BEVDistanceMetric"),
                  dict(type="visionattn.WaymoMetric", iou=0.5)]
train_cfg = dict(by_epoch=True, max_epochs={epochs}, val_interval={epochs})
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.008, betas=(0.95, 0.99), weight_decay=0.01),
                     clip_grad=dict(max_norm=10.0))
param_scheduler = [dict(type="OneCycleLR", eta_max=0.008, total_steps={epochs}, pct_start=0.3, div_factor=10,
                        final_div_factor=1e3, by_epoch=True, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval={epochs}))
randomness = dict(seed=0)
"""
