"""A tiny COCO dataset of coloured rectangles and a tiny detector config, for the tests of this folder."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

CONFIG = """
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmdet"
custom_data = dict(root={root!r}, train_ann="train.json", val_ann="val.json")
model = dict(
    type="ATSS",
    data_preprocessor=dict(
        type="DetDataPreprocessor", mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True,
        pad_size_divisor=32),
    backbone=dict(type="visionattn.Backbone", model_name="resnet10t", out_indices=(2, 3, 4),
                  channels=(8, 8, 8, 8), stem_width=4, drop_path_rate=0.1),
    neck=dict(type="FPN", in_channels=[8, 8, 8], out_channels=8, num_outs=3, norm_cfg=dict(type="GN", num_groups=4)),
    bbox_head=dict(
        type="ATSSHead", num_classes=80, in_channels=8, stacked_convs=1, feat_channels=8,
        norm_cfg=dict(type="GN", num_groups=4, requires_grad=True),
        anchor_generator=dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=4, scales_per_octave=1,
                              strides=[8, 16, 32]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0)),
    train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=5), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=50, min_bbox_size=0, score_thr=0.0, nms=dict(type="nms", iou_threshold=0.6),
                  max_per_img=10))
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="visionattn.Albu", transforms=[
        dict(type="Affine", translate_px=(-4, 4), p=0.5),
        dict(type="OneOf", transforms=[dict(type="RandomBrightnessContrast"), dict(type="CLAHE")], p=0.8)]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 64), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="{sampler}", shuffle=True),
    dataset=dict(type="CocoDataset", pipeline=train_pipeline, filter_cfg=dict(filter_empty_gt=True)))
val_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="CocoDataset", test_mode=True, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", metric="bbox")
test_evaluator = val_evaluator
train_cfg = {train_cfg}
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.001, weight_decay=0.05), clip_grad=dict(max_norm=10.0))
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=3),
                   dict(type="CosineAnnealingLR", by_epoch=False, begin=3, end=8)]
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1),
    checkpoint=dict(type="CheckpointHook", by_epoch={by_epoch}, interval={save}, save_best="auto", max_keep_ckpts=2))
log_processor = dict(by_epoch={by_epoch}, window_size=3)
randomness = dict(seed=3)
"""


SEGMENTATION = """
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[0.0] * 3, std=[255.0] * 3, size=(32, 32),
                           seg_pad_val=255),
    backbone=dict(type="visionattn.Backbone", model_name="resnet10t", out_indices=(1, 2),
                  channels=(8, 8, 8, 8), stem_width=4),
    decode_head=dict(type="FCNHead", in_channels=8, in_index=1, channels=8, num_convs=1, num_classes=2,
                     norm_cfg=dict(type="GN", num_groups=2), loss_decode=dict(type="CrossEntropyLoss")),
    train_cfg=dict(), test_cfg=dict(mode="whole"))
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")]
dataset = dict(type="BaseSegDataset", data_root=ROOT, data_prefix=dict(img_path="img", seg_map_path="seg"),
               img_suffix=".png", metainfo=dict(classes=("dark", "light"), palette=[[0, 0, 0], [9, 9, 9]]))
train_dataloader = dict(batch_size=2, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(pipeline=load + [dict(type="RandomFlip", prob=0.5), dict(type="PackSegInputs")], **dataset))
val_dataloader = dict(batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(pipeline=load + [dict(type="PackSegInputs")], **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
train_cfg = dict(type="IterBasedTrainLoop", max_iters=3, val_interval=3)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.01))
default_hooks = dict(logger=dict(type="LoggerHook", interval=1, log_metric_by_epoch=False),
                     checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=3, save_best="mIoU"))
"""


def write_segmentation(folder: Path, count: int = 4) -> Path:
    """``seg.py`` in the folder: a config for ``count`` images of 32 x 32, light from some column on."""
    rng = np.random.default_rng(0)
    for name in ("img", "seg"):
        (folder / name).mkdir()
    for number in range(count):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, int(rng.integers(8, 24)) :] = 1
        cv2.imwrite(str(folder / "seg" / f"{number}.png"), mask)
        cv2.imwrite(str(folder / "img" / f"{number}.png"), np.repeat(mask[..., None] * 200, 3, 2))
    path = folder / "seg.py"
    path.write_text(SEGMENTATION.replace("ROOT", repr(str(folder))))
    return path


def make_coco(folder: Path, count: int = 8, size: int = 64) -> Path:
    """Images of one or two rectangles, red ones of class ``red``, blue ones of class ``blue``."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, start in (("train", 0), ("val", count)):
        images, annotations = [], []
        for number in range(start, start + count):
            image = rng.integers(90, 120, (size, size, 3), dtype=np.uint8)
            for part in range(int(rng.integers(1, 3))):
                category = int(rng.integers(1, 3))
                w, h = (int(v) for v in rng.integers(12, 24, 2))
                x, y = (
                    part * 32 + int(rng.integers(0, 32 - w)) if w < 32 else 0,
                    int(rng.integers(0, size - h)),
                )
                image[y : y + h, x : x + w] = (0, 0, 220) if category == 1 else (220, 0, 0)
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": [x, y, w, h],
                         "area": w * h, "iscrowd": 0, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
                )  # fmt: skip
            name = f"{number:03d}.png"
            cv2.imwrite(str(folder / "images" / name), image)
            images.append({"id": number, "file_name": name, "width": size, "height": size})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        }
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def write_config(path: Path, root: Path, *, by_epoch: bool = False, save: int | None = None, **options: str) -> Path:
    """The tiny config for the data at ``root``: 8 iterations, or 2 epochs of 4."""
    values = {
        "root": str(root),
        "by_epoch": by_epoch,
        "save": save or (1 if by_epoch else 2),
        "sampler": "DefaultSampler" if by_epoch else "InfiniteSampler",
        "train_cfg": "dict(by_epoch=True, max_epochs=2, val_interval=1)"
        if by_epoch
        else "dict(by_epoch=False, max_iters=8, val_interval=4)",
    }
    values.update(options)
    text = CONFIG
    for key, value in values.items():
        text = text.replace(f"{{{key}!r}}", repr(value)).replace(f"{{{key}}}", str(value))
    path.write_text(text)
    return path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def coco_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset: ``train.json``, ``val.json``, ``images/``."""
    return make_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Path]:
    """`write_config`: test modules cannot import from a conftest."""
    return write_config


@pytest.fixture(scope="session")
def make_segmentation() -> Callable[..., Path]:
    """`write_segmentation`."""
    return write_segmentation


@pytest.fixture
def config_file(tmp_path: Path, coco_dir: Path) -> Path:
    """The tiny iteration-based config."""
    return write_config(tmp_path / "tiny.py", coco_dir)
