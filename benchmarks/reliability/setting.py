"""A tiny run that takes seconds: random pictures, a small segmentor, a checkpoint at each iteration."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

__all__ = ["Row", "in_child", "make_config", "same_weights"]

CONFIG = """
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[0.0] * 3, std=[255.0] * 3, size=(48, 48), pad_val=0,
                           seg_pad_val=255, bgr_to_rgb=True),
    backbone=dict(type="visionattn.Backbone", model_name="dinat_pico", pretrained=None, depths=(1, 1, 1, 1),
                  embed_dim=16, num_heads=(1, 2, 4, 8), out_indices=(0, 1)),
    decode_head=dict(type="FCNHead", in_channels=16, in_index=0, channels=8, num_convs=1, num_classes=2,
                     norm_cfg=dict(type="GN", num_groups=2), dropout_ratio=0.1,
                     loss_decode=dict(type="CrossEntropyLoss")),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
train_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="RandomFlip", prob=0.5),
                  dict(type="PhotoMetricDistortion"), dict(type="PackSegInputs")]
dataset = dict(type="BaseSegDataset", data_root={root!r}, img_suffix=".png", seg_map_suffix=".png",
               metainfo=dict(classes=("ground", "thing"), palette=[[0, 0, 0], [255, 0, 0]]),
               data_prefix=dict(img_path="images", seg_map_path="masks"))
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
                        dataset=dict(pipeline=train_pipeline, **dataset))
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
                      dataset=dict(pipeline=test_pipeline, **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
train_cfg = dict(type="IterBasedTrainLoop", max_iters={iterations}, val_interval={iterations})
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.001), clip_grad=dict(max_norm=1.0))
default_hooks = dict(logger=dict(type="LoggerHook", interval=1),
                     checkpoint=dict(type="CheckpointHook", by_epoch=False, interval={every}, max_keep_ckpts=3))
log_processor = dict(by_epoch=False)
randomness = dict(seed=3)
"""


@dataclass
class Row:
    """One line of the table: a fault, how often it was tried, what happened, and what was lost."""

    fault: str
    tries: int
    outcome: str
    lost: str = "nothing"


def make_config(folder: Path, iterations: int = 40, every: int = 1, images: int = 12) -> Path:
    """Write pictures, masks and a config, and return the config."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(images):
        image = rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)
        mask = np.zeros((48, 48), np.uint8)
        x, y = rng.integers(4, 24, 2)
        mask[y : y + 16, x : x + 16] = 1
        image[mask == 1] = (40, 40, 200)
        cv2.imwrite(str(folder / "images" / f"{index:02d}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"{index:02d}.png"), mask)
    file = folder / "tiny.py"
    file.write_text(CONFIG.format(root=str(folder), iterations=iterations, every=every))
    return file


def in_child(action: Callable[[], None], log: Path) -> int:
    """Run an action in a forked process, which has all imports already, and return its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(log, "a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            action()
        code = 0
    except BaseException as error:
        with open(log, "a") as stream:
            stream.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def same_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same bits: weights, optimizer, schedules."""
    from visionattn.engine.compat import checkpoint as checkpoints

    one, two = checkpoints.read(first), checkpoints.read(second)
    return all(_equal(one[key], two[key]) for key in ("state_dict", "optimizer", "param_schedulers") if key in one)


def _equal(one: object, two: object) -> bool:
    import torch

    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_equal(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(_equal(a, b) for a, b in zip(one, two, strict=True))
    return one == two
