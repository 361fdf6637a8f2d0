# CamVid (11 classes, 367 training frames of 480x360): `visionattn data camvid --out data/camvid`.
# 8,000 iterations take about an hour of one core.
_base_ = [
    "../../_base_/models/semantic-fpn_small.py",
    "../../_base_/datasets/mask_folders.py",
    "../../_base_/schedules/adamw_iters.py",
    "../../_base_/seg_runtime.py",
]
custom_data = dict(root="data/camvid")
model = dict(
    backbone=dict(model_name="dinat_nano"),
    neck=dict(in_channels=[32, 64, 128, 256]),
    decode_head=dict(
        # inverse square roots of the class frequencies in the training pixels, normalized to a mean over pixels of 1
        loss_decode=dict(class_weight=[0.88, 0.75, 3.63, 0.64, 1.7, 1.15, 3.32, 3.39, 1.49, 4.5, 6.66]),
    ),
)
scale = (480, 360)
crop_size = (256, 320)  # height, width
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
max_iters = 8000
train_cfg = dict(max_iters=max_iters, val_interval=2000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=200, end=max_iters, T_max=max_iters - 200),
]
# the last checkpoint is the result, since val is too small for model selection
default_hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=500, save_best=None))
